"""A U-Net with what it sees an image through: pixels or latents, clean or noised, and the tokens of its context."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from unetdiff.errors import UserError
from unetdiff.models.unet import UNet
from unetdiff.segmentation.context import SegmentationContext
from unetdiff.segmentation.tiles import resize_logits

NOISE_SEED = 0
"""Of the noise of inference, the same for every image."""


class Autoencoder(Protocol):
    """What a segmenter needs of an autoencoder (`unetdiff.diffusion.codecs.LatentCodec`)."""

    vae: Any

    @property
    def channels(self) -> int: ...

    @property
    def factor(self) -> int: ...

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor: ...

    def mean_latents(self, pixels: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class NetworkInput:
    """The timestep at which a network sees images, as a denoiser does, and their noise.

    Baranchuk et al. 2022 segment noised images at small timesteps, Zhao et al. 2023 (VPD) clean ones.
    """

    timestep: float = 0
    """0: a clean image."""
    noise_level: tuple[float, float] | None = None
    """(a, b): the network sees a x_0 + b ε, with the same noise ε for every image; None: x_0."""

    def at(self, sample: Tensor) -> Tensor:
        """Images or latents x_0 (B, C, h, w) as the network sees them."""
        if self.noise_level is None:
            return sample
        generator = torch.Generator().manual_seed(NOISE_SEED)
        noise = torch.randn(sample.shape[1:], generator=generator).to(sample)
        return self.noise_level[0] * sample + self.noise_level[1] * noise


@dataclass(frozen=True)
class Segmenter:
    """Images to logits.

    Args:
        unet: with a segmentation head.
        view: the timestep and the noise.
        codec: the autoencoder of a network of latents; None: the network reads pixels.
        context: tokens for the network's cross-attention; None: one zero token.
    """

    unet: UNet
    view: NetworkInput = NetworkInput()
    codec: Autoencoder | None = None
    context: SegmentationContext | None = None

    @property
    def image_channels(self) -> int:
        """Channels of the images that the network, or its autoencoder, reads."""
        return int(self.unet.config["in_channels"]) if self.codec is None else 3

    def __call__(self, pixels: Tensor, timestep: Tensor | int | None = None) -> Tensor:
        """Logits (B, classes, H, W) for every pixel of images (B, C, H, W) in [-1, 1].

        timestep: of the noise in the images, for networks conditioned on it; None: that of `view`, with its noise.
        """
        size = pixels.shape[-2], pixels.shape[-1]
        if timestep is None:
            return self.clean_logits(self.encode(pixels), size)
        return self.logits(self.encode(pixels), timestep, size)

    def with_prompt(self, prompt: str | None) -> Segmenter:
        """The segmenter with the tokens of a prompt for every image; itself for None.

        Raises:
            UserError: it was not trained with captions, or its text encoder is not loaded.
        """
        if prompt is None:
            return self
        if self.context is None:
            raise UserError(
                "prompt: must be None for a segmenter that was trained without segmentation.context=caption."
            )
        return replace(self, context=self.context.of_prompt(prompt))

    def clean_logits(self, x0: Tensor, size: tuple[int, int], tokens: Tensor | None = None) -> Tensor:
        """Logits (B, classes, H, W) of x_0 at the timestep and with the noise of `view`; others as of `logits`."""
        return self.logits(self.view.at(x0), self.view.timestep or None, size, tokens)

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (B, C, H, W) as x_0: themselves, or the mean of their latents.

        The border is replicated up to the next multiple of the autoencoder's factor.
        """
        if self.codec is None:
            return pixels
        for dim in (-2, -1):
            length, factor = pixels.shape[dim], self.codec.factor
            index = torch.arange((length + factor - 1) // factor * factor, device=pixels.device)
            pixels = pixels.index_select(dim, index.clamp(max=length - 1))  # unlike F.pad, exported for every size
        return self.codec.encode(pixels).to(self.unet.dtype)

    def logits(
        self, sample: Tensor, timestep: Tensor | float | None, size: tuple[int, int], tokens: Tensor | None = None
    ) -> Tensor:
        """Logits (B, classes, H, W) of x_t, at the size (H, W) of its images.

        tokens: of the images' captions, (B, tokens, dim); None: those of the context.
        """
        if self.unet.config["encoder"]["padding"] == "valid":
            return _segment_unpadded(self.unet, sample, timestep)
        return self.at_image_size(self.unet.segment(sample, timestep, *self._tokens(sample, tokens)), size)

    def unpadded_logits(self, pixels: Tensor) -> Tensor:
        """Logits (B, classes, h, w) of the center of pixels (B, C, H, W) of a size that an unpadded network has."""
        x0 = self.view.at(pixels)
        logits: Tensor = self.unet.segment(x0, self.view.timestep or None)
        return logits

    def features(self, pixels: Tensor) -> dict[str, Tensor]:
        """The maps of `UNet.features` of images (B, C, H, W) in [-1, 1], as the network sees them."""
        sample = self.view.at(self.encode(pixels))
        return self.unet.features(sample, self.view.timestep or None, *self._tokens(sample))

    def _tokens(self, sample: Tensor, tokens: Tensor | None = None) -> tuple[Tensor, ...]:
        """The network's further argument, if there is a context."""
        if self.context is None:
            return ()
        return ((self.context(sample.shape[0]) if tokens is None else tokens).to(sample.dtype),)

    def at_image_size(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits of latents (B, classes, h, w) upsampled to the images' size (H, W), bilinear; those of pixels as they
        are."""
        if self.codec is None:
            return logits
        height, width = (length * self.codec.factor for length in logits.shape[-2:])
        return resize_logits(logits, (height, width))[..., : size[0], : size[1]]


def segment_whole(network: UNet | Segmenter, pixels: Tensor, timestep: Tensor | int | None = None) -> Tensor:
    """Logits (B, classes, H, W) for every pixel of (B, 3, H, W), also with unpadded (`padding: valid`) convolutions.

    Unpadded networks predict the center of their input only: the image is first padded by reflection (Ronneberger et
    al. 2015, fig. 2) by `ClassicEncoder.lost_unpadded`, and up to a valid size.

    Args:
        network: a network of pixels, or a segmenter.
        pixels: (B, 3, H, W) in [-1, 1].
        timestep: of the noise in the pixels, for networks conditioned on it; None: as the segmenter sees them.
    """
    return as_segmenter(network)(pixels, timestep)


def as_segmenter(network: UNet | Segmenter) -> Segmenter:
    """A network of pixels as a segmenter."""
    return network if isinstance(network, Segmenter) else Segmenter(network)


def lost_unpadded(unet: UNet) -> int:
    """Pixels of height (or width) that the convolutions of a network with `padding: valid` lose."""
    classic: Any = unet.encoder
    return int(classic.lost_unpadded)


def unpadded_margins(unet: UNet, length: int, margin: int = 0) -> tuple[int, int]:
    """Pixels before and after an axis of an unpadded network's input, so that its logits cover all `length` pixels.

    At least `margin` on each side; the sum is the smallest that the network computes.
    """
    classic: Any = unet.encoder
    lost, stride = lost_unpadded(unet), 2**classic.out_level
    extra = max(0, 2 * margin - lost)
    valid = (length + lost + extra + 4 + stride - 1) // stride * stride - 4  # next valid input size
    before = (valid - lost - length) // 2 + lost // 2
    return before, valid - length - before


def _segment_unpadded(unet: UNet, pixels: Tensor, timestep: Tensor | float | None) -> Tensor:
    """`segment_whole` of an unpadded network."""
    (top, bottom), (left, right) = (unpadded_margins(unet, length) for length in pixels.shape[-2:])
    starts = [before - lost_unpadded(unet) // 2 for before in (top, left)]
    height, width = pixels.shape[-2:]
    reflectable = bottom < height and right < width  # top and left are never larger
    padded = F.pad(pixels, (left, right, top, bottom), mode="reflect" if reflectable else "replicate")
    logits = unet.segment(padded, timestep)
    return logits[..., starts[0] : starts[0] + height, starts[1] : starts[1] + width]
