"""`unetdiff predict PATH INPUT ...`: masks in the set's palette, and overlays, for any images and videos."""

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
from unetdiff.errors import UserError

if TYPE_CHECKING:
    from unetdiff.segmentation.pipeline import SegmentationOutput, SegmentationPipeline

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"}
VIDEO_SUFFIXES = {".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv"}
STDIN = "-"

Source = tuple[Path | bytes, Path]
"""A file (or an image's bytes) and its relative path without suffix in the output."""


def main(argv: Sequence[str]) -> int:
    """Predict; 0 when everything could be read, else 1 (the bad ones are named, the rest is done)."""
    given = _parser().parse_strictly(argv)
    sources = list_sources(given.inputs, given.list)
    videos = [source for source in sources if is_video(source[0])]
    images = [source for source in sources if not is_video(source[0])]
    to_stdout = str(given.output) == STDIN
    if to_stdout and (videos or len(images) != 1):
        raise UserError(f"--output -: one mask goes to standard output, not {len(sources)}; give one image")

    from unetdiff.segmentation.config import InferenceConfig
    from unetdiff.segmentation.pipeline import SegmentationPipeline
    from unetdiff.segmentation.video import require_pyav
    from unetdiff.training.checkpoints import model_directory
    from unetdiff.training.runtime import autocast_dtype

    inference_options(given, InferenceConfig())  # what cannot be is refused before anything is loaded
    if videos:
        require_pyav()
    pipeline = SegmentationPipeline.from_pretrained(model_directory(given.path))
    pipeline.inference = inference_options(given, pipeline.inference)
    device = chosen_device(given.device)
    pipeline.to(device).optimize_for_inference(autocast_dtype(device=device.type), given.compile)

    def save(result: SegmentationOutput, stem: Path) -> None:
        if to_stdout:
            result.palette_image.save(sys.stdout.buffer, format="PNG")
            return
        for folder, image in (("masks", result.palette_image), ("overlays", result.overlay)):
            path = given.output / folder / f"{stem}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)

    failed = predict_images(pipeline, images, save)
    lost = len(failed)
    failed += predict_videos(pipeline, videos, given.output, given.masks)
    for message in failed:
        print(f"unetdiff: {message}", file=sys.stderr)
    done = []
    if images:
        done.append(f"{len(images) - lost} masks and overlays")
    if videos:
        done.append(f"{len(videos) - len(failed) + lost} overlay videos")
    if not to_stdout:
        print(f"{given.output}: {', '.join(done)}")
    return 1 if failed else 0


def _parser() -> Parser:
    parser = Parser("unetdiff predict", "Label every pixel of images and videos with a trained segmenter.")
    parser.add_argument("path", type=Path, help="a run directory or a model directory")
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="an image, a video, a folder of them, a quoted glob, or - (the bytes of one image on standard input)",
    )
    parser.add_argument("--list", action="store_true", help="- is a list of inputs instead, one a line")
    parser.add_argument(
        "--output", type=Path, default=Path("predictions"), help="folder; - : one mask (PNG) to standard output"
    )
    parser.add_argument("--masks", action="store_true", help="videos: a mask for each frame too")
    parser.add_argument("--batch_size", "--batch-size", type=int, help="images, or tiles, at once")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; none given: a GPU where there is one")
    parser.add_argument(
        "--compile", action="store_true", help="compile it first, for many images of one size; slower on a CPU"
    )
    add_inference(parser)
    return parser


def is_video(source: Path | bytes) -> bool:
    """Whether a file is taken for a video, by its suffix."""
    return isinstance(source, Path) and source.suffix.lower() in VIDEO_SUFFIXES


def list_sources(inputs: Sequence[str], listed: bool = False) -> list[Source]:
    """Every input's files; "-" is an image's bytes on standard input or, `listed`, inputs there, one a line."""
    if STDIN not in inputs:
        if listed:
            raise UserError("--list: no input is -; give - where the list on standard input goes")
        return list(list_images(inputs))
    if not listed:
        if len(inputs) > 1:
            raise UserError("-: one image on standard input goes alone; give files, or a list with --list")
        return [(sys.stdin.buffer.read(), Path("stdin"))]
    lines = [line for line in sys.stdin.read().splitlines() if line]
    words = [word for given in inputs for word in (lines if given == STDIN else [given])]
    if not words:
        raise UserError("-: the list on standard input is empty; give one input a line")
    return list(list_images(words))


def list_images(inputs: Sequence[str]) -> list[tuple[Path, Path]]:
    """(image or video, its relative path without suffix in the output) of all inputs; a folder is searched through.

    A name that occurs twice gets a number ("street-2"), so that no mask overwrites another. Raises UserError for
    an input that names nothing.
    """
    found: dict[Path, Path] = {}
    for word in inputs:
        path = Path(word)
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES | VIDEO_SUFFIXES)
            matches = [(file, file.relative_to(path).with_suffix("")) for file in files]
        else:
            names = [word] if path.is_file() else sorted(glob.glob(word, recursive=True))
            matches = [(Path(name), Path(Path(name).stem)) for name in names if Path(name).is_file()]
        if not matches:
            raise UserError(f"{word}: no image there; give an image, a video, a folder of them, or a quoted glob")
        found |= dict(matches)
    pairs: list[tuple[Path, Path]] = []
    taken: set[Path] = set()
    for file, stem in found.items():
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
    """Save what each image is taken to be; returns messages of the unreadable ones."""
    from unetdiff.segmentation.inference import load_image

    failed: list[str] = []
    stems: deque[Path] = deque()

    def readable() -> Iterator[Any]:
        for source, stem in images:
            try:
                image = load_image(source)  # (3, H, W)
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
    """Write output/overlays/NAME.mp4 of each and, with `masks`, output/masks/NAME/000000.png on; messages as above."""
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
