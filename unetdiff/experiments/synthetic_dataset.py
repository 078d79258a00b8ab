"""A labeled dataset extended by synthetic images: one folder in VOC's layout, with a split file for each part."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from unetdiff.console import progress_bar
from unetdiff.data.base import ImageDataset
from unetdiff.data.hashing import generator_of
from unetdiff.data.masks.voc import VOCFolder
from unetdiff.data.masks.voc_paths import IMAGES, MASKS, SPLITS
from unetdiff.data.transforms import resize_mask
from unetdiff.diffusion.mask_sampling import uncertainty
from unetdiff.diffusion.noise import generators_for
from unetdiff.diffusion.pipeline import GenerationOutput, GenerationPipeline
from unetdiff.errors import FileError, UserError
from unetdiff.files.images import save_image
from unetdiff.files.records import jsonable, read_object, write_json
from unetdiff.files.texts import read_lines
from unetdiff.files.typed import typed
from unetdiff.files.writing import copy_tree, make_folder, replace_directory, write_text
from unetdiff.reports.embed import as_array
from unetdiff.segmentation.metrics import ConfusionMatrix
from unetdiff.segmentation.palette import save_mask
from unetdiff.segmentation.pipeline import SegmentationPipeline
from unetdiff.training.run_cache import first_difference

LABELED, EXTENDED, SYNTHETIC, VAL = "labeled", "labeled_and_synthetic", "synthetic", "val"
"""Split files: the labeled images; these and the kept synthetic ones; all synthetic images; validation."""
SOURCE, SETTINGS, SCORES, UNCERTAINTIES = "source.json", "settings.json", "miou.json", "uncertainty.json"
BATCH = 32
"""Images sampled at once."""
DELETE = "Delete the folder and everything made from it, or give another --output."


@dataclass(frozen=True)
class SynthesisConfig:
    """How synthetic images are sampled and filtered."""

    num_samples: int
    """Images per labeled layout."""
    min_miou: float
    """Minimum mIoU between segmentation and layout of a kept image, 0 to 1."""
    max_zoom: float
    """Layouts are enlarged by a random factor up to this one and cropped to their size; 1: unchanged."""
    hflip: bool
    """Flip layouts horizontally with probability 0.5."""
    num_inference_steps: int
    """Denoising steps."""
    guidance_scale: float
    hard_fraction: float = 1.0
    """Fraction kept of the images that match their layout, those on which the segmenter is least certain; 1: all."""
    seed: int = 0
    """Seed of crops, flips and noise."""


@dataclass(frozen=True)
class Scores:
    """What the filtering segmenter says of every synthetic image, by name."""

    miou: dict[str, float]
    """mIoU between segmentation and layout; NaN where all of the layout is ignored."""
    uncertainty: dict[str, float]
    """Mean over the pixels of the entropy of their class probabilities, as a fraction of its maximum."""

    def kept(self, config: SynthesisConfig) -> list[str]:
        """Names of the images that match their layout; of these, the fraction with the highest uncertainty."""
        names = [name for name, score in self.miou.items() if score >= config.min_miou]
        count = math.ceil(config.hard_fraction * len(names))
        hardest = set(sorted(names, key=lambda name: self.uncertainty[name], reverse=True)[:count])
        return [name for name in names if name in hardest]


def augment_layout(layout: Tensor, config: SynthesisConfig, number: int) -> Tensor:
    """A random crop of an enlarged layout, possibly flipped, uint8 (H, W); a function of the seed and `number`."""
    generator = generator_of(config.seed, number, 1)  # independent of the noise
    zoom, down, across, flip = torch.rand(4, generator=generator).tolist()
    height, width = layout.shape
    factor = 1 + zoom * (config.max_zoom - 1)
    enlarged = resize_mask(layout, (round(height * factor), round(width * factor)))
    top, left = (
        round(position * (large - size))
        for position, large, size in zip((down, across), enlarged.shape, layout.shape, strict=True)
    )
    crop = enlarged[top : top + height, left : left + width]
    return crop.flip(-1) if config.hflip and flip < 0.5 else crop


def layout_miou(mask: np.ndarray | Tensor, layout: Tensor, num_classes: int, ignore_index: int = 255) -> float:
    """mIoU between the segmentation of an image and its layout, both (H, W), over the classes in either; NaN if all of
    the layout is ignored."""
    matrix = ConfusionMatrix(num_classes, ignore_index)
    matrix.update(torch.as_tensor(mask).long(), layout.long())
    return float(matrix.compute()["mean_iou"])


def write_labeled(folder: Path, splits: Mapping[str, ImageDataset], source: Mapping[str, Any]) -> None:
    """Write datasets with masks as splits of a new folder; an existing folder is kept.

    Args:
        folder: written atomically.
        splits: datasets by split name; images and masks have equal sizes.
        source: what the datasets were made from, as JSON values.

    Raises:
        UserError: the folder exists and was made from another source.
    """
    if folder.is_dir():
        return _require_equal(folder, SOURCE, source)

    def write(target: Path) -> None:
        for name in (IMAGES, MASKS, SPLITS):
            make_folder(target / name)
        first = next(iter(splits.values()))
        write_text(target / "classes.txt", "\n".join(first.classes) + "\n")
        for split, data in splits.items():
            names = [f"{split}_{index:06d}" for index in range(len(data))]
            for index, name in enumerate(progress_bar(names, desc=f"writing {split}", unit="image")):
                item = data[index]
                write_pair(target, name, item["image"], item["mask"], data.palette)
            write_split(target, split, names)
        write_json(target / SOURCE, source)

    replace_directory(folder, write)


def write_pair(folder: Path, name: str, image: Tensor, mask: Tensor, palette: np.ndarray) -> None:
    """Write an image, uint8 (3, H, W), and its mask (H, W) as lossless files."""
    save_image(Image.fromarray(as_array(image)), folder / IMAGES / f"{name}.png")
    save_mask(mask, folder / MASKS / f"{name}.png", palette)


def write_split(folder: Path, split: str, names: Sequence[str]) -> None:
    """Write a split file."""
    write_text(folder / SPLITS / f"{split}.txt", "".join(f"{name}\n" for name in names))


def synthesize(
    folder: Path,
    labeled: Path,
    denoiser: GenerationPipeline,
    segmenter: SegmentationPipeline,
    config: SynthesisConfig,
    networks: Mapping[str, str],
    autocast: torch.dtype | None = None,
) -> Scores:
    """Sample images for the labeled layouts, and write the splits `SYNTHETIC` and `EXTENDED`.

    An existing folder with the same settings is kept.

    Args:
        folder: the new dataset, which includes all files of `labeled`.
        labeled: a folder written by `write_labeled`.
        denoiser: layout-conditioned.
        segmenter: segments the samples for filtering.
        config: sampling and filtering.
        networks: fingerprints of denoiser and segmenter, by name.
        autocast: precision of the denoiser.

    Raises:
        UserError: the folder exists with other settings or networks, or no image passes the filter.
    """
    settings = {**asdict(config), **networks}
    if folder.is_dir():
        _require_equal(folder, SETTINGS, settings)
        return _read_scores(folder)
    data = VOCFolder(labeled, LABELED)
    scores = Scores({}, {})

    def write(target: Path) -> None:
        copy_tree(labeled, target)
        numbers = range(len(data) * config.num_samples)
        for start in progress_bar(range(0, len(numbers), BATCH), desc="sampling images", unit="batch"):
            batch = numbers[start : start + BATCH]
            layouts = [augment_layout(data.mask(number % len(data)), config, number) for number in batch]
            images = sample_images(denoiser, layouts, batch, config, autocast)
            outputs = segmenter([*images], return_logits=True)
            for number, image, layout, output in zip(batch, images, layouts, outputs, strict=True):
                name = f"{SYNTHETIC}_{number:06d}"
                write_pair(target, name, image, layout, data.palette)
                scores.miou[name] = layout_miou(output.mask, layout, len(data.classes), segmenter.ignore_index)
                assert output.probabilities is not None
                scores.uncertainty[name] = float(uncertainty(output.probabilities).mean())
        kept = scores.kept(config)
        if not kept:
            highest = max((score for score in scores.miou.values() if score == score), default=0.0)
            raise UserError(
                f"--min_miou={config.min_miou}: must be at most {highest:.3f}, the highest mIoU of a "
                "synthetic image. Decrease it or train the denoiser for longer."
            )
        write_split(target, SYNTHETIC, list(scores.miou))
        write_split(target, EXTENDED, [*(pair.name for pair in data.pairs), *kept])
        write_json(target / SCORES, scores.miou)
        write_json(target / UNCERTAINTIES, scores.uncertainty)
        write_json(target / SETTINGS, settings)

    replace_directory(folder, write)
    return scores


def _read_scores(folder: Path) -> Scores:
    """The scores of every synthetic image."""
    return Scores(_read_values(folder, SCORES), _read_values(folder, UNCERTAINTIES))


def _read_values(folder: Path, name: str) -> dict[str, float]:
    file = folder / name
    values = typed(dict[str, float | None], read_object(file, DELETE), file, remedy=DELETE)
    names = [name for name in read_lines(folder / SPLITS / f"{SYNTHETIC}.txt") if name]
    if list(values) != names:
        raise FileError.of(file, f"must have the {len(names)} names of {SYNTHETIC}.txt (got {len(values)})", DELETE)
    return {name: math.nan if value is None else value for name, value in values.items()}


def _require_equal(folder: Path, file: str, settings: Mapping[str, Any]) -> None:
    """Refuse a folder that was made with other settings, as other runs were trained on it."""
    difference = first_difference(jsonable(settings), read_object(folder / file, DELETE))
    if difference is not None:
        raise UserError(
            f"{folder} was made with other settings ({difference}). Give another --output, or delete it and everything "
            "made from it."
        )


def refuse_orphans(folder: Path, derived: Iterable[Path]) -> None:
    """Refuse (UserError) runs of a deleted dataset, which would be taken for runs of the next one in its place."""
    left = sorted(str(path) for path in derived if path.exists())
    if left and not folder.is_dir():
        raise UserError(
            f"{left[0]} was made from {folder}, which no longer exists. Delete {', '.join(left)}, or give another "
            "--output."
        )


def sample_images(
    denoiser: GenerationPipeline,
    layouts: Sequence[Tensor],
    numbers: Sequence[int],
    config: SynthesisConfig,
    autocast: torch.dtype | None,
) -> Tensor:
    """An image per layout (H, W), uint8 (B, 3, H, W); its noise is a function of the seed and its number."""
    height, width = layouts[0].shape
    denoiser.autocast_dtype = autocast
    output: Any = denoiser(
        layout=torch.stack(list(layouts)),
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        height=height,
        width=width,
        generator=generators_for(config.seed, numbers),
        output_type="np",
    )
    images = torch.from_numpy(cast(GenerationOutput, output).images)  # (B, H, W, 3) in [0, 1]
    return rearrange((images * 255).round().to(torch.uint8), "b h w c -> b c h w")
