"""The stored values of image files: 1 to `MAX_CHANNELS` channels of 8 to 64 bits, upright.

Pillow reads what it holds without loss. tifffile reads TIFFs of other kinds (several bands, 16 bits per color,
float64), and imagecodecs PNGs with colors of 16 bits, of which Pillow keeps the upper 8.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image

from unetdiff.errors import FileError
from unetdiff.files.folders import size_of
from unetdiff.files.images import MAX_PIXELS, open_image, too_large
from unetdiff.files.texts import read_start

MAX_CHANNELS = 64
"""Most channels of an image."""
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ALPHA = (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA)
BANDS = frozenset("SCQ")
"""tifffile's axes of samples, channels, and arrays written in one call."""
WHITE = 255
"""What transparent images are composited over."""
ORIENTATION = 0x0112  # EXIF 2.3, 4.6.4 A
ON_ITS_SIDE = range(5, 9)
TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image of an EXIF orientation upright."""


@dataclass(frozen=True)
class ImageInfo:
    """What the header of an image file says."""

    size: tuple[int, int]
    """Height and width, upright."""
    channels: int
    """Channels, alpha not counted: 1 gray, 3 RGB, or the bands of a TIFF."""
    has_alpha: bool
    """It has an alpha channel, or a transparent color."""
    is_deep: bool
    """More than 8 bits per channel, or float."""
    pages: int = 1
    """Images in the file (of an animation, a stack, a pyramid), of which the first is read."""


@dataclass(frozen=True)
class RawImage:
    """The stored values of an image."""

    values: NDArray[Any]
    """(H, W, C), uint8 or, where `info.is_deep`, of another type; alpha is composited over white (`alpha` has it)."""
    alpha: NDArray[np.uint8] | None
    """(H, W)."""
    uncomposited: NDArray[Any] | None
    """`values` before, for those who read alpha as a band."""


def read_info(source: Path | bytes, name: str = "") -> ImageInfo:
    """What the header of a file says, without decoding it.

    Raises:
        FileError: missing, not a regular file, not an image, or too large.
    """
    with opened_tiff(source, _has_bands, name) as tiff:
        if tiff is not None:
            return _tiff_info(tiff)
    with open_image(source, name) as image:
        return pillow_info(image)


def read_values(source: Path | bytes, name: str = "") -> RawImage:
    """The stored values of a file.

    Raises:
        FileError: as of `read_info`, or truncated, or with a compression that is not supported.
    """
    with opened_tiff(source, _has_bands, name) as tiff:
        if tiff is not None:
            return RawImage(_tiff_values(tiff), None, None)
    with open_image(source, name) as image:
        if _is_deep_color_png(image):
            return _deep_png(source, name, image)
        return pillow_values(upright(image))


# ------------------------------------------------------------------------------------------- Pillow


def pillow_info(image: Image.Image) -> ImageInfo:
    """`ImageInfo` of an opened image; call it before the image is decoded."""
    has_alpha = _has_alpha(image)
    gray = image.mode in ("1", "L", "LA", "La") or image.mode[0] in "IF"
    deep = image.mode[0] in "IF" or _is_deep_color_png(image)
    return ImageInfo(upright_size(image), 1 if gray else 3, has_alpha, deep, int(getattr(image, "n_frames", 1)))


def pillow_values(image: Image.Image) -> RawImage:
    """`RawImage` of an opened image, as it is stored: of an animation, the first frame."""
    if image.mode[0] in "IF":
        return RawImage(_with_channels(np.asarray(image)), None, None)
    gray = image.mode in ("1", "L", "LA", "La")
    if not _has_alpha(image):
        if "transparency" in image.info:
            image.info.pop("transparency")  # Pillow warns of palettes with it
        return RawImage(_with_channels(np.array(image.convert("L" if gray else "RGB"))), None, None)
    pixels = np.array(image.convert("LA" if gray else "RGBA"))  # (H, W, 2 or 4)
    values, alpha = pixels[..., :-1], pixels[..., -1]
    return RawImage(composite(values, alpha), alpha, values)


def composite(values: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """8-bit values (H, W, C) with alpha (H, W) over white, (H, W, C)."""
    if alpha.min(initial=255) == 255:
        return np.ascontiguousarray(values)
    weight = alpha[..., None].astype(np.uint16)
    mixed: NDArray[np.uint8] = ((values * weight + WHITE * (255 - weight) + 127) // 255).astype(np.uint8)
    return mixed


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info


def _with_channels(values: NDArray[Any]) -> NDArray[Any]:
    return values[..., None] if values.ndim == 2 else values


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of an opened image, 1 to 8; 1 (upright) if it has none or it cannot be read."""
    try:
        value = image.getexif().get(ORIENTATION)
    except Exception:  # Pillow raises many types for a damaged block; the pixels do not depend on it
        return 1
    return value if isinstance(value, int) and value in TRANSPOSE else 1


def upright(image: Image.Image) -> Image.Image:
    """An image rotated by its EXIF tag; unchanged if that cannot be read."""
    turn = orientation(image)
    return image if turn == 1 else image.transpose(TRANSPOSE[turn])


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of an opened image, upright, without decoding it."""
    size = (image.height, image.width)
    return size[::-1] if orientation(image) in ON_ITS_SIDE else size


# ------------------------------------------------------------------------------------------- PNG of 16 bits per color


def has_deep_color(image: Image.Image) -> bool:
    """Whether an opened image, not decoded yet, has colors of 16 bits, of which Pillow keeps the upper 8."""
    tiles = getattr(image, "tile", [])  # how Pillow will decode the file, e.g. "RGB;16B"
    return image.mode[0] not in "IF" and any(";16" in str(tile) for tile in tiles)


def _is_deep_color_png(image: Image.Image) -> bool:
    return image.format == "PNG" and image.mode in ("RGB", "RGBA") and has_deep_color(image)


def _deep_png(source: Path | bytes, name: str, image: Image.Image) -> RawImage:
    """Colors of 16 bits by imagecodecs; damage is found by Pillow, which decodes the file as well."""
    turn = orientation(image)
    image.load()
    try:
        from imagecodecs import png_decode
    except ImportError:
        where = source if isinstance(source, Path) else name
        reason = "PNG images with colors of 16 bits need imagecodecs"
        raise FileError.of(where, reason, "Run `pip install 'unetdiff[images]'`.") from None
    content = source if isinstance(source, bytes) else read_start(source, size_of(source))
    values = png_decode(content)  # (H, W, 3 or 4), uint16
    if turn != 1:
        planes = [Image.fromarray(values[..., c]).transpose(TRANSPOSE[turn]) for c in range(values.shape[2])]
        values = np.stack([np.asarray(plane) for plane in planes], axis=-1)
    if values.shape[2] == 3:
        return RawImage(values, None, None)
    color, alpha = values[..., :3], values[..., 3]
    weight = alpha[..., None].astype(np.float64) / 65535
    mixed = np.rint(color * weight + 65535 * (1 - weight)).astype(np.uint16)
    return RawImage(mixed, (alpha >> 8).astype(np.uint8), color)


# ------------------------------------------------------------------------------------------- TIFF by tifffile


@contextmanager
def opened_tiff(
    source: Path | bytes, wanted: Callable[[tifffile.TiffFile], bool], name: str = ""
) -> Iterator[tifffile.TiffFile | None]:
    """An opened TIFF that is `wanted`; None for all other files, and for one too damaged to say.

    Raises:
        FileError: what goes wrong inside the block too.
    """
    where = source if isinstance(source, Path) else name or f"<{len(source)} bytes>"
    magic = read_start(source, 4) if isinstance(source, Path) else source[:4]
    if magic not in TIFF_MAGIC:
        yield None
        return
    try:
        tiff = tifffile.TiffFile(source if isinstance(source, Path) else io.BytesIO(source))
    except Exception:  # tifffile raises many types for a damaged file; Pillow says what is wrong
        yield None
        return
    with tiff:
        try:
            chosen = wanted(tiff)
        except Exception:
            chosen = False
        try:
            yield tiff if chosen else None
        except FileError:
            raise
        except Exception as error:
            if not chosen:
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            remedy = "Run `pip install 'unetdiff[images]'`." if "imagecodecs" in reason else ""
            raise FileError.of(where, f"cannot be decoded ({reason})", remedy) from None


def _has_bands(tiff: tifffile.TiffFile) -> bool:
    """Whether Pillow cannot read the first image of a TIFF without loss."""
    return bands_are_pages(tiff) or not pillow_suffices(tiff.pages[0])


def bands_are_pages(tiff: tifffile.TiffFile) -> bool:
    """Whether the pages of a TIFF may be the bands of one image (or the slices of a stack: the file does not say)."""
    page: Any = tiff.pages[0]
    return bool(set(tiff.series[0].axes) & BANDS and len(tiff.pages) > 1 and page.samplesperpixel == 1)


def pillow_suffices(page: Any) -> bool:
    """Whether Pillow reads a page of a TIFF without loss."""
    bits = page.bitspersample
    if isinstance(bits, tuple):
        bits = max(bits)
    if page.samplesperpixel == 1:
        return bool(bits <= 16 and (page.dtype is None or page.dtype.kind in "bu")) or page.dtype == np.float32
    if bits > 8 or page.photometric == tifffile.PHOTOMETRIC.MINISBLACK:
        return False
    alpha = len(page.extrasamples) == 1 and page.extrasamples[0] in ALPHA
    colors = {tifffile.PHOTOMETRIC.SEPARATED: 4}.get(page.photometric, 3)
    return bool(page.samplesperpixel == colors + alpha)


def _bands_axes(tiff: tifffile.TiffFile) -> tuple[Any, str]:
    """The first image of a TIFF (a series, or its first page) and its axes, of which there are Y, X and bands."""
    series: Any = tiff.series[0]
    axes = str(series.axes)
    if set(axes) <= BANDS | set("YX"):
        return series, axes
    return tiff.pages[0], str(tiff.pages[0].axes)


def _tiff_info(tiff: tifffile.TiffFile) -> ImageInfo:
    image, axes = _bands_axes(tiff)
    sides = dict(zip(axes, image.shape, strict=True))
    height, width = sides["Y"], sides["X"]
    channels = math.prod(length for axis, length in zip(axes, image.shape, strict=True) if axis in BANDS)
    if height * width > MAX_PIXELS:
        raise too_large(_tiff_name(tiff), height * width)
    if channels > MAX_CHANNELS:
        raise FileError.of(_tiff_name(tiff), f"must have at most {MAX_CHANNELS} channels (got {channels})")
    pages = 1 if image is tiff.series[0] else len(tiff.pages)
    return ImageInfo((height, width), channels, False, image.dtype != np.uint8, pages)


def _tiff_name(tiff: tifffile.TiffFile) -> str:
    return str(tiff.filehandle.path or tiff.filename)


def _tiff_values(tiff: tifffile.TiffFile) -> NDArray[Any]:
    _tiff_info(tiff)  # refuses before memory is taken
    image, axes = _bands_axes(tiff)
    return stored_values(image.asarray(), axes)


def stored_values(values: NDArray[Any], axes: str) -> NDArray[Any]:
    """Values of tifffile's axes as (H, W, C)."""
    if np.iscomplexobj(values):
        raise ValueError("complex values")
    spatial = [axes.index("Y"), axes.index("X")]
    values = np.moveaxis(values, spatial, [0, 1])
    return rearrange(values, "h w ... -> h w (...)") if values.ndim > 2 else values[..., None]
