"""Images as data URIs, for self-contained pages."""

from __future__ import annotations

import base64
import io

import numpy as np
from einops import rearrange
from PIL import Image
from torch import Tensor

SMALL = 96
"""Images up to this side are shown without smoothing, in pixels."""
LARGEST = 480
"""Larger images are scaled down to this longer side, in pixels."""


def as_array(image: Tensor | np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) of a uint8 tensor (C, H, W), a float tensor (C, H, W) in [0, 1], or an array (H, W, C).

    Of more than three channels the first three are shown, of two the second twice, and one is gray.
    """
    if isinstance(image, Tensor):
        array = rearrange(image.detach().cpu(), "c h w -> h w c").numpy()
    else:
        array = np.asarray(image)
    if array.dtype != np.uint8:
        array = (array.astype(np.float32) * 255).round().clip(0, 255).astype(np.uint8)
    if array.shape[-1] == 3:
        return array
    return array[..., [min(channel, array.shape[-1] - 1) for channel in range(3)]]


def data_uri(source: Tensor | np.ndarray, photo: bool = True, largest: int = LARGEST) -> str:
    """An image as the value of an `src` attribute: PNG for small ones and drawings, JPEG for large photos.

    Args:
        source: see `as_array`.
        photo: False for masks and drawings, which keep their exact colors at any size.
        largest: maximal longer side in pixels.
    """
    image = shrunk(Image.fromarray(as_array(source)), photo, largest)
    buffer = io.BytesIO()
    if photo and max(image.size) > SMALL:
        image.save(buffer, format="JPEG", quality=88)
        kind = "jpeg"
    else:
        image.save(buffer, format="PNG", optimize=True)
        kind = "png"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def shrunk(image: Image.Image, photo: bool = True, largest: int = LARGEST) -> Image.Image:
    """The image, scaled down to a longer side of at most `largest` pixels; see `data_uri`."""
    if max(image.size) <= largest:
        return image
    scale = largest / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS if photo else Image.Resampling.NEAREST)


def is_small(image: Tensor | np.ndarray) -> bool:
    """True for an image shown without smoothing (`image-rendering: pixelated`)."""
    height, width = as_array(image).shape[:2]
    return max(height, width) <= SMALL
