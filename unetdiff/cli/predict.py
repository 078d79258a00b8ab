"""`unetdiff predict PATH INPUT ...`: palette masks and overlays of images and videos."""

from __future__ import annotations

import glob
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from unetdiff.cli.inference import add_inference, chosen_device, inference_options
from unetdiff.cli.parser import Parser
from unetdiff.errors import UserError, config_error

if TYPE_CHECKING:
    from unetdiff.segmentation.pipeline import SegmentationOutput, SegmentationPipeline

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"}
VIDEO_SUFFIXES = {".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv"}
STDIN = "-"

Source = tuple[Path | bytes, Path]
"""A file (or an image's bytes) and its output path, relative and without suffix."""


def main(argv: Sequence[str]) -> int:
    """Predict; returns 0, or 1 if an input could not be read (it is named, the others are processed)."""
    args = _parser().parse_strictly(argv)
    sources = list_sources(args.inputs, args.list)
    videos = [source for source in sources if is_video(source[0])]
    images = [source for source in sources if not is_video(source[0])]
    to_stdout = str(args.output) == STDIN
    if to_stdout and (videos or len(images) != 1):
        raise config_error(
            "--output", "-", f"a folder for {len(sources)} inputs", "Give one image for standard output."
        )

    from unetdiff.segmentation.config import InferenceConfig
    from unetdiff.segmentation.pipeline import SegmentationPipeline
    from unetdiff.segmentation.video import require_pyav
    from unetdiff.training.checkpoints import model_directory
    from unetdiff.training.runtime import autocast_dtype

    inference_options(args, InferenceConfig())  # check before loading anything
    if videos:
        require_pyav()
    pipeline = SegmentationPipeline.from_pretrained(model_directory(args.path))
    pipeline.inference = inference_options(args, pipeline.inference)
    device = chosen_device(args.device)
    pipeline.to(device).optimize_for_inference(autocast_dtype(device=device.type), args.compile)

    def save(result: SegmentationOutput, stem: Path) -> None:
        if to_stdout:
            result.palette_image.save(sys.stdout.buffer, format="PNG")
            return
        for folder, image in (("masks", result.palette_image), ("overlays", result.overlay)):
            path = args.output / folder / f"{stem}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)

    failed = predict_images(pipeline, images, save)
    failed_images = len(failed)
    failed += predict_videos(pipeline, videos, args.output, args.masks)
    for message in failed:
        print(f"unetdiff: {message}", file=sys.stderr)
    summary = []
    if images:
        summary.append(f"{len(images) - failed_images} masks and overlays")
    if videos:
        summary.append(f"{len(videos) - len(failed) + failed_images} overlay videos")
    if not to_stdout:
        print(f"{args.output}: {', '.join(summary)}")
    return 1 if failed else 0


def _parser() -> Parser:
    parser = Parser("unetdiff predict", "Segment images and videos with a trained model.")
    parser.add_argument("path", type=Path, help="a run directory or a model directory")
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="image, video, folder of them, quoted glob, or - (one image on standard input)",
    )
    parser.add_argument("--list", action="store_true", help="with -: standard input is a list of inputs, one per line")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("predictions"),
        help="folder, or - to write one mask (PNG) to standard output",
    )
    parser.add_argument("--masks", action="store_true", help="for videos, write the mask of each frame, too")
    parser.add_argument("--batch_size", "--batch-size", type=int, help="images or tiles per forward pass")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if available)")
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile the network, for many images of one size; slower on a CPU"
    )
    add_inference(parser)
    return parser


def is_video(source: Path | bytes) -> bool:
    """Whether a file has a video's suffix."""
    return isinstance(source, Path) and source.suffix.lower() in VIDEO_SUFFIXES


def list_sources(inputs: Sequence[str], listed: bool = False) -> list[Source]:
    """The files of all inputs; "-" is an image on standard input or, with `listed`, a list of inputs, one per line."""
    if STDIN not in inputs:
        if listed:
            raise UserError("--list: an input must be -. Give - for the list on standard input.")
        return list(list_images(inputs))
    if not listed:
        if len(inputs) > 1:
            raise UserError("-: must be the only input. Give files, or a list on standard input with --list.")
        return [(sys.stdin.buffer.read(), Path("stdin"))]
    lines = [line for line in sys.stdin.read().splitlines() if line]
    expanded = [path for entry in inputs for path in (lines if entry == STDIN else [entry])]
    if not expanded:
        raise UserError("-: the list on standard input is empty. Give one input per line.")
    return list(list_images(expanded))


def list_images(inputs: Sequence[str]) -> list[tuple[Path, Path]]:
    """(image or video, output path without suffix) of all inputs; folders are searched recursively.

    Repeated names are numbered ("street-2"), so that no mask overwrites another. Raises UserError for an input without
    a file.
    """
    stems: dict[Path, Path] = {}
    for entry in inputs:
        path = Path(entry)
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES | VIDEO_SUFFIXES)
            matches = [(file, file.relative_to(path).with_suffix("")) for file in files]
        else:
            names = [entry] if path.is_file() else sorted(glob.glob(entry, recursive=True))
            matches = [(Path(name), Path(Path(name).stem)) for name in names if Path(name).is_file()]
        if not matches:
            raise UserError(f"{entry}: no image or video found. Give an image, a video, a folder or a quoted glob.")
        stems |= dict(matches)
    pairs: list[tuple[Path, Path]] = []
    taken: set[Path] = set()
    for file, stem in stems.items():
        number, name = 1, stem.name
        while stem in taken:
            number += 1
            stem = stem.with_name(f"{name}-{number}")
        taken.add(stem)
        pairs.append((file, stem))
    return pairs


def predict_images(
    pipeline: SegmentationPipeline,
    images: Sequence[Source],
    save: Callable[[SegmentationOutput, Path], None],
) -> list[str]:
    """Save the prediction for each image; returns the messages of unreadable ones."""
    from unetdiff.segmentation.inference import load_image

    failed: list[str] = []
    stems: deque[Path] = deque()

    def readable() -> Iterator[Any]:
        for source, stem in images:
            try:
                image = load_image(source, pipeline.inference.image_range)  # (3, H, W)
            except UserError as error:
                failed.append(str(error))
                bar.update()
                continue
            stems.append(stem)
            yield image

    with tqdm(total=len(images), unit="image", disable=None if images else True) as bar:
        for result in pipeline.stream(readable()):
            save(result, stems.popleft())
            bar.update()
    return failed


def predict_videos(pipeline: SegmentationPipeline, videos: Sequence[Source], output: Path, masks: bool) -> list[str]:
    """Write output/overlays/NAME.mp4 and, with `masks`, output/masks/NAME/000000.png and so on; returns messages."""
    from unetdiff.segmentation.video import frame_count, segment_video

    failed: list[str] = []
    for source, stem in videos:
        assert isinstance(source, Path)
        target = output / "overlays" / f"{stem}.mp4"
        folder = output / "masks" / stem if masks else None
        try:
            with tqdm(total=frame_count(source), unit="frame", desc=source.name, disable=None) as bar:
                segment_video(pipeline, source, target, folder, progress=bar.update)
        except UserError as error:
            failed.append(str(error))
    return failed
