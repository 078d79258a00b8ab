"""`unetdiff predict PATH INPUT ...`: masks in the set's palette, and overlays, for any pictures."""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from unetdiff.cli.parser import Parser
from unetdiff.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"}


def main(argv: Sequence[str]) -> int:
    """Predict; 0 when every picture could be read, else 1 (the bad ones are named, the rest is done)."""
    parser = Parser("unetdiff predict", "Label every pixel of pictures with a trained segmenter.")
    parser.add_argument("path", type=Path, help="a run directory or a model directory")
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="a picture, a folder of pictures, or a glob")
    parser.add_argument("--output", type=Path, default=Path("predictions"), help="folder for masks and overlays")
    parser.add_argument("--batch_size", "--batch-size", type=int, default=8, help="pictures at once")
    given = parser.parse_strictly(argv)
    if given.batch_size < 1:
        raise UserError(f"--batch_size: {given.batch_size} is too small; use 1 or more")
    pictures = list_pictures(given.inputs)

    import torch

    from unetdiff.segmentation.pipeline import SegmentationPipeline
    from unetdiff.training.checkpoints import model_directory

    pipeline = SegmentationPipeline.from_pretrained(model_directory(given.path))
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    failed = predict(pipeline, pictures, given.output, given.batch_size)
    for message in failed:
        print(f"unetdiff: {message}", file=sys.stderr)
    print(f"{given.output}: {len(pictures) - len(failed)} masks and overlays")
    return 1 if failed else 0


def list_pictures(inputs: Sequence[str]) -> list[tuple[Path, Path]]:
    """(picture, its relative path without suffix in the output) for every input; a folder is searched through.

    A name that occurs twice gets a number ("street-2"), so that no mask overwrites another. Raises UserError for
    an input that names nothing.
    """
    found: dict[Path, Path] = {}
    for word in inputs:
        path = Path(word)
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
            matches = [(file, file.relative_to(path).with_suffix("")) for file in files]
        else:
            names = [word] if path.is_file() else sorted(glob.glob(word, recursive=True))
            matches = [(Path(name), Path(Path(name).stem)) for name in names if Path(name).is_file()]
        if not matches:
            raise UserError(f"{word}: no picture there; give a picture, a folder of pictures, or a quoted glob")
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


def predict(pipeline: Any, pictures: Sequence[tuple[Path, Path]], output: Path, batch_size: int) -> list[str]:
    """Write output/masks/NAME.png and output/overlays/NAME.png for each picture; messages of the unreadable ones."""
    from unetdiff.training.machine import autocast_dtype

    failed: list[str] = []
    with tqdm(total=len(pictures), unit="picture", disable=None) as bar:
        for batch in _batches(pictures, batch_size, failed, bar):
            outputs = pipeline([image for image, _ in batch], batch_size=batch_size, autocast=autocast_dtype())
            for result, (_, stem) in zip(outputs, batch, strict=True):
                for folder, image in (("masks", result.palette_image), ("overlays", result.overlay)):
                    path = output / folder / f"{stem}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    image.save(path)
                bar.update()
    return failed


def _batches(
    pictures: Sequence[tuple[Path, Path]], batch_size: int, failed: list[str], bar: Any
) -> Iterator[list[tuple[Any, Path]]]:
    """Decoded pictures, uint8 (3, H, W), with their names, `batch_size` at a time; unreadable ones go to `failed`."""
    from unetdiff.segmentation.inference import load_picture

    batch: list[tuple[Any, Path]] = []
    for file, stem in pictures:
        try:
            batch.append((load_picture(file), stem))
        except UserError as error:
            failed.append(str(error))
            bar.update()
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch
