"""Image conditioning by input channels: super-resolution, colorization, deblurring, or sampling its mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  (DiffusionPipeline looks for it in this module)
from einops import rearrange, reduce, repeat
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2.functional import gaussian_blur

from unetdiff.data.transforms import to_model_range
from unetdiff.diffusion.conditioning.base import Conditioner, Conditioning, Examples, Size
from unetdiff.errors import UserError
from unetdiff.segmentation.palette import as_rgb_array

Degradation = Literal["downscale", "grayscale", "blur", "none"]
ImageInput = Tensor | np.ndarray | Image.Image
RANGE_TOLERANCE = 1e-3  # numbers may exceed [0, 1] by this much, as after resizing


def channels_of(latent_channels: int | None) -> int:
    """Channels concatenated to the noisy image: the image's, or those of its latents, and a presence flag."""
    return (3 if latent_channels is None else latent_channels) + 1


class ImageConditioner(Conditioner):
    """An image to channels: its three, and a flag that is 0 for the null condition.

    In training the condition is the clean image after the degradation (SR3, Saharia et al. 2021, section 2); in use it
    is the user's image, resized to the result. For a denoiser of latents it is the image's latents (InstructPix2Pix,
    Brooks et al. 2023, section 3.2); the encoder is set from outside, as `latents_of`.

    Args:
        degradation: downscale (super-resolution), grayscale (colouring), blur, or none (for a denoiser of masks).
        strength: the factor of downscale, or the standard deviation of blur in pixels.
        latent_channels: channels of the latents; None: pixels.
    """

    pipeline_arg = "condition_image"
    batch_key = "image"

    @register_to_config
    def __init__(
        self, degradation: Degradation = "downscale", strength: float = 4.0, latent_channels: int | None = None
    ) -> None:
        super().__init__()
        self.degradation, self.strength = degradation, strength
        self.in_latents = latent_channels is not None
        self.channels = channels_of(latent_channels)
        self.latents_of: Callable[[Tensor], Tensor] | None = None
        self.blank = nn.Parameter(torch.zeros(self.channels))  # the null condition

    def forward(self, conditions: Tensor, size: Size) -> Conditioning:
        """Images (B, 4, H, W) at the size of the noisy ones, or as their latents (B, latent_channels + 1, *size).

        Raises:
            UserError: `latents_of` is not set for a denoiser of latents.
        """
        images = conditions.to(self.blank)
        if self.in_latents:
            if self.latents_of is None:
                raise UserError(
                    "condition_image: must be set with the model's autoencoder loaded. Load the model with "
                    "GenerationPipeline.from_pretrained."
                )
            flag = F.interpolate(images[:, -1:], size=size, mode="nearest-exact")
            images = torch.cat([self.latents_of(images[:, :3]).to(flag), flag], dim=1)
        blank = rearrange(self.blank, "c -> 1 c 1 1")
        return Conditioning(channels=torch.where(images[:, -1:] > 0, images, blank))

    def from_batch(self, batch: Mapping[str, Any]) -> Tensor:
        """A batch's "image", degraded, (B, 4, H, W)."""
        return _with_flag(self.degraded(to_model_range(batch["image"])))

    def degraded(self, images: Tensor) -> Tensor:
        """Clean images (B, 3, H, W) in [-1, 1] after the degradation, the same shape."""
        height, width = images.shape[-2:]
        if self.degradation == "none":
            return images
        if self.degradation == "grayscale":
            weights = images.new_tensor([0.299, 0.587, 0.114])  # ITU-R BT.601
            return repeat(torch.einsum("b c h w, c -> b h w", images, weights), "b h w -> b c h w", c=3)
        if self.degradation == "blur":
            return gaussian_blur(images, [2 * round(3 * self.strength) + 1] * 2, [self.strength] * 2)
        small = (max(1, round(height / self.strength)), max(1, round(width / self.strength)))
        coarse = F.interpolate(images, size=small, mode="area")
        return fitted(coarse, (height, width), -1)

    def null_condition(self, batch: int, size: Size) -> Tensor:
        return torch.zeros(batch, channels_of(None), *size)

    def examples(self, items: Sequence[Mapping[str, Any]]) -> Examples:
        """Images of the validation split, degraded."""
        images = torch.stack([item["image"] for item in items])
        return Examples([str(item["name"]) for item in items], self.from_batch({"image": images}))

    def visualize(self, conditions: Tensor) -> Tensor | None:
        return (conditions[:, :3].float().cpu() / 2 + 0.5).clamp(0, 1)

    def encode(self, conditions: ImageInput | Sequence[ImageInput], size: Size) -> Tensor:
        """Images (uint8, or floats in [0, 1]) of any sizes, resized to `size`, (B, 4, H, W).

        Raises:
            UserError: an array that is not an RGB image.
        """
        many = conditions if isinstance(conditions, Sequence) else [conditions]
        return torch.cat([_with_flag(fitted(unit_image(image) * 2 - 1, size, -1)) for image in many])


def unit_image(image: ImageInput) -> Tensor:
    """A PIL image, an array (H, W, 3) or a tensor ([B,] 3, H, W), uint8 or in [0, 1], as (B, 3, H, W) in [0, 1].

    Raises:
        UserError: an array of another shape.
    """
    if isinstance(image, Image.Image):
        image = np.array(as_rgb_array(image))
    if not isinstance(image, Tensor | np.ndarray) or (isinstance(image, np.ndarray) and image.dtype.kind not in "buif"):
        found = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise UserError(f"image: must be a PIL image, or an array or tensor of numbers (got {found}).")
    if not isinstance(image, Tensor):
        image = torch.from_numpy(np.ascontiguousarray(image))
        image = rearrange(image, "h w c -> c h w") if image.ndim == 3 else image
    pixels = image[None] if image.ndim == 3 else image
    if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.numel():
        raise UserError(
            f"image: must have shape (3, H, W) as a tensor, or (H, W, 3) as an array (got {tuple(image.shape)})."
        )
    return unit(pixels, "image")


def unit(values: Tensor, name: str) -> Tensor:
    """uint8, bool or numbers in [0, 1] as float32 in [0, 1], on the CPU.

    Raises:
        UserError: other numbers.
    """
    values = values.cpu()
    if values.dtype == torch.uint8:
        return values.float() / 255
    numbers = values.float()
    low, high = (float(edge) for edge in numbers.aminmax()) if values.numel() else (0.0, 0.0)
    if not (low >= -RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE):  # NaN too
        raise UserError(f"{name}: must be uint8, or numbers in [0, 1] (got {values.dtype} from {low:g} to {high:g}).")
    return numbers


def fitted(images: Tensor, size: Size, low: float = 0) -> Tensor:
    """Images (B, C, h, w) in [low, 1] resized to `size` (bicubic); unchanged if they have it."""
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size=size, mode="bicubic", antialias=True).clamp(low, 1)


def _with_flag(images: Tensor) -> Tensor:
    """With a fourth channel of ones: the presence flag."""
    flag = torch.ones_like(reduce(images, "b c h w -> b 1 h w", "max"))
    return torch.cat([images, flag], dim=1)
