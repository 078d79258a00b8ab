"""Codecs between images and x_0: pixels, the latents of a frozen autoencoder (Rombach et al. 2022), or masks."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from einops import rearrange
from safetensors import SafetensorError
from torch import Tensor

from unetdiff.diffusion.conditioning.base import Size
from unetdiff.diffusion.mask_codec import MaskCodec
from unetdiff.errors import FileError, UserError
from unetdiff.models import loading
from unetdiff.models.bounds import MAX_CHANNELS, MAX_LAYERS, MAX_LEVELS

LISTS = ("block_out_channels", "down_block_types", "up_block_types")
BATCH = 8  # images per pass of the autoencoder, whose full-resolution maps are large


class PixelCodec:
    """x_0 is the image itself; see `LatentCodec` for the methods."""

    channels, factor, bound = 3, 1, 1.0

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
        vae: diffusers' AutoencoderKL.
    """

    bound = None
    """x_0 lies in [-bound, bound]; None: unbounded."""

    def __init__(self, vae: AutoencoderKL) -> None:
        self.vae = vae.eval().requires_grad_(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> LatentCodec:
        return self

    @classmethod
    def from_pretrained(cls, path: str | Path, key: str = "latent.vae") -> LatentCodec:
        """A folder with an AutoencoderKL as diffusers saves it, or one that has it in vae/ (Stable Diffusion's).

        Args:
            path: the folder.
            key: named in messages.

        Raises:
            UserError: no such folder, another kind of model, a pickle, or weights that do not fit.
        """

        def config_error(why: str) -> UserError:
            return UserError(f"{key}={path}: must be a folder with a diffusers AutoencoderKL (it {why}).")

        folder = Path(path)
        if not (folder / "config.json").is_file() and (folder / "vae" / "config.json").is_file():
            folder = folder / "vae"
        if not (folder / "config.json").is_file():
            raise config_error("has no config.json" if folder.is_dir() else "does not exist")
        file = folder / loading.WEIGHTS
        try:
            config = loading.read_json(folder / loading.CONFIG)
            if config.get("_class_name") != "AutoencoderKL":
                raise config_error(f"has a {config.get('_class_name')}")
            header = loading.read_header(file)
            outline = loading.outline(lambda: _autoencoder(folder / loading.CONFIG, config), folder / loading.CONFIG)
            described, found = (
                sum(math.prod(entry.shape) for entry in named.values()) for named in (outline.state_dict(), header)
            )
            if described != found:  # names and shapes of attention changed between diffusers' versions
                raise FileError.of(folder, f"its config describes {described:,} weights, {file.name} holds {found:,}")
            loading.read_tensors(file)
        except FileError as error:
            raise UserError(f"{key}={path}: must be a folder with a diffusers AutoencoderKL. {error}") from None
        try:
            # without low_cpu_mem_usage, which would leave a missing tensor on the meta device
            vae, info = AutoencoderKL.from_pretrained(
                folder, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
            )
        except (OSError, RuntimeError, ValueError, TypeError, SafetensorError) as error:
            raise config_error(f"cannot be loaded: {str(error).strip().splitlines()[0]}") from error
        wrong = [*info["missing_keys"], *info["unexpected_keys"]]
        if wrong:
            raise config_error(f"has {len(wrong)} missing or unexpected tensors: {wrong[0]}, …")
        if vae.config.in_channels != 3:
            raise config_error(f"takes images of {vae.config.in_channels} channels")
        return cls(vae)

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return int(self.vae.config["latent_channels"])

    @property
    def factor(self) -> int:
        """Downsampling factor: pixels along one side of a latent cell."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

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

    @torch.no_grad()
    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Pixels in [-1, 1], (B, 3, H, W), as latents (B, C, H / factor, W / factor), float32.

        Args:
            pixels: on the device that the autoencoder is moved to.
            noise: standard normal, of the latents' shape: they are sampled from the posterior, as in training (Rombach
                et al. 2022, appendix G); None: its mean.

        Raises:
            UserError: a size that is not a multiple of the factor.
        """
        self.grid((pixels.shape[-2], pixels.shape[-1]), "data.size")
        vae = self._ready(pixels.device)
        with _precise(pixels.device.type):
            parts = [vae.encode(part.to(vae.dtype)).latent_dist.parameters.float() for part in pixels.split(BATCH)]
        posterior = DiagonalGaussianDistribution(torch.cat(parts))
        shift, scale = self._moments(pixels.device)
        latents = posterior.mean if noise is None else posterior.mean + posterior.std * noise.to(posterior.mean)
        return (latents - shift) * scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) as pixels (B, 3, h factor, w factor), about in [-1, 1], float32."""
        vae = self._ready(latents.device)
        shift, scale = self._moments(latents.device)
        raw = latents.float() / scale + shift
        with _precise(latents.device.type):
            return torch.cat([vae.decode(part.to(vae.dtype)).sample.float() for part in raw.split(BATCH)])

    def _moments(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Shift and scale, (C or 1, 1, 1): latents are (raw - shift) · scale."""
        config = self.vae.config
        shift = torch.tensor(config["latents_mean"] or [config["shift_factor"] or 0.0], device=device)
        std = torch.tensor(config["latents_std"] or [1.0], device=device)
        return rearrange(shift, "c -> c 1 1"), rearrange(config["scaling_factor"] / std, "c -> c 1 1")

    def _ready(self, device: torch.device) -> AutoencoderKL:
        """The autoencoder on the images' device; in float32 where it overflows in float16 (SDXL's)."""
        vae: Any = self.vae
        if not hasattr(vae, "_hf_hook"):  # else accelerate moves it (offloading)
            vae.to(device)
        if vae.dtype == torch.float16 and vae.config["force_upcast"]:
            vae.to(torch.float32)
        return vae


Codec = PixelCodec | LatentCodec | MaskCodec


def _autoencoder(path: Path, config: dict[str, Any]) -> AutoencoderKL:
    """An autoencoder of a config whose numbers of layers and levels are bounded, as they are built one by one."""
    for key, value in config.items():
        numbers = value if isinstance(value, list) else [value]
        most = MAX_LAYERS if "layers" in key else MAX_CHANNELS
        if len(numbers) > MAX_CHANNELS or (key in LISTS and not 1 <= len(numbers) <= MAX_LEVELS):
            raise FileError.of(path, f"{key}: must be 1 to {MAX_LEVELS} values (got {len(numbers)})")
        if any(isinstance(number, int) and not 0 <= number <= most for number in numbers):
            raise FileError.of(path, f"{key}={value!r:.80}: must be in [0, {most}]")
    return AutoencoderKL.from_config(config)


def make_codec(vae: AutoencoderKL | None, masks: dict[str, Any] | None = None) -> Codec:
    """Latents of an autoencoder, or masks with `MaskCodec.settings`; neither: pixels."""
    if masks is not None:
        return MaskCodec(**masks)
    return PixelCodec() if vae is None else LatentCodec(vae)


def _precise(device_type: str) -> AbstractContextManager[Any]:
    """The surrounding autocast, disabled for float16, where autoencoders overflow."""
    half = torch.is_autocast_enabled(device_type) and torch.get_autocast_dtype(device_type) == torch.float16
    return torch.autocast(device_type, enabled=False) if half else nullcontext()
