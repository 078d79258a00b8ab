"""Codecs between images and x_0: pixels, the latents of a frozen autoencoder (Rombach et al. 2022), or masks."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from einops import rearrange
from torch import Tensor

from unetdiff.diffusion.autoencoders import Autoencoder, factor_of, load_autoencoder
from unetdiff.diffusion.conditioning.base import Size
from unetdiff.diffusion.mask_codec import MaskCodec
from unetdiff.errors import UserError

BATCH = 8  # images per pass of the autoencoder, whose full-resolution maps are large
CPU_BATCH = 2  # 1.2x faster on CPUs, whose caches hold the maps of few images


class PixelCodec:
    """x_0 is the image itself; see `LatentCodec` for the methods."""

    factor, bound = 1, 1.0

    def __init__(self, channels: int = 3) -> None:
        self.channels = channels

    def grid(self, size: Size, key: str) -> Size:
        """The size itself."""
        return size

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """The pixels themselves, (B, 3, H, W)."""
        return pixels

    def decode(self, pixels: Tensor) -> Tensor:
        """The pixels themselves, (B, 3, H, W)."""
        return pixels


class LatentCodec:
    """x_0 is the image's latents by a frozen autoencoder, shifted and scaled to about unit variance by its config.

    Not part of a task's weights: a copy of a task (for its EMA) shares it, and checkpoints leave it out.

    Args:
        vae: diffusers' AutoencoderKL or AutoencoderTiny.
    """

    bound = None
    """x_0 lies in [-bound, bound]; None: unbounded."""

    def __init__(self, vae: Autoencoder) -> None:
        self.vae = vae.eval().requires_grad_(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> LatentCodec:
        return self

    @classmethod
    def from_pretrained(cls, path: str | Path, key: str = "latent.vae") -> LatentCodec:
        """A folder with an AutoencoderKL or AutoencoderTiny as diffusers saves it, or one that has it in vae/.

        Args:
            path: the folder.
            key: named in messages.

        Raises:
            UserError: no such folder, another kind of model, a pickle, or weights that do not fit.
        """

        return cls(load_autoencoder(path, key))

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return int(self.vae.config["latent_channels"])

    @property
    def factor(self) -> int:
        """Downsampling factor: pixels along one side of a latent cell."""
        return factor_of(self.vae)

    def grid(self, size: Size, key: str) -> Size:
        """Height and width of the latents of an image of `size`.

        Raises:
            UserError: naming `key`: a size that is not a multiple of the factor.
        """
        if any(length % self.factor for length in size):
            nearest = [max(1, round(length / self.factor)) * self.factor for length in size]
            raise UserError(
                f"{key}={list(size)}: must be multiples of {self.factor}, the autoencoder's downsampling factor. Use "
                f"{nearest}."
            )
        return size[0] // self.factor, size[1] // self.factor

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Pixels in [-1, 1], (B, 3, H, W), as latents (B, C, H / factor, W / factor), float32.

        Args:
            pixels: on the device that the autoencoder is moved to.
            noise: standard normal, of the latents' shape: they are sampled from the posterior, as in training (Rombach
                et al. 2022, appendix G); None: its mean. AutoencoderTiny has no posterior, and its noise is not used.

        Raises:
            UserError: a size that is not a multiple of the factor.
        """
        return self.sample(self.encode_moments(pixels), noise)

    @torch.no_grad()
    def encode_moments(self, pixels: Tensor) -> Tensor:
        """What `sample` samples from: mean and deviation of the posterior of the latents, (B, 2 C, h, w), float32.

        Of AutoencoderTiny, the latents themselves, (B, C, h, w). Errors as of `encode`.
        """
        self.grid((pixels.shape[-2], pixels.shape[-1]), "data.size")
        self._ready(pixels.device)
        parts = []
        for part in pixels.split(_batch(pixels)):
            with _precise(pixels.device.type):
                # channels-last: 1.4x faster on CPUs
                parts.append(self._part_moments(part.to(self.vae.dtype, memory_format=torch.channels_last)))
        return torch.cat(parts).contiguous()

    def _part_moments(self, pixels: Tensor) -> Tensor:
        """`encode_moments` in one pass of the autoencoder as it is."""
        shift, scale = self._moments(pixels.device)
        code = self.vae.encode(pixels)
        if isinstance(self.vae, AutoencoderTiny):
            return (code.latents.float() - shift) * scale
        posterior = DiagonalGaussianDistribution(code.latent_dist.parameters.float())
        return torch.cat([(posterior.mean - shift) * scale, posterior.std * scale], dim=1)

    def mean_latents(self, pixels: Tensor) -> Tensor:
        """`encode` in one pass, without checks: what an export traces. The autoencoder is on the pixels' device."""
        return self.sample(self._part_moments(pixels))

    def sample(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents (B, C, h, w), float32, of the moments of `encode_moments`; noise as of `encode`."""
        moments = moments.float()
        if not self.has_posterior:
            return moments
        mean, std = moments.chunk(2, dim=1)  # (B, C, h, w) each
        return mean if noise is None else mean + std * noise.to(mean)

    @property
    def has_posterior(self) -> bool:
        """Whether latents are sampled: false for AutoencoderTiny."""
        return not isinstance(self.vae, AutoencoderTiny)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) as pixels (B, 3, h factor, w factor), about in [-1, 1], float32."""
        vae = self._ready(latents.device)
        shift, scale = self._moments(latents.device)
        raw = latents.float() / scale + shift
        with _precise(latents.device.type):
            parts = raw.to(vae.dtype, memory_format=torch.channels_last).split(_batch(raw))
            return torch.cat([vae.decode(part).sample.float() for part in parts]).contiguous()

    def _moments(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Shift and scale, (C or 1, 1, 1): latents are (raw - shift) · scale."""
        config = self.vae.config
        shift = torch.tensor(config.get("latents_mean") or [config["shift_factor"] or 0.0], device=device)
        std = torch.tensor(config.get("latents_std") or [1.0], device=device)
        return rearrange(shift, "c -> c 1 1"), rearrange(config["scaling_factor"] / std, "c -> c 1 1")

    def _ready(self, device: torch.device) -> Autoencoder:
        """The autoencoder on the images' device; in float32 where it overflows in float16 (SDXL's)."""
        vae: Any = self.vae
        if not hasattr(vae, "_hf_hook"):  # else accelerate moves it (offloading)
            vae.to(device)
        if vae.dtype == torch.float16 and vae.config["force_upcast"]:
            vae.to(torch.float32)
        return vae


Codec = PixelCodec | LatentCodec | MaskCodec


def make_codec(vae: Autoencoder | None, masks: dict[str, Any] | None = None) -> Codec:
    """Latents of an autoencoder, or masks with `MaskCodec.settings`; neither: pixels."""
    if masks is not None:
        return MaskCodec(**masks)
    return PixelCodec() if vae is None else LatentCodec(vae)


def _batch(images: Tensor) -> int:
    return CPU_BATCH if images.device.type == "cpu" else BATCH


def _precise(device_type: str) -> AbstractContextManager[Any]:
    """The surrounding autocast, disabled for float16, where autoencoders overflow."""
    half = torch.is_autocast_enabled(device_type) and torch.get_autocast_dtype(device_type) == torch.float16
    return torch.autocast(device_type, enabled=False) if half else nullcontext()
