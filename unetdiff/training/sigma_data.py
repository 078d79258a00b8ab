"""`diffusion.noise.edm.sigma_data: null`: the standard deviation of x0, measured on training images."""

from __future__ import annotations

import torch
from torch import Tensor

from unetdiff.data.base import ImageDataset
from unetdiff.data.sampling import evenly_spaced_indices
from unetdiff.data.transforms import to_model_range
from unetdiff.diffusion.codecs import Codec, LatentCodec
from unetdiff.diffusion.mask_codec import MaskCodec

NUM_IMAGES, NUM_LATENTS = 256, 32
"""Images that are measured; fewer where an autoencoder encodes them."""


@torch.no_grad()
def measure_sigma_data(data: ImageDataset, codec: Codec) -> float:
    """The standard deviation of all numbers of x0 of evenly spaced images, about their common mean; 3 digits.

    Args:
        data: the training images.
        codec: maps images, or masks, to x0.
    """
    count = NUM_LATENTS if isinstance(codec, LatentCodec) else NUM_IMAGES
    numbers, total, squares = 0, 0.0, 0.0
    for index in evenly_spaced_indices(len(data), count):
        x0 = _x0(data, index, codec).double()
        numbers, total, squares = numbers + x0.numel(), total + float(x0.sum()), squares + float(x0.square().sum())
    mean = total / numbers
    deviation = max(squares / numbers - mean**2, 0.0) ** 0.5
    return float(f"{max(deviation, 1e-3):.3g}")  # images of a single value have none


def _x0(data: ImageDataset, index: int, codec: Codec) -> Tensor:
    if isinstance(codec, MaskCodec):
        return codec.encode_masks(data[index]["mask"][None])
    return codec.encode(to_model_range(data[index]["image"])[None])
