"""What is noised: pixels, the latents that a frozen autoencoder makes of them (Rombach et al. 2022), or masks."""

from __future__ import annotations

import json
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
from unetdiff.errors import UserError
from unetdiff.models.loading import PICKLES, conversion

AT_ONCE = 8  # images that the autoencoder sees together: its finest maps are the largest of all


class PixelCodec:
    """The space of a denoiser of pixels, which is that of the images: see `LatentCodec` for what each method does."""

    channels, factor, bound = 3, 1, 1.0

    def grid(self, size: Size, key: str) -> Size:
        """The size itself."""
        return size

    def encode(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The pixels themselves, (B, 3, H, W)."""
        return pixels

    def decode(self, pixels: Tensor) -> Tensor:
        """The pixels themselves, (B, 3, H, W)."""
        return pixels


class LatentCodec:
    """The latent space of a frozen autoencoder, shifted and scaled to about unit variance as its config says.

    No part of a task's weights: copying a task (for its average) shares it, and checkpoints do not hold it.

    Args:
        vae: diffusers' AutoencoderKL.
    """

    bound = None
    """What is noised lies in [-bound, bound]; None: anywhere."""

    def __init__(self, vae: AutoencoderKL) -> None:
        self.vae = vae.eval().requires_grad_(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> LatentCodec:
        return self

    @classmethod
    def from_pretrained(cls, path: str | Path, key: str = "diffusion.latent.vae") -> LatentCodec:
        """A folder with an AutoencoderKL as diffusers saves it, or one that has it in vae/ (Stable Diffusion's).

        Args:
            path: the folder.
            key: what a refusal names.

        Raises:
            UserError: no such folder, another kind of model, a pickle, or weights that do not fit.
        """

        def config_error(why: str) -> UserError:
            return UserError(f"{key}: '{path}' {why}; give a folder with a diffusers AutoencoderKL")

        folder = Path(path)
        if not (folder / "config.json").is_file() and (folder / "vae" / "config.json").is_file():
            folder = folder / "vae"
        if not (folder / "config.json").is_file():
            raise config_error("holds no config.json" if folder.is_dir() else "does not exist")
        try:
            kind = json.loads((folder / "config.json").read_text()).get("_class_name")
        except json.JSONDecodeError as error:
            raise config_error(f"holds a config.json that is no JSON ({error})") from None
        if kind != "AutoencoderKL":
            raise config_error(f"holds a {kind}")
        pickles = sorted(file for file in folder.iterdir() if file.suffix in PICKLES)
        if pickles and not any(folder.glob("*.safetensors")):
            raise UserError(f"{key}: '{pickles[0]}' is a pickle: {conversion(pickles[0])}")
        try:
            # without low_cpu_mem_usage, which would leave a missing tensor on the meta device
            vae, info = AutoencoderKL.from_pretrained(
                folder, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
            )
        except (OSError, RuntimeError, SafetensorError) as error:
            raise config_error(f"cannot be loaded ({str(error).strip().splitlines()[0]})") from error
        wrong = [*info["missing_keys"], *info["unexpected_keys"]]
        if wrong:
            raise config_error(f"has {len(wrong)} tensors too few or too many ({wrong[0]}, …)")
        if vae.config.in_channels != 3:
            raise config_error(f"is for images of {vae.config.in_channels} channels")
        return cls(vae)

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return int(self.vae.config["latent_channels"])

    @property
    def factor(self) -> int:
        """Pixels of an image along the side of one cell of its latents."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    def grid(self, size: Size, key: str) -> Size:
        """Height and width of the latents of an image of `size`.

        Raises:
            UserError: naming `key`: the size does not divide.
        """
        if any(length % self.factor for length in size):
            nearest = [max(1, round(length / self.factor)) * self.factor for length in size]
            raise UserError(
                f"{key}: {list(size)} does not divide into the autoencoder's cells of {self.factor} x {self.factor} "
                f"pixels; the nearest that does is {nearest}"
            )
        return size[0] // self.factor, size[1] // self.factor

    @torch.no_grad()
    def encode(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Pixels in [-1, 1], (B, 3, H, W), as latents (B, C, H / factor, W / factor), float32.

        Args:
            pixels: on the device that the autoencoder is to work on.
            generator: the latents are drawn from the posterior, as in training (Rombach et al. 2022, appendix G); None:
                they are its mean.

        Raises:
            UserError: a size that does not divide.
        """
        self.grid((pixels.shape[-2], pixels.shape[-1]), "data.size")
        vae = self._ready(pixels.device)
        with _precise(pixels.device.type):
            parts = [vae.encode(part.to(vae.dtype)).latent_dist.parameters.float() for part in pixels.split(AT_ONCE)]
        posterior = DiagonalGaussianDistribution(torch.cat(parts))
        shift, scale = self._moments(pixels.device)
        return ((posterior.mean if generator is None else posterior.sample(generator)) - shift) * scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) as pixels (B, 3, h factor, w factor), about in [-1, 1], float32."""
        vae = self._ready(latents.device)
        shift, scale = self._moments(latents.device)
        raw = latents.float() / scale + shift
        with _precise(latents.device.type):
            return torch.cat([vae.decode(part.to(vae.dtype)).sample.float() for part in raw.split(AT_ONCE)])

    def _moments(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """What is taken from the autoencoder's own latents, and what they are then multiplied by: (C or 1, 1, 1)."""
        told = self.vae.config
        shift = torch.tensor(told["latents_mean"] or [told["shift_factor"] or 0.0], device=device)
        std = torch.tensor(told["latents_std"] or [1.0], device=device)
        return rearrange(shift, "c -> c 1 1"), rearrange(told["scaling_factor"] / std, "c -> c 1 1")

    def _ready(self, device: torch.device) -> AutoencoderKL:
        """The autoencoder where the images are; not in float16 where it overflows there (SDXL's)."""
        vae: Any = self.vae
        if not hasattr(vae, "_hf_hook"):  # else accelerate brings it there (offloading)
            vae.to(device)
        if vae.dtype == torch.float16 and vae.config["force_upcast"]:
            vae.to(torch.float32)
        return vae


Codec = PixelCodec | LatentCodec | MaskCodec


def make_codec(vae: AutoencoderKL | None, masks: dict[str, Any] | None = None) -> Codec:
    """The latents of an autoencoder, or masks as `MaskCodec.settings` tells of them; neither: pixels."""
    if masks is not None:
        return MaskCodec(**masks)
    return PixelCodec() if vae is None else LatentCodec(vae)


def _precise(device_type: str) -> AbstractContextManager[Any]:
    """The precision around it, unless that is float16, where autoencoders overflow."""
    half = torch.is_autocast_enabled(device_type) and torch.get_autocast_dtype(device_type) == torch.float16
    return torch.autocast(device_type, enabled=False) if half else nullcontext()
