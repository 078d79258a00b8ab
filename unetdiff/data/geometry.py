"""Crops, rotations and elastic deformations of an image and its mask (transforms.v2 on uint8 tensors)."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as nnF
from torchvision.transforms.v2 import functional as F

IGNORE_INDEX = 255
"""Mask value of pixels that count in no loss and no metric; padding of masks."""

ELASTIC_GRID = 3
"""Points of the grid of elastic deformation along each side (Ronneberger et al. 2015, section 3.1)."""


def reflected(index: Tensor, length: int) -> Tensor:
    """Indices beyond an axis reflected into 0..length-1: ..., 2, 1, 0, 1, ..., n-2, n-1, n-2, ..., 1, 0, 1, ..."""
    period = max(1, 2 * (length - 1))
    index = index % period
    return torch.minimum(index, period - index)


def rotate(image: Tensor, mask: Tensor | None, turns_freely: bool) -> tuple[Tensor, Tensor | None]:
    """Both rotated by a random multiple of 90 degrees, or of 180 where that would change the shape of the result."""
    turns = int(torch.randint(4, ()))
    if not turns_freely and image.shape[-2] != image.shape[-1]:
        turns -= turns % 2
    return image.rot90(turns, (-2, -1)), None if mask is None else mask.rot90(turns, (-2, -1))


def elastic_displacement(size: tuple[int, ...], deviation: float, grid: int = ELASTIC_GRID) -> Tensor:
    """A smooth random displacement of every pixel, in pixels, (H, W, 2) with x first (Ronneberger et al. 2015).

    Displacements on a grid of `grid` x `grid` points from corner to corner are drawn from a Gaussian of this standard
    deviation; between them, bicubic interpolation. Drawn from the global generator.
    """
    coarse = torch.randn(1, 2, grid, grid) * deviation
    fine = nnF.interpolate(coarse, (size[0], size[1]), mode="bicubic", align_corners=True)
    return rearrange(fine, "1 xy h w -> h w xy")


def elastic(image: Tensor, mask: Tensor | None, displacement: Tensor) -> tuple[Tensor, Tensor | None]:
    """An image uint8 (C, H, W) and a mask (H, W) whose pixel p takes the value at p + displacement(p).

    Bilinear for the image, nearest for the mask. Beyond the border both are mirrored, so that no pixel is invented and
    none is ignored. displacement: (H, W, 2) in pixels, x first.
    """
    height, width = image.shape[-2:]
    reach = int(displacement.abs().max().ceil()) + 1
    pads = [min(reach, width - 1), min(reach, height - 1)]  # of x and y: mirroring reaches no further
    sides = [pads[0], pads[1], pads[0], pads[1]]
    moved = nnF.pad(rearrange(displacement, "h w xy -> xy h w"), [pads[0], pads[0], pads[1], pads[1]])
    units = torch.tensor([2.0 / (width + 2 * pads[0]), 2.0 / (height + 2 * pads[1])])  # of [-1, 1] to a pixel
    field = rearrange(moved, "xy h w -> 1 h w xy") * units
    window = (pads[1], pads[0], height, width)
    warped = F.elastic_image(F.pad_image(image, sides, padding_mode="reflect"), field)
    image = F.crop_image(warped, *window)
    if mask is not None:
        padded = F.pad_mask(mask[None], sides, padding_mode="reflect")
        mask = F.crop_mask(F.elastic_mask(padded, field, fill=IGNORE_INDEX), *window)[0]
    return image, mask


def random_crop(
    image: Tensor, mask: Tensor | None, size: tuple[int, int], mirrored: bool = False
) -> tuple[Tensor, Tensor | None]:
    """A random window of `size` within the image, or around it where the image is smaller."""
    offsets, padding = [], []
    for length, crop in zip(image.shape[-2:], size, strict=True):
        offset = int(torch.randint(abs(length - crop) + 1, ()))
        before = offset if length < crop else 0
        offsets.append(offset if length > crop else 0)
        padding.append((before, max(0, crop - length) - before))
    (top, bottom), (left, right) = padding
    if top or bottom or left or right:
        sides = [left, top, right, bottom]
        if mirrored:
            rows, columns = (
                reflected(torch.arange(-before, length + after), length)
                for before, after, length in ((top, bottom, image.shape[-2]), (left, right, image.shape[-1]))
            )
            image = image[:, rows[:, None], columns]
            mask = None if mask is None else mask[rows[:, None], columns]
        else:
            mean = image.to(torch.float32).mean(dim=(-2, -1)).round().tolist()
            image = F.pad_image(image, sides, fill=mean)
            mask = None if mask is None else F.pad_mask(mask[None], sides, fill=IGNORE_INDEX)[0]
    image = F.crop_image(image, *offsets, *size)
    return image, None if mask is None else F.crop_mask(mask[None], *offsets, *size)[0]
