"""What an inpainting network sees next to x_t: a mask and the masked image's latents (Rombach et al. 2022).

In training masks are random: a few boxes, a few brush strokes, as of Suvorov et al. 2022 ("LaMa"), or all of the image,
which keeps the network able to draw from a prompt alone.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from unetdiff.diffusion.codecs import Codec
from unetdiff.diffusion.conditioning.base import Conditioner, Conditioning, Size
from unetdiff.diffusion.conditioning.prompt import PromptConditioner
from unetdiff.diffusion.editing import KnownImage

STROKES, SEGMENTS, BOXES = 5, 5, 3
"""At most, of one mask."""
_PER_STROKE, _PER_SEGMENT, _PER_BOX, _HEAD = 3, 3, 4, 3
NUMBERS = _HEAD + STROKES * (_PER_STROKE + SEGMENTS * _PER_SEGMENT) + BOXES * _PER_BOX
"""Uniform random numbers of one mask."""
STROKE_LENGTH, STROKE_WIDTH, BOX_SIDE = (0.04, 0.8), (0.02, 0.4), (0.12, 0.6)
"""Least and largest, as fractions of the shorter side: LaMa's 10 to 210, 5 to 105 and 30 to 150 pixels of 256."""
ANGLES = 4
"""Strokes turn by one of so many angles, a radian apart."""


def mask_numbers(count: int, generator: torch.Generator) -> Tensor:
    """The random numbers of masks, (count, NUMBERS) in [0, 1), on the generator's device."""
    return torch.rand(count, NUMBERS, generator=generator, device=generator.device)


def random_masks(numbers: Tensor, size: Size, full_fraction: float = 0.0) -> Tensor:
    """Masks of these numbers (B, NUMBERS), 1 where the image is repainted, (B, 1, *size) float32.

    Args:
        numbers: of `mask_numbers`.
        size: height and width in pixels.
        full_fraction: of the masks that cover all of the image; the others are boxes or strokes, half of them each.
    """
    strokes = numbers[:, _HEAD : NUMBERS - BOXES * _PER_BOX]
    is_full, is_box = numbers[:, 0] < full_fraction, numbers[:, 1] < 0.5
    y, x = (torch.arange(length, device=numbers.device) + 0.5 for length in size)
    grid = rearrange(y, "h -> 1 h 1"), rearrange(x, "w -> 1 1 w")
    boxes = _boxes(numbers[:, NUMBERS - BOXES * _PER_BOX :], numbers[:, 2], size, grid)
    drawn = _strokes(rearrange(strokes, "b (s n) -> b s n", s=STROKES), numbers[:, 2], size, grid)
    is_full, is_box = (rearrange(one, "b -> b 1 1") for one in (is_full, is_box))
    return rearrange(is_full | torch.where(is_box, boxes, drawn), "b h w -> b 1 h w").float()


def _boxes(numbers: Tensor, count: Tensor, size: Size, grid: tuple[Tensor, Tensor]) -> Tensor:
    """One to three boxes, bool (B, H, W)."""
    height, width = size
    sides = _between(numbers.unflatten(1, (BOXES, _PER_BOX)), BOX_SIDE, min(size))  # (B, 3, 4), of which two are sides
    masks = torch.zeros(len(numbers), height, width, dtype=torch.bool, device=numbers.device)
    for box in range(BOXES):
        top, left = (
            numbers[:, box * _PER_BOX + 2 + axis] * (length - sides[:, box, axis]) for axis, length in enumerate(size)
        )
        inside = [
            (place >= _column(low)) & (place < _column(low + sides[:, box, axis]))
            for axis, (place, low) in enumerate(zip(grid, (top, left), strict=True))
        ]
        masks |= inside[0] & inside[1] & _column(count * BOXES >= box)
    return masks


def _strokes(numbers: Tensor, count: Tensor, size: Size, grid: tuple[Tensor, Tensor]) -> Tensor:
    """One to five strokes, chains of one to five segments with round ends that turn back and forth, bool (B, H, W)."""
    (height, width), side = size, min(size)
    masks = torch.zeros(len(numbers), height, width, dtype=torch.bool, device=numbers.device)
    for stroke in range(STROKES):
        own = numbers[:, stroke]  # (B, _PER_STROKE + SEGMENTS * _PER_SEGMENT)
        start = own[:, 0] * height, own[:, 1] * width
        for segment in range(SEGMENTS):
            turn, length, thickness = own[:, _PER_STROKE + segment * _PER_SEGMENT :][:, :_PER_SEGMENT].unbind(1)
            angle = (turn * ANGLES).floor() * (-1) ** stroke
            length, radius = _between(length, STROKE_LENGTH, side), _between(thickness, STROKE_WIDTH, side) / 2
            end = tuple(
                (at + length * direction).clamp(0, most)
                for at, direction, most in zip(start, (angle.cos(), angle.sin()), size, strict=True)
            )
            is_drawn = (count * STROKES >= stroke) & (own[:, 2] * SEGMENTS >= segment)
            masks |= (_distance(start, end, grid) <= _column(radius)) & _column(is_drawn)
            start = end[0], end[1]
    return masks


def _distance(start: tuple[Tensor, ...], end: tuple[Tensor, ...], grid: tuple[Tensor, Tensor]) -> Tensor:
    """The distance of every pixel from a segment, (B, H, W); its ends are (y, x), (B,) each."""
    along = [_column(b - a) for a, b in zip(start, end, strict=True)]
    away = [place - _column(a) for place, a in zip(grid, start, strict=True)]
    length = (along[0] ** 2 + along[1] ** 2).clamp(min=1e-6)
    nearest = ((along[0] * away[0] + along[1] * away[1]) / length).clamp(0, 1)
    return torch.hypot(away[0] - nearest * along[0], away[1] - nearest * along[1])


def _between(numbers: Tensor, bounds: tuple[float, float], side: int) -> Tensor:
    """Numbers in [0, 1) as lengths in pixels between two fractions of a side."""
    return (bounds[0] + numbers * (bounds[1] - bounds[0])) * side


def _column(values: Tensor) -> Tensor:
    return rearrange(values, "b -> b 1 1")


def inpainting_channels(mask: Tensor, pixels: Tensor, codec: Codec, noise: Tensor | None = None) -> Tensor:
    """The mask and the masked image's latents at the size of the latents, (B, 1 + C, h, w).

    As `StableDiffusionInpaintPipeline`: the image is gray where it is repainted, and the mask is that of each cell's
    upper left pixel.

    Args:
        mask: 1 where the image is repainted, (B, 1, H, W).
        pixels: in [-1, 1], (B, 3, H, W).
        codec: of the denoiser.
        noise: of `codec.encode`.
    """
    latents = codec.encode(pixels * (1 - mask).to(pixels), noise)
    return torch.cat([F.interpolate(mask.to(latents), latents.shape[-2:]), latents], dim=1)


def has_mask_input(conditioner: Conditioner | None) -> bool:
    """Whether a network with this conditioner sees a mask and the masked image's latents."""
    return isinstance(conditioner, PromptConditioner) and conditioner.channels > 0


def with_mask(
    conditioning: Conditioning,
    conditioner: Conditioner | None,
    size: Size,
    codec: Codec,
    known: KnownImage | None = None,
) -> Conditioning:
    """A conditioning with `inpainting_channels`; unchanged unless the network sees them.

    Args:
        conditioning: of the conditioner, with tokens.
        conditioner: of the network.
        size: of the latents.
        codec: of the denoiser.
        known: the image and its mask; None, or without a mask: all of it is painted.
    """
    if not has_mask_input(conditioner) or conditioning.tokens is None:
        return conditioning
    batch, tokens = len(conditioning.tokens), conditioning.tokens
    if known is not None and known.mask is not None:
        channels = inpainting_channels(known.mask, known.pixels, codec)
    else:
        sides = size[0] * codec.factor, size[1] * codec.factor
        gray = tokens.new_zeros(1, 3, *sides, dtype=torch.float32)
        channels = inpainting_channels(torch.ones_like(gray[:, :1]), gray, codec).expand(batch, -1, -1, -1)
    return replace(conditioning, channels=channels)
