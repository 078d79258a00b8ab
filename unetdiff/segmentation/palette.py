"""Masks as images: colours, blends, palette PNG files and error maps."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unetdiff.data.decoding import rgb
from unetdiff.data.transforms import IGNORE_INDEX, ignore_mask
from unetdiff.errors import UserError

__all__ = [
    "IGNORE_COLOR",
    "ERROR_COLOR",
    "as_mask",
    "as_palette",
    "as_rgb_array",
    "colorize",
    "error_map",
    "overlay",
    "palette_image",
    "save_mask",
]

ROWS = 256  # of an image, blended at once
IGNORE_COLOR = (224, 224, 192)  # VOC's cream
ERROR_COLOR = (214, 30, 120)  # no class has it, in VOC's palette or that of scenes
CORRECT_COLOR = (236, 238, 240)

Mask = Tensor | np.ndarray
ImageInput = Tensor | np.ndarray | Image.Image
Palette = np.ndarray | Sequence[Sequence[int]]


def as_palette(palette: Palette, num_classes: int | None = None) -> np.ndarray:
    """Checked colours, uint8 (classes, 3); UserError where they are not that or fewer than `num_classes`."""
    color = np.asarray(palette)
    if color.ndim != 2 or color.shape[1] != 3 or color.min(initial=0) < 0 or color.max(initial=0) > 255:
        raise UserError(f"palette of shape {color.shape}: give a row [red, green, blue] of 0..255 for each class")
    if len(color) > IGNORE_INDEX:
        raise UserError(f"palette of {len(color)} colours: a palette PNG holds at most {IGNORE_INDEX} classes and void")
    if num_classes is not None and len(color) < num_classes:
        raise UserError(f"palette has {len(color)} colours for {num_classes} classes; give one for each")
    return color.astype(np.uint8)


def as_mask(mask: Mask) -> np.ndarray:
    """A mask (H, W) of class indices as uint8, from a tensor on any device or an array."""
    array = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if array.ndim != 2:
        raise UserError(f"mask of shape {array.shape}: give class indices (H, W)")
    if array.min(initial=0) < 0 or array.max(initial=0) > IGNORE_INDEX:
        raise UserError(
            f"mask holds values {array.min()}..{array.max()}; class indices are 0..254, void is {IGNORE_INDEX}"
        )
    return array.astype(np.uint8)


def as_rgb_array(image: ImageInput) -> np.ndarray:
    """An image as uint8 (H, W, 3), from PIL, an array (H, W, 3), or a uint8 tensor (3, H, W)."""
    if isinstance(image, Image.Image):
        try:
            return np.asarray(rgb(image))
        except ValueError as error:
            raise UserError(f"image of {error}") from None
    if isinstance(image, Tensor):
        if image.ndim == 3 and image.shape[0] == 3 and image.dtype == torch.uint8:
            return image.detach().cpu().permute(1, 2, 0).contiguous().numpy()
        raise UserError(f"image tensor {tuple(image.shape)} of {image.dtype}: give uint8 (3, H, W)")
    if image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8:
        return image
    raise UserError(f"image array {image.shape} of {image.dtype}: give uint8 (H, W, 3)")


def _table(palette: Palette, ignore_index: int) -> np.ndarray:
    """256 colours: the classes', void's at `ignore_index` and wherever there is no class."""
    color = as_palette(palette)
    table = np.tile(np.array(IGNORE_COLOR, dtype=np.uint8), (256, 1))
    table[: len(color)] = color
    if 0 <= ignore_index < 256:
        table[ignore_index] = IGNORE_COLOR
    return table


def colorize(mask: Mask, palette: Palette, ignore_index: int = IGNORE_INDEX) -> np.ndarray:
    """Mask (H, W) -> its colours, uint8 (H, W, 3)."""
    return _table(palette, ignore_index)[as_mask(mask)]


def palette_image(mask: Mask, palette: Palette, ignore_index: int = IGNORE_INDEX) -> Image.Image:
    """Mask (H, W) -> PIL image of mode "P", its pixels the class indices themselves, as VOC stores them."""
    image = Image.fromarray(as_mask(mask))
    image.putpalette(_table(palette, ignore_index).reshape(-1).tolist())
    return image


def save_mask(mask: Mask, path: str | Path, palette: Palette, ignore_index: int = IGNORE_INDEX) -> None:
    """Write a mask (H, W) as a palette PNG: opened as it is (no convert), its pixels are class indices."""
    palette_image(mask, palette, ignore_index).save(path, format="PNG")


def overlay(
    image: ImageInput,
    mask: Mask,
    palette: Palette,
    alpha: float = 0.55,
    ignore_index: int = IGNORE_INDEX,
    transparent: Collection[int] = (),
) -> np.ndarray:
    """The image with the mask's colours laid over it, uint8 (H, W, 3).

    alpha is the mask's share, 0 to 1; void and the `transparent` classes (say, background) show the bare
    image.
    """
    base, index = as_rgb_array(image), as_mask(mask)
    if base.shape[:2] != index.shape:
        raise UserError(f"image {base.shape[:2]} and mask {index.shape} differ in size; they must agree to overlay")
    colors = alpha * _table(palette, ignore_index)  # (256, 3)
    bare = np.isin(np.arange(256), [ignore_index, *transparent])
    result = np.empty_like(base)
    for top in range(0, len(base), ROWS):  # floats are held of these rows only
        rows = slice(top, top + ROWS)
        blend = ((1 - alpha) * base[rows] + colors[index[rows]]).round().astype(np.uint8)
        result[rows] = np.where(bare[index[rows]][..., None], base[rows], blend)
    return result


def error_map(
    prediction: Mask, truth: Mask, ignore_index: int = IGNORE_INDEX, image: ImageInput | None = None
) -> np.ndarray:
    """Wrong pixels magenta, void cream, the others pale (or the image in faded grey): uint8 (H, W, 3)."""
    guess, index = as_mask(prediction), as_mask(truth)
    if guess.shape != index.shape:
        raise UserError(f"prediction {guess.shape} and truth {index.shape} differ in size")
    result = np.tile(np.array(CORRECT_COLOR, dtype=np.uint8), (*index.shape, 1))
    if image is not None:
        grey = as_rgb_array(image).mean(axis=2, keepdims=True)
        if grey.shape[:2] != index.shape:
            raise UserError(f"image {grey.shape[:2]} and truth {index.shape} differ in size")
        result[:] = (130 + grey * (110 / 255)).astype(np.uint8)
    void = ignore_mask(index, ignore_index)
    result[void] = IGNORE_COLOR
    result[(guess != index) & ~void] = ERROR_COLOR
    return result
