"""`unetdiff predict PATH INPUT ...`: palette masks and overlays of images and videos."""

from __future__ import annotations

import io
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetdiff.cli.inference import add_inference, chosen_device, inference_options, numbers
from unetdiff.cli.model_path import HELP, local_model
from unetdiff.cli.parser import Parser
from unetdiff.cli.predict_inputs import STDIN, Source, is_video, list_sources, masks_of_run
from unetdiff.cli.streams import write_binary
from unetdiff.config.model_directory import model_directory
from unetdiff.console import progress_bar
from unetdiff.errors import UserError, config_error, printable
from unetdiff.files.images import save_image
from unetdiff.files.writing import file_errors, make_folder, require_writable

if TYPE_CHECKING:
    from unetdiff.segmentation.pipeline import SegmentationOutput, SegmentationPipeline

MASKS, OVERLAYS, PROBABILITIES = "masks", "overlays", "probabilities"
"""Folders of the output."""
MAX_CLASSES = 10
"""Classes that are printed with their indices."""


def main(argv: Sequence[str]) -> int:
    """Predict; returns 0, or 1 if an input could not be read (it is named, the others are processed).

    Raises:
        UserError: an invalid option or model, or an output that cannot be written; finished outputs are kept.
    """
    args = _parser().parse_strictly(argv)
    model = model_directory(local_model(args.path))
    names = [MASKS, OVERLAYS, *([PROBABILITIES] if args.probabilities else [])]
    folders = [args.output / name for name in names]
    sources = list_sources(args.inputs, args.list, folders, masks_of_run(model))
    videos = [source for source in sources if is_video(source[0])]
    images = [source for source in sources if not is_video(source[0])]
    to_stdout = str(args.output) == STDIN
    if to_stdout and (videos or len(images) != 1):
        raise config_error(
            "--output", "-", f"a folder for {len(sources)} inputs", "Give one image for standard output."
        )
    if args.probabilities and (videos or to_stdout):
        constraint = f"left out for {'--output=-' if to_stdout else 'videos'}"
        raise config_error("--probabilities", True, constraint, "Give images and a folder.")
    for folder in folders if not to_stdout else []:
        require_writable("--output", folder, folder=True)

    from unetdiff.files.arrays import write_arrays
    from unetdiff.segmentation.config import InferenceConfig
    from unetdiff.segmentation.pipeline import SegmentationPipeline
    from unetdiff.segmentation.video import require_pyav
    from unetdiff.training.runtime import autocast_dtype

    inference_options(args, InferenceConfig())  # check before loading anything
    if videos:
        require_pyav()
    pipeline = SegmentationPipeline.from_pretrained(model)
    pipeline.inference = inference_options(args, pipeline.inference)
    pipeline.segmenter = pipeline.segmenter.with_prompt(args.prompt)
    device = chosen_device(args.device)
    pipeline.to(device).optimize_for_inference(autocast_dtype(device=device.type), args.compile)

    def save(result: SegmentationOutput, stem: Path) -> None:
        if to_stdout:
            result.palette_image.save(png := io.BytesIO(), format="PNG")
            write_binary(png.getvalue())
            return
        for folder, image in zip(folders, (result.palette_image, result.overlay), strict=False):
            path = folder / f"{stem}.png"
            replaced.extend([path] if path.exists() else [])
            with file_errors(path):
                make_folder(path.parent)
                save_image(image, path)
        if result.probabilities is not None:
            path = args.output / PROBABILITIES / f"{stem}.npz"
            replaced.extend([path] if path.exists() else [])
            with file_errors(path):
                make_folder(path.parent)
                write_arrays(path, probabilities=result.probabilities.half().numpy())

    failed: list[str] = []
    replaced = [path for _, stem in videos if (path := args.output / OVERLAYS / f"{stem}.mp4").exists()]
    try:
        written = predict_images(pipeline, images, save, failed, args.probabilities, stacks=not to_stdout)
        failed_images = len(failed)
        predict_videos(pipeline, videos, args.output, args.masks, failed)
    finally:
        for message in failed:
            print(f"unetdiff: {printable(message)}", file=sys.stderr)
    summary = []
    if images:
        kinds = "masks, overlays and probabilities" if args.probabilities else "masks and overlays"
        summary.append(f"{written} {kinds}")
    if videos:
        summary.append(f"{len(videos) - len(failed) + failed_images} overlay videos")
    if replaced:
        summary.append(f"replaced {len(replaced)} files of an earlier prediction")
    if not to_stdout:
        print(f"{printable(str(args.output))}: {', '.join(summary)}")
        if images or args.masks:
            print(class_indices(pipeline.classes))
    return 1 if failed else 0


def _parser() -> Parser:
    parser = Parser("unetdiff predict", "Segment images and videos with a trained model.")
    parser.add_argument("path", type=Path, help=HELP)
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="image, TIFF stack, video, folder of them, quoted glob, or - (one image on standard input)",
    )
    parser.add_argument("--list", action="store_true", help="with -: standard input is a list of inputs, one per line")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("predictions"),
        help="folder, or - to write one mask (PNG) to standard output",
    )
    parser.add_argument("--masks", action="store_true", help="for videos, write the mask of each frame, too")
    parser.add_argument(
        "--prompt", metavar="TEXT", help="caption of all inputs, for a model of segmentation.context=caption"
    )
    parser.add_argument(
        "--probabilities",
        action="store_true",
        help="for images, write the probability of each class at each pixel, too: NAME.npz with the array "
        "probabilities, float16 (classes, height, width)",
    )
    parser.add_argument(
        "--image_range",
        "--image-range",
        type=numbers,
        metavar="BLACK,WHITE",
        help="values of images of more than 8 bits that become black and white (default: the model's, of its training "
        "images; 0,65535 for a model of 8-bit images)",
    )
    parser.add_argument("--batch_size", "--batch-size", type=int, help="images or tiles per forward pass")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if available)")
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile the network, for many images of one size; slower on a CPU"
    )
    add_inference(parser)
    return parser


def class_indices(classes: Sequence[str]) -> str:
    """ "masks hold class indices: 0 background, 1 cell"."""
    shown = [f"{index} {printable(name)}" for index, name in enumerate(classes[:MAX_CLASSES])]
    more = [f"{len(classes) - MAX_CLASSES} more"] if len(classes) > MAX_CLASSES else []
    return f"masks hold class indices: {', '.join([*shown, *more])}"


def predict_images(
    pipeline: SegmentationPipeline,
    images: Sequence[Source],
    save: Callable[[SegmentationOutput, Path], None],
    failed: list[str],
    probabilities: bool = False,
    stacks: bool = True,
) -> int:
    """Save the prediction for each image, with its logits for `probabilities`; the messages of unreadable ones are
    added to `failed`.

    Args:
        stacks: all images of a TIFF stack, as NAME/0000 and so on; else its first.

    Returns:
        How many were saved.
    """
    from unetdiff.data.stacks import stack_size

    outputs: deque[Path] = deque()
    written = 0

    def readable() -> Iterator[Any]:
        for source, stem in images:
            try:
                count = stack_size(source, pipeline.segmenter.image_channels) if stacks else 1
                for page in range(count):
                    image = pipeline.load_image(source, page if count > 1 else None)  # (C, H, W)
                    outputs.append(stem / f"{page:04d}" if count > 1 else stem)
                    yield image
            except UserError as error:
                failed.append(str(error))
            bar.update()

    with progress_bar(total=len(images), unit="image", enabled=bool(images)) as bar:
        for result in pipeline.stream(readable(), return_logits=probabilities):
            save(result, outputs.popleft())
            written += 1
    return written


def predict_videos(
    pipeline: SegmentationPipeline, videos: Sequence[Source], output: Path, masks: bool, failed: list[str]
) -> None:
    """Write output/overlays/NAME.mp4 and, with `masks`, output/masks/NAME/000000.png and so on; the messages of
    unreadable videos are added to `failed`."""
    from unetdiff.segmentation.video import frame_count, segment_video

    for source, stem in videos:
        assert isinstance(source, Path)
        target = output / OVERLAYS / f"{stem}.mp4"
        folder = output / MASKS / stem if masks else None
        try:
            with progress_bar(total=frame_count(source), unit="frame", desc=printable(source.name)) as bar:
                segment_video(pipeline, source, target, folder, progress=bar.update)
        except UserError as error:
            failed.append(str(error))
