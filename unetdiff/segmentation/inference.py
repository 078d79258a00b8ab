"""From images of any size to logits and masks at the images' own sizes."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn

from unetdiff.data.decoding import rgb, upright
from unetdiff.data.transforms import checked_size, fit_longest_side, resize_image, to_model_range
from unetdiff.errors import UserError
from unetdiff.segmentation.config import InferenceConfig
from unetdiff.segmentation.palette import ImageInput, as_rgb_array
from unetdiff.segmentation.tiles import resize_logits, tiled_logits

if TYPE_CHECKING:
    from unetdiff.models.unet import UNet

__all__ = [
    "InputSize",
    "ImageLike",
    "Prediction",
    "argmax_at",
    "eval_mode",
    "load_image",
    "logits_by_size",
    "predict_batch",
    "predict_logits",
    "predict_masks",
    "predictions",
    "resize_logits",
    "segment_whole",
]

ImageLike = ImageInput | str | Path | bytes
InputSize = Sequence[int] | int | None
"""What images are resized to for the network: (H, W), a longest side with the aspect kept, or not at all."""
BAND = 1 << 25  # logits that are resized at once on the way to a mask: 128 MiB of float32


def load_image(image: ImageLike) -> Tensor:
    """A file or its bytes (upright, by the EXIF tag), PIL image, array (H, W, 3), tensor (3, H, W) -> uint8 (3, H, W).

    Raises UserError naming a file that is missing, truncated, no image, or too large for PIL's guard.
    """
    if isinstance(image, str | Path | bytes):
        source = io.BytesIO(image) if isinstance(image, bytes) else image
        if isinstance(image, bytes):
            image = f"{len(image)} bytes given"
        try:
            with Image.open(source) as file:
                image = rgb(upright(file))
        except Image.DecompressionBombError as error:
            raise UserError(f"{image}: {error}; cut it up, or raise PIL.Image.MAX_IMAGE_PIXELS in Python") from None
        except FileNotFoundError:
            raise UserError(f"{image}: no such file; give the path of an image") from None
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            why = "unknown format" if isinstance(error, UnidentifiedImageError) else error
            raise UserError(f"{image}: not a readable image ({why}); replace or remove it") from None
    return rearrange(torch.from_numpy(as_rgb_array(image).copy()), "h w c -> c h w").contiguous()


@contextmanager
def eval_mode(module: nn.Module, device_type: str, autocast: torch.dtype | None) -> Iterator[None]:
    """eval mode, no gradient, autocast where asked for; on leaving, every module's mode is as it was."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        with (
            torch.inference_mode(),
            torch.autocast(device_type, dtype=autocast, enabled=autocast is not None),
        ):
            yield
    finally:
        for part in training:
            part.training = True


def segment_whole(unet: UNet, pixels: Tensor, timestep: Tensor | int | None = None) -> Tensor:
    """Logits (B, classes, H, W) for every pixel of (B, 3, H, W), from an unpadded 2015 network too.

    timestep: of the noise in the images, for a network that is told it; None: they are clean, or it is not told.

    That one answers for the middle of its input only, so the image is mirrored beyond its border first
    (Ronneberger et al. 2015, fig. 2), by what it loses (`ClassicEncoder.lost_unpadded`) and on to a size that fits.
    """
    if unet.config["encoder"]["padding"] != "valid":
        return unet.segment(pixels, timestep)
    classic: Any = unet.encoder
    margin, stride = classic.lost_unpadded, 2**classic.out_level
    pads, starts = [], []
    for length in pixels.shape[-2:]:
        fitting = (length + margin + 4 + stride - 1) // stride * stride - 4
        start = (fitting - margin - length) // 2
        pads.append((start + margin // 2, fitting - length - start - margin // 2))
        starts.append(start)
    (top, bottom), (left, right) = pads
    height, width = pixels.shape[-2:]
    mirrored = bottom < height and right < width  # top and left are never the larger ones
    padded = F.pad(pixels, (left, right, top, bottom), mode="reflect" if mirrored else "replicate")
    logits = unet.segment(padded, timestep)
    return logits[..., starts[0] : starts[0] + height, starts[1] : starts[1] + width]


@dataclass
class Prediction:
    """What the network made of one image, at the image's own size."""

    image: Tensor
    """uint8 (3, H, W), as it was read."""
    mask: Tensor
    """Class indices, uint8 (H, W), on the CPU."""
    logits: Tensor | None
    """(classes, H, W), float32 on the model's device, where they were asked for."""


def predictions(
    unet: UNet,
    images: Iterable[ImageLike] | Tensor,
    size: InputSize = None,
    options: InferenceConfig | None = None,
    autocast: torch.dtype | None = None,
    keep_logits: bool = False,
) -> Iterator[Prediction]:
    """Yield a Prediction for every image, in the order given.

    Images are read when their turn comes, a few batches ahead of what is yielded, so `images` may be endless. Without
    `keep_logits`, an image's logits are reduced to its mask band by band: where there are tiles, no large image's
    logits are ever held whole.

    Args:
        unet: the network; put into eval mode for each batch and back again.
        images: files, bytes, PIL images, arrays uint8 (H, W, 3) or tensors uint8 (3, H, W).
        size: (H, W) or longest side that images are resized to before anything else; None: their own. Tiles and
            scales are of that.
        options: tiles, views, batch size; None: the whole image, once.
        autocast: e.g. torch.bfloat16; None: the weights' precision.
        keep_logits: whether logits are wanted.

    Raises:
        UserError: an image that cannot be read, or options that cannot be.
    """
    opened: dict[int, _Assembly] = {}

    def resized() -> Iterator[Tensor]:
        for index, image in enumerate(images):
            loaded = load_image(image)
            seen = _input_size(loaded, size)
            opened[index] = _Assembly(loaded, seen, keep_logits)
            yield resize_image(loaded, seen)

    def forward(batch: Tensor) -> Tensor:
        pixels = to_model_range(batch.to(unet.device)).to(unet.dtype)  # (B, 3, h, w)
        with eval_mode(unet, unet.device.type, autocast):
            return segment_whole(unet, pixels)

    following = 0
    for index, band in tiled_logits(forward, resized(), options or InferenceConfig()):
        opened[index].add(band)
        while following in opened and (result := opened[following].result) is not None:
            yield result
            del opened[following]
            following += 1


def _input_size(image: Tensor, size: InputSize) -> tuple[int, int]:
    """(H, W) at which the network sees an image (3, H, W)."""
    own = (image.shape[-2], image.shape[-1])
    if isinstance(size, int):
        return fit_longest_side(own, size)
    return own if size is None else checked_size("size", list(size)) or own


class _Assembly:
    """An image whose bands come in from top to bottom."""

    def __init__(self, image: Tensor, seen: tuple[int, int], keep_logits: bool) -> None:
        self.image, self.seen, self.keep_logits = image, seen, keep_logits
        self.parts: list[Tensor] = []  # bands of the mask, or of the logits
        self.result: Prediction | None = None

    def add(self, band: Tensor) -> None:
        """band (C, rows, w) of the logits of the image as the network sees it."""
        height, width = self.image.shape[-2:]
        whole = self.keep_logits or self.seen != (height, width)  # to be resized: `seen` is a network's size
        self.parts.append(band if whole else band.argmax(dim=0).to(torch.uint8).cpu())
        if sum(part.shape[-2] for part in self.parts) < self.seen[0]:
            return
        joined = self.parts[0] if len(self.parts) == 1 else torch.cat(self.parts, dim=-2)
        self.parts = []
        logits = None
        if whole and self.keep_logits:
            logits = resize_logits(joined[None], (height, width))[0]
        mask = argmax_at(joined if logits is None else logits, (height, width)) if whole else joined
        self.result = Prediction(self.image, mask, logits)


def argmax_at(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (C, h, w) -> mask uint8 (H, W) on the CPU: argmax of the resized logits, at most `BAND` of them at once.

    Bilinear as in `resize_logits`: row i lies at (i + 1/2) h/H - 1/2 of the rows given.
    """
    classes, rows = logits.shape[0], logits.shape[1]
    height, width = size
    step = max(1, BAND // (classes * width))
    if step >= height:
        return resize_logits(logits[None], size)[0].argmax(dim=0).to(torch.uint8).cpu()
    parts = []
    for top in range(0, height, step):
        lines = torch.arange(top, min(top + step, height), device=logits.device) + 0.5
        place = (lines * (rows / height) - 0.5).clamp(0, rows - 1)
        upper = place.long()
        lower = (upper + 1).clamp(max=rows - 1)
        band = torch.lerp(logits[:, upper].float(), logits[:, lower].float(), (place - upper)[:, None])  # (C, step, w)
        band = resize_logits(band[None], (band.shape[1], width))[0]
        parts.append(band.argmax(dim=0).to(torch.uint8).cpu())
    return torch.cat(parts)


def logits_by_size(
    unet: UNet,
    images: Iterable[ImageLike] | Tensor,
    size: InputSize = None,
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
    options: InferenceConfig | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Yield (index, logits (classes, H, W) float32 on the model's device) of every image at its own size, in order.

    Arguments as in `predictions`; `batch_size` overrides that of the options.
    """
    found = predictions(unet, images, size, _options(options, batch_size), autocast, keep_logits=True)
    for index, one in enumerate(found):
        assert one.logits is not None  # they were asked for
        yield index, one.logits


def predict_batch(
    unet: UNet,
    images: Sequence[ImageLike] | Tensor,
    size: InputSize = None,
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
    options: InferenceConfig | None = None,
) -> list[Tensor]:
    """Logits (classes, H, W), float32, of every image at its own size, in the order given.

    All of them are held at once; `predict_masks` holds the masks only. Arguments as in `logits_by_size`.
    """
    return [logits for _, logits in logits_by_size(unet, images, size, batch_size, autocast, options)]


def predict_logits(
    unet: UNet,
    image: ImageLike,
    size: InputSize = None,
    autocast: torch.dtype | None = None,
    options: InferenceConfig | None = None,
) -> Tensor:
    """Logits (classes, H, W), float32, of one image at its own size. Arguments as in `predictions`."""
    return predict_batch(unet, [image], size, autocast=autocast, options=options)[0]


def predict_masks(
    unet: UNet,
    images: Sequence[ImageLike] | Tensor,
    size: InputSize = None,
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
    options: InferenceConfig | None = None,
) -> list[np.ndarray]:
    """Masks uint8 (H, W), each at its image's size, in the order given. Arguments as in `predict_batch`."""
    options = _options(options, batch_size)
    return [one.mask.numpy() for one in predictions(unet, images, size, options, autocast)]


def _options(options: InferenceConfig | None, batch_size: int | None) -> InferenceConfig:
    options = options or InferenceConfig()
    return options if batch_size is None else replace(options, batch_size=batch_size)
