"""Inference: images of any size to logits and masks at the images' own sizes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from unetdiff.data.decoding import RGB, image_pixels, to_channels, to_uint8, with_channels
from unetdiff.data.raw_images import RawImage, read_values
from unetdiff.data.stacks import read_page, stack_size
from unetdiff.data.transforms import checked_size, fit_longest_side, resize_image, to_model_range
from unetdiff.errors import FileError, UserError, config_error
from unetdiff.segmentation.config import InferenceConfig
from unetdiff.segmentation.palette import ImageInput, as_uint8_array
from unetdiff.segmentation.segmenter import Segmenter, as_segmenter, segment_whole, unpadded_margins
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
"""Size that images are resized to for the network: (H, W), the longest side (aspect ratio kept), or None."""
MAX_WHOLE = 1 << 24
"""Pixels of the largest image that a network computes as a whole, 4096 x 4096; larger ones need tiles."""
MAX_DARK = 1 << 14
"""Values of 16-bit files below it are probably those of a camera with fewer bits."""
MAX_RESIZED_LOGITS = 1 << 25  # values resized at once by `argmax_at`: 128 MiB of float32


def load_image(
    image: ImageLike, image_range: Sequence[float] | None = None, channels: int = RGB, page: int | None = None
) -> Tensor:
    """An image of any kind as uint8 (channels, H, W).

    Args:
        image: a file or its bytes (upright by EXIF), a PIL image, an array (H, W, C) or a tensor uint8 (C, H, W).
        image_range: `data.image_range` of files, PIL images and arrays of more than 8 bits.
        channels: gray is repeated for RGB, RGB becomes gray; else C must be this.
        page: which image of a TIFF stack; None: the first, with a warning.

    Raises:
        UserError: a file that is missing, truncated, not an image, or too large, or an image of other channels.

    Warns:
        UserWarning: values of 16 bits that are all dark, and no `image_range`.
    """
    where = str(image) if isinstance(image, str | Path) else "image"
    try:
        if isinstance(image, str | Path | bytes):
            source = image if isinstance(image, bytes) else Path(image)
            raw = _read(source, channels, page, where)
            if image_range is None:
                _warn_of_dark_values(raw.values, where)
            values = to_channels(raw, channels, image_range)
        elif isinstance(image, Image.Image):
            values = image_pixels(image, image_range, channels)
        elif isinstance(image, np.ndarray) and image.ndim == 3 and image.dtype != np.uint8 and image_range is not None:
            values = to_uint8(with_channels(image, channels), image_range)
        else:
            values = with_channels(as_uint8_array(image), channels)
    except FileError as error:
        raise FileError.of(error.path, error.reason, error.remedy or "Replace or remove it.") from None
    except UserError:
        raise
    except ValueError as error:
        raise FileError.of(where, f"cannot be decoded ({error})") from None
    return torch.from_numpy(values.transpose(2, 0, 1).copy())  # one copy: images may be large


def _read(source: Path | bytes, channels: int, page: int | None, where: str) -> RawImage:
    """The stored values of a file, or of one image of a TIFF stack."""
    if page is None:
        size = stack_size(source, channels)
        if size == 1:
            return read_values(source)
        warnings.warn(
            f"{where}: a stack of {size} images, of which the first is read. `unetdiff predict` reads all.",
            stacklevel=3,
        )
    return read_page(source, page or 0)


def _warn_of_dark_values(values: NDArray[Any], where: str) -> None:
    """Cameras of 10 to 14 bits write to files of 16: without a range, what they saw is nearly black."""
    if values.dtype.kind not in "ui" or values.dtype.itemsize != 2 or not 255 < values.max() < MAX_DARK:
        return
    brightest = int(values.max())
    full = 2 ** brightest.bit_length() - 1
    warnings.warn(
        f"{where}: the brightest value is {brightest} of 65535, nearly black to a network that was trained on 8-bit "
        f"images. If the camera has {full.bit_length()} bits: --image_range 0,{full}.",
        stacklevel=3,
    )


@contextmanager
def eval_mode(module: nn.Module, device_type: str, autocast: torch.dtype | None) -> Iterator[None]:
    """eval mode, inference mode and optional autocast; restores the mode of every module on exit."""
    with (
        evaluating(module),
        torch.inference_mode(),
        torch.autocast(device_type, dtype=autocast, enabled=autocast is not None),
    ):
        yield


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """eval mode; restores the mode of every module on exit."""
    training = [child for child in module.modules() if child.training]
    module.eval()
    try:
        yield
    finally:
        for child in training:
            child.training = True


@dataclass
class Prediction:
    """The prediction for one image, at the image's own size."""

    image: Tensor
    """uint8 (C, H, W), as read."""
    mask: Tensor
    """Class indices, uint8 (H, W), on the CPU."""
    logits: Tensor | None
    """(classes, H, W), float32 on the model's device, with `keep_logits`."""


def predictions(
    network: UNet | Segmenter,
    images: Iterable[ImageLike] | Tensor,
    size: InputSize = None,
    options: InferenceConfig | None = None,
    autocast: torch.dtype | None = None,
    keep_logits: bool = False,
) -> Iterator[Prediction]:
    """Yield a Prediction for every image, in order.

    Images are read lazily, a few batches ahead of what is yielded, so `images` may be endless. Without `keep_logits`,
    with tiles, an image's logits are reduced to its mask strip by strip and never held completely.

    Args:
        network: a network of pixels, or a segmenter; set to eval mode for each batch and back.
        images: files, bytes, PIL images, arrays uint8 (H, W, C) or tensors uint8 (C, H, W), C as the network reads.
        size: (H, W) or longest side that images are resized to first, before tiles and scales; None: not resized.
        options: tiles, views and batch size; None: the whole image, one view.
        autocast: e.g. torch.bfloat16; None: the weights' precision.
        keep_logits: return logits.

    Raises:
        UserError: an image cannot be read, or an option is out of range.
    """
    pending: dict[int, _PredictionBuilder] = {}
    chosen = options or InferenceConfig()
    segmenter = as_segmenter(network)
    unet = segmenter.unet
    _require_whole_cells(chosen, segmenter)

    def resized() -> Iterator[Tensor]:
        for index, image in enumerate(images):
            loaded = load_image(image, chosen.image_range, segmenter.image_channels)
            input_size = input_size_of(loaded, size)
            _require_tiles(input_size, chosen)
            pending[index] = _PredictionBuilder(loaded, input_size, keep_logits)
            yield resize_image(loaded, input_size)

    unpadded = unet.config["encoder"]["padding"] == "valid" and segmenter.codec is None

    def forward(batch: Tensor) -> Tensor:
        pixels = _network_input(segmenter, batch)
        with eval_mode(unet, unet.device.type, autocast):
            return segmenter.unpadded_logits(pixels) if unpadded else segmenter(pixels)

    def margins(length: int) -> tuple[int, int]:
        return unpadded_margins(unet, length, chosen.margin) if unpadded else (chosen.margin, chosen.margin)

    next_index = 0
    for index, strip in tiled_logits(forward, resized(), chosen, margins):
        pending[index].add(strip)
        while next_index in pending and (result := pending[next_index].result) is not None:
            yield result
            del pending[next_index]
            next_index += 1


def _network_input(segmenter: Segmenter, images: Tensor) -> Tensor:
    """uint8 images (B, C, h, w) as pixels in [-1, 1], (B, C, h, w)."""
    unet = segmenter.unet
    return to_model_range(images.to(unet.device)).to(unet.dtype)


def _require_tiles(size: tuple[int, int], options: InferenceConfig) -> None:
    """UserError for an image (H, W) whose feature maps are too large for memory as a whole."""
    if options.tile is None and size[0] * size[1] * max(options.scales) ** 2 > MAX_WHOLE:
        constraint = f"set for images of more than {MAX_WHOLE:,} pixels (got {size[0]:,} x {size[1]:,})"
        remedy = "Set the side of the tiles, e.g. to 512 (--tile 512), or resize or crop the image."
        raise config_error("inference.tile", None, constraint, remedy)


def _require_whole_cells(options: InferenceConfig, segmenter: Segmenter) -> None:
    """UserError for tiles that would cut a latent cell."""
    factor = 1 if segmenter.codec is None else segmenter.codec.factor
    if options.margin % factor:
        constraint = f"a multiple of {factor}, the autoencoder's downsampling factor"
        raise config_error("inference.margin", options.margin, constraint)
    if options.tile is not None and any(length % factor for length in options.tile):
        nearest = [max(1, round(length / factor)) * factor for length in options.tile]
        constraint = f"multiples of {factor}, the autoencoder's downsampling factor"
        raise config_error("inference.tile", options.tile, constraint, f"Give {nearest}.")


def input_size_of(image: Tensor, size: InputSize) -> tuple[int, int]:
    """(H, W) of the network's input for an image (3, H, W)."""
    image_size = (image.shape[-2], image.shape[-1])
    if isinstance(size, int):
        return fit_longest_side(image_size, size)
    return image_size if size is None else checked_size("size", list(size)) or image_size


class _PredictionBuilder:
    """Assembles an image's prediction from strips of logits, top to bottom."""

    def __init__(self, image: Tensor, input_size: tuple[int, int], keep_logits: bool) -> None:
        self.image, self.input_size, self.keep_logits = image, input_size, keep_logits
        self.strips: list[Tensor] = []  # of the mask, or of the logits
        self.result: Prediction | None = None

    def add(self, strip: Tensor) -> None:
        """Add logits (C, rows, w) of the resized image; sets `result` after the last strip."""
        height, width = self.image.shape[-2:]
        needs_logits = self.keep_logits or self.input_size != (height, width)  # to be resized first
        self.strips.append(strip if needs_logits else strip.argmax(dim=0).to(torch.uint8).cpu())
        if sum(strip.shape[-2] for strip in self.strips) < self.input_size[0]:
            return
        joined = self.strips[0] if len(self.strips) == 1 else torch.cat(self.strips, dim=-2)
        self.strips = []
        logits = None
        if self.keep_logits:
            logits = resize_logits(joined[None], (height, width))[0]
        mask = argmax_at(joined if logits is None else logits, (height, width)) if needs_logits else joined
        self.result = Prediction(self.image, mask, logits)


def argmax_at(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (C, h, w) -> mask uint8 (H, W) on the CPU: argmax of the resized logits, by strips of rows.

    At most `MAX_RESIZED_LOGITS` values are resized at once. Bilinear as in `resize_logits`: row i is sampled at
    (i + 1/2) h/H - 1/2.
    """
    classes, rows = logits.shape[0], logits.shape[1]
    height, width = size
    step = max(1, MAX_RESIZED_LOGITS // (classes * width))
    if step >= height:
        return resize_logits(logits[None], size)[0].argmax(dim=0).to(torch.uint8).cpu()
    strips = []
    for top in range(0, height, step):
        lines = torch.arange(top, min(top + step, height), device=logits.device) + 0.5
        position = (lines * (rows / height) - 0.5).clamp(0, rows - 1)
        upper = position.long()
        lower = (upper + 1).clamp(max=rows - 1)
        strip = torch.lerp(
            logits[:, upper].float(), logits[:, lower].float(), (position - upper)[:, None]
        )  # (C, step, w)
        strip = resize_logits(strip[None], (strip.shape[1], width))[0]
        strips.append(strip.argmax(dim=0).to(torch.uint8).cpu())
    return torch.cat(strips)


def logits_by_size(
    network: UNet | Segmenter,
    images: Iterable[ImageLike] | Tensor,
    size: InputSize = None,
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
    options: InferenceConfig | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Yield (index, logits (classes, H, W) float32 on the model's device) of every image at its own size, in order.

    Arguments as in `predictions`; `batch_size` overrides that of the options.
    """
    results = predictions(network, images, size, _options(options, batch_size), autocast, keep_logits=True)
    for index, result in enumerate(results):
        assert result.logits is not None
        yield index, result.logits


def predict_batch(
    network: UNet | Segmenter,
    images: Sequence[ImageLike] | Tensor,
    size: InputSize = None,
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
    options: InferenceConfig | None = None,
) -> list[Tensor]:
    """Logits (classes, H, W), float32, of every image at its own size, in order; arguments as in `logits_by_size`."""
    return [logits for _, logits in logits_by_size(network, images, size, batch_size, autocast, options)]


def predict_logits(
    network: UNet | Segmenter,
    image: ImageLike,
    size: InputSize = None,
    autocast: torch.dtype | None = None,
    options: InferenceConfig | None = None,
) -> Tensor:
    """Logits (classes, H, W), float32, of one image at its own size. Arguments as in `predictions`."""
    return predict_batch(network, [image], size, autocast=autocast, options=options)[0]


def predict_masks(
    network: UNet | Segmenter,
    images: Sequence[ImageLike] | Tensor,
    size: InputSize = None,
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
    options: InferenceConfig | None = None,
) -> list[np.ndarray]:
    """Masks uint8 (H, W) of every image at its own size, in order; arguments as in `predict_batch`."""
    options = _options(options, batch_size)
    return [result.mask.numpy() for result in predictions(network, images, size, options, autocast)]


def _options(options: InferenceConfig | None, batch_size: int | None) -> InferenceConfig:
    options = options or InferenceConfig()
    return options if batch_size is None else replace(options, batch_size=batch_size)
