"""Pixels of another range than [-1, 1] are refused: a network segments them, badly and without a word."""

from __future__ import annotations

import torch
from torch import Tensor

from unetdiff.errors import UserError

MAX_PIXEL = 32.0
"""Largest value of a network's input: noised pixels and latents stay far below it, images of 0 to 255 do not."""
REMEDY = "Give pixels / 127.5 - 1, or call SegmentationPipeline with images."


def require_pixels(pixels: Tensor) -> None:
    """Refuse integers, and images of 0 to 255 as floats.

    Nothing is read of a tensor without values (tracing), nor of one on a GPU in training, which would wait for it.

    Raises:
        UserError: says how pixels of 0 to 255 become those of [-1, 1].
    """
    if not pixels.is_floating_point():
        raise UserError(f"pixels: must be floats in [-1, 1] (got {pixels.dtype}). {REMEDY}")
    if torch.compiler.is_compiling() or pixels.is_meta or not pixels.numel():
        return
    if pixels.device.type != "cpu" and torch.is_grad_enabled():
        return
    largest = float(pixels.detach().amax())
    if largest > MAX_PIXEL:
        raise UserError(f"pixels: must be in [-1, 1] (got values up to {largest:.4g}). {REMEDY}")
