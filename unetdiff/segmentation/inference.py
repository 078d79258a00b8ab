"""From pictures of any size to logits and masks at the pictures' own sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor, nn

from unetdiff.data.transforms import checked_size, resize_image, to_model_range
from unetdiff.errors import UserError
from unetdiff.segmentation.palette import Picture, as_picture

if TYPE_CHECKING:
    from unetdiff.models.unet import UNet

__all__ = [
    "PictureLike",
    "inference",
    "load_picture",
    "logits_by_size",
    "predict_batch",
    "predict_logits",
    "predict_masks",
    "resize_logits",
    "segment_whole",
]

PictureLike = Picture | str | Path


def load_picture(picture: PictureLike) -> Tensor:
    """A file (upright, by its EXIF tag), PIL image, array (H, W, 3) or tensor (3, H, W) -> uint8 (3, H, W).

    Raises UserError naming a file that is missing, truncated or no picture.
    """
    if isinstance(picture, str | Path):
        try:
            with Image.open(picture) as file:
                picture = ImageOps.exif_transpose(file).convert("RGB")
        except FileNotFoundError:
            raise UserError(f"{picture}: no such file; give the path of a picture") from None
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise UserError(f"{picture}: not a readable picture ({error}); replace or remove it") from None
    return rearrange(torch.from_numpy(as_picture(picture).copy()), "h w c -> c h w").contiguous()


def resize_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (B, C, h, w) -> (B, C, H, W), float32, bilinear. The argmax comes after this, never before."""
    logits = logits.float()
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


@contextmanager
def inference(module: nn.Module, device_type: str, autocast: torch.dtype | None) -> Iterator[None]:
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


def logits_by_size(
    unet: UNet,
    images: Sequence[PictureLike] | Tensor,
    size: Sequence[int] | None = None,
    batch_size: int = 8,
    autocast: torch.dtype | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Yield (index, logits (classes, H, W) float32 on the model's device) for every picture, at its own size.

    With `size` (H, W) every picture is resized to it for the network; without, pictures of one size share a
    batch. The order of the indices is that of the batches. Files are read when their batch comes, except that
    without `size` all are read first.
    """
    groups: dict[object, list[int]] = {}
    loaded: dict[int, Tensor] = {}
    for index in range(len(images)):
        if size is None:
            loaded[index] = load_picture(images[index])
            groups.setdefault(tuple(loaded[index].shape), []).append(index)
        else:
            groups.setdefault(None, []).append(index)
    for members in groups.values():
        for start in range(0, len(members), batch_size):
            batch = members[start : start + batch_size]
            pictures = [loaded.pop(index) if index in loaded else load_picture(images[index]) for index in batch]
            logits = _forward(unet, pictures, size, autocast)
            for number, (index, picture) in enumerate(zip(batch, pictures, strict=True)):
                height, width = picture.shape[-2:]
                yield index, resize_logits(logits[number : number + 1], (height, width))[0]


def _forward(unet: UNet, pictures: list[Tensor], size: Sequence[int] | None, autocast: torch.dtype | None) -> Tensor:
    """uint8 pictures (3, H, W), of one size unless `size` is given -> logits (B, classes, h, w)."""
    wanted = None if size is None else checked_size("size", list(size))
    if wanted is not None:
        pictures = [resize_image(picture, wanted) for picture in pictures]
    pixels = to_model_range(torch.stack(pictures).to(unet.device))  # (B, 3, h, w)
    with inference(unet, unet.device.type, autocast):
        return segment_whole(unet, pixels.to(unet.dtype))


def segment_whole(unet: UNet, pixels: Tensor) -> Tensor:
    """Logits (B, classes, H, W) for every pixel of (B, 3, H, W), from an unpadded 2015 network too.

    That one answers for the middle of its input only, so the picture is mirrored beyond its border first
    (Ronneberger et al. 2015, fig. 2). Its n levels lose m = 24 2^(n-2) - 8 pixels a side pair, and fit inputs
    2^(n-1) (b + 4) - 4.
    """
    encoder = unet.config["encoder"]
    if encoder["padding"] != "valid":
        return unet.segment(pixels)
    levels = len(encoder["channels"])
    margin, stride = 24 * 2 ** (levels - 2) - 8, 2 ** (levels - 1)
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
    logits = unet.segment(padded)
    return logits[..., starts[0] : starts[0] + height, starts[1] : starts[1] + width]


def predict_batch(
    unet: UNet,
    images: Sequence[PictureLike] | Tensor,
    size: Sequence[int] | None = None,
    batch_size: int = 8,
    autocast: torch.dtype | None = None,
) -> list[Tensor]:
    """Logits (classes, H, W), float32, of every picture at its own size, in the order given.

    All of them are held at once; `predict_masks` holds the masks only. Arguments as in `predict_logits`.
    """
    results = dict(logits_by_size(unet, images, size, batch_size, autocast))
    return [results[index] for index in range(len(results))]


def predict_logits(
    unet: UNet, image: PictureLike, size: Sequence[int] | None = None, autocast: torch.dtype | None = None
) -> Tensor:
    """Logits (classes, H, W), float32, at the picture's own size.

    image: uint8 tensor (3, H, W), PIL image, array (H, W, 3) or path. size: (H, W) that the network sees;
    None: the picture's own. autocast: e.g. torch.bfloat16; None: the weights' precision. The model is put
    into eval mode and back again.
    """
    return predict_batch(unet, [image], size, autocast=autocast)[0]


def predict_masks(
    unet: UNet,
    images: Sequence[PictureLike] | Tensor,
    size: Sequence[int] | None = None,
    batch_size: int = 8,
    autocast: torch.dtype | None = None,
) -> list[np.ndarray]:
    """Masks uint8 (H, W), each at its picture's size, in the order given: argmax of the resized logits."""
    results = {
        index: logits.argmax(dim=0).to(torch.uint8).cpu().numpy()
        for index, logits in logits_by_size(unet, images, size, batch_size, autocast)
    }
    return [results[index] for index in range(len(results))]
