"""A labelled set with synthesised images beside its own: one folder in VOC's layout, and a list for each part."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from unetdiff.data.base import ImageDataset
from unetdiff.data.hashing import generator_of
from unetdiff.data.transforms import resize_mask
from unetdiff.data.voc import VOCFolder
from unetdiff.data.voc_paths import IMAGES, MASKS, SPLITS
from unetdiff.diffusion.noise import generators_for
from unetdiff.diffusion.pipeline import GenerationOutput, GenerationPipeline
from unetdiff.errors import UserError
from unetdiff.reports.embed import as_array
from unetdiff.segmentation.metrics import ConfusionMatrix
from unetdiff.segmentation.palette import save_mask
from unetdiff.segmentation.pipeline import SegmentationPipeline
from unetdiff.training.checkpoints import replace_directory
from unetdiff.training.run_cache import first_difference

LABELLED, ADDED, DRAWN, VAL = "labelled", "labelled_and_synthetic", "synthetic", "val"
"""The folder's lists: the labelled images, those and the kept ones, all that were drawn, and the validation."""
SOURCE, SETTINGS, SCORES = "source.json", "settings.json", "agreement.json"
BATCH = 32  # images drawn at once


@dataclass(frozen=True)
class Synthesis:
    """How images are drawn for layouts, and which are kept."""

    copies: int
    """Images of each labelled layout."""
    agreement: float
    """Least agreement of an image that is kept, 0 to 1."""
    zoom: float
    """Layouts are enlarged by up to this factor, and a window of them is taken; 1: as they are."""
    mirror: bool
    """Half of the layouts are mirrored."""
    steps: int
    """Denoising steps."""
    guidance: float
    """Guidance scale."""
    seed: int = 0
    """Of windows, mirroring and noise."""


def varied(layout: Tensor, asked: Synthesis, number: int) -> Tensor:
    """Another layout from one, uint8 (H, W): a window of it, maybe mirrored; a function of seed and `number`."""
    generator = generator_of(asked.seed, number, 1)  # not that of the noise
    zoom, down, across, mirrored = torch.rand(4, generator=generator).tolist()
    height, width = layout.shape
    factor = 1 + zoom * (asked.zoom - 1)
    large = resize_mask(layout, (round(height * factor), round(width * factor)))
    top, left = (
        round(share * (now - own)) for share, now, own in zip((down, across), large.shape, layout.shape, strict=True)
    )
    window = large[top : top + height, left : left + width]
    return window.flip(-1) if asked.mirror and mirrored < 0.5 else window


def agreement(found: np.ndarray | Tensor, layout: Tensor, num_classes: int, ignore_index: int = 255) -> float:
    """Mean IoU of what a segmenter finds in an image with the layout that was asked for, over the classes in either;
    both (H, W). NaN for a layout that is void all over."""
    matrix = ConfusionMatrix(num_classes, ignore_index)
    matrix.update(torch.as_tensor(found).long(), layout.long())
    return float(matrix.compute()["mean_iou"])


def write_labelled(folder: Path, parts: Mapping[str, ImageDataset], source: Mapping[str, Any]) -> None:
    """Write sets with masks as lists of one new folder; does nothing where it is there already.

    Args:
        folder: whole or not there at all, whatever interrupts this.
        parts: sets by the name of their list; images and masks of one size.
        source: what they were made from, as JSON holds it.

    Raises:
        UserError: the folder was made from something else.
    """
    if folder.is_dir():
        return _require(folder, SOURCE, source)

    def write(aside: Path) -> None:
        for kind in (IMAGES, MASKS, SPLITS):
            (aside / kind).mkdir(parents=True)
        first = next(iter(parts.values()))
        (aside / "classes.txt").write_text("\n".join(first.classes) + "\n", encoding="utf-8")
        for split, data in parts.items():
            names = [f"{split}_{index:06d}" for index in range(len(data))]
            for index, name in enumerate(tqdm(names, desc=f"writing {split}", unit="image", disable=None)):
                item = data[index]
                write_pair(aside, name, item["image"], item["mask"], data.palette)
            write_split(aside, split, names)
        (aside / SOURCE).write_text(json.dumps(source, indent=1))

    replace_directory(folder, write)


def write_pair(folder: Path, name: str, image: Tensor, mask: Tensor, palette: np.ndarray) -> None:
    """An image, uint8 (3, H, W), and its mask (H, W), as files without loss."""
    Image.fromarray(as_array(image)).save(folder / IMAGES / f"{name}.png")
    save_mask(mask, folder / MASKS / f"{name}.png", palette)


def write_split(folder: Path, split: str, names: Sequence[str]) -> None:
    """A list of images."""
    (folder / SPLITS / f"{split}.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def synthesise(
    folder: Path,
    labelled: Path,
    denoiser: GenerationPipeline,
    segmenter: SegmentationPipeline,
    asked: Synthesis,
    networks: Mapping[str, str],
    autocast: torch.dtype | None = None,
) -> dict[str, float]:
    """Draw images for the layouts of the labelled list and write them beside it, with the lists `DRAWN` and `ADDED`.

    What is there already under the same settings is kept.

    Args:
        folder: of the new set; it has all files of `labelled` as well.
        labelled: as `write_labelled` wrote it.
        denoiser: is told layouts.
        segmenter: looks for them in what is drawn.
        asked: the settings.
        networks: what tells denoiser and segmenter from those of other weights, by their name in the settings.
        autocast: precision of the denoiser.

    Returns:
        The agreement of every image that was drawn, by its name.

    Raises:
        UserError: the folder holds a set of other settings or networks, or no image agrees enough.
    """
    settings = {**asdict(asked), **networks}
    if folder.is_dir():
        _require(folder, SETTINGS, settings)
        return json.loads((folder / SCORES).read_text())
    data = VOCFolder(labelled, LABELLED)
    scores: dict[str, float] = {}

    def write(aside: Path) -> None:
        shutil.copytree(labelled, aside, dirs_exist_ok=True)
        numbers = range(len(data) * asked.copies)
        for at in tqdm(range(0, len(numbers), BATCH), desc="synthesising", unit="batch", disable=None):
            part = numbers[at : at + BATCH]
            layouts = [varied(data.mask(number % len(data)), asked, number) for number in part]
            images = draw(denoiser, layouts, part, asked, autocast)
            outputs = segmenter([*images])
            for number, image, layout, output in zip(part, images, layouts, outputs, strict=True):
                name = f"{DRAWN}_{number:06d}"
                write_pair(aside, name, image, layout, data.palette)
                scores[name] = agreement(output.mask, layout, len(data.classes), segmenter.ignore_index)
        kept = [name for name, score in scores.items() if score >= asked.agreement]
        if not kept:
            raise UserError(
                f"--agreement: no image reaches {asked.agreement}, the best {max(scores.values()):.3f}; use less, or "
                "train the denoiser for longer"
            )
        write_split(aside, DRAWN, list(scores))
        write_split(aside, ADDED, [*(pair.name for pair in data.pairs), *kept])
        (aside / SCORES).write_text(json.dumps(scores, indent=1))
        (aside / SETTINGS).write_text(json.dumps(settings, indent=1))

    replace_directory(folder, write)
    return scores


def _require(folder: Path, file: str, wanted: Mapping[str, Any]) -> None:
    """Refuse a folder that was made with other settings: the runs beside it were trained on it."""
    found = json.loads((folder / file).read_text())
    difference = first_difference(wanted, found)
    if difference is not None:
        raise UserError(
            f"{folder} was made with other settings ({difference}); give another --output, or remove it and all that "
            "was made from it"
        )


def refuse_orphans(folder: Path, made: Iterable[Path]) -> None:
    """Refuse (UserError) what was made from a set that is gone: it would pass for made from the next one there."""
    left = sorted(str(path) for path in made if path.exists())
    if left and not folder.is_dir():
        raise UserError(
            f"{left[0]} was made from {folder}, which is no longer there; remove {', '.join(left)}, or give another "
            "--output"
        )


def draw(
    denoiser: GenerationPipeline,
    layouts: Sequence[Tensor],
    numbers: Sequence[int],
    asked: Synthesis,
    autocast: torch.dtype | None,
) -> Tensor:
    """An image for each layout (H, W), uint8 (B, 3, H, W); its noise is a function of seed and number."""
    height, width = layouts[0].shape
    denoiser.autocast_dtype = autocast
    given: Any = denoiser(
        layout=torch.stack(list(layouts)),
        num_inference_steps=asked.steps,
        guidance_scale=asked.guidance,
        height=height,
        width=width,
        generator=generators_for(asked.seed, numbers),
        output_type="np",
    )
    images = torch.from_numpy(cast(GenerationOutput, given).images)  # (B, H, W, 3) in [0, 1]
    return rearrange((images * 255).round().to(torch.uint8), "b h w c -> b c h w")
