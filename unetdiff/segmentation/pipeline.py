"""From an image to a mask with a trained segmenter: load, call, save."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unetdiff.data.voc import voc_colormap
from unetdiff.errors import UserError
from unetdiff.files import write_whole
from unetdiff.kernels.accelerate import accelerate_inference_
from unetdiff.models.unet import UNet
from unetdiff.segmentation.config import InferenceConfig, validate_inference
from unetdiff.segmentation.inference import ImageLike, InputSize, Prediction, predictions
from unetdiff.segmentation.palette import Palette, as_palette, overlay, palette_image

__all__ = ["SETTINGS", "SegmentationOutput", "SegmentationPipeline", "saved_inference"]

SETTINGS = "segmentation.json"
KEYS = ("classes", "palette", "size", "ignore_index")
LATER_KEYS = ("inference",)  # not in the files of before it
SIZES = "[height, width] in pixels, a longest side, or null for the image's own"
BACKGROUND = "background"  # a class of this name stays bare in overlays


@dataclass
class SegmentationOutput:
    """What an image was taken to be, at its own size."""

    mask: np.ndarray
    """Class indices, uint8 (H, W)."""
    logits: Tensor | None
    """(classes, H, W), float32 on the CPU, if asked for."""
    overlay: Image.Image
    """The image with the classes' colours laid over it (RGB); a class named "background" stays bare."""
    palette_image: Image.Image
    """The mask as an image of mode "P": `palette_image.save("mask.png")` writes VOC's kind of mask."""


class SegmentationPipeline:
    """Labels every pixel of images of any size.

        pipeline = SegmentationPipeline.from_pretrained("runs/camvid/best")
        output = pipeline("street.jpg")
        output.overlay.save("overlay.png")
        pipeline.inference = InferenceConfig(tile=[512, 512], flip=True, scales=[0.75, 1.0, 1.25])

    Args:
        unet: a model with a segmentation head.
        classes: a name for each of its classes.
        palette: a colour [r, g, b] for each; None: VOC's.
        size: (H, W) that images are resized to for the network, or the longest side (an int, the aspect is kept);
            None: their own size.
        ignore_index: void in the masks it was trained on.
        inference: how images are seen (tiles, flips, scales, batch size); None: whole, once. Saved with the rest.

    Raises:
        UserError: where classes, palette and head do not agree, or there is no segmentation head.
    """

    def __init__(
        self,
        unet: UNet,
        classes: Sequence[str],
        palette: Palette | None = None,
        size: InputSize = None,
        ignore_index: int = 255,
        inference: InferenceConfig | None = None,
    ) -> None:
        if unet.num_classes is None:
            raise UserError('this UNet has no segmentation head; see add_head("segmentation", num_classes=...)')
        if unet.num_classes != len(classes):
            raise UserError(f"{len(classes)} class names for a segmentation head of {unet.num_classes} classes")
        self.size = size if isinstance(size, int) or size is None else tuple(int(length) for length in size)
        if size is not None and not _is_size(size if isinstance(size, int) else list(size)):
            raise UserError(f"size {size!r}: give {SIZES}")
        self.unet = unet  # its mode is the caller's: each call predicts in eval mode and restores it
        self.classes = list(classes)
        self.palette = as_palette(voc_colormap(len(classes)) if palette is None else palette, len(classes))
        self.ignore_index = ignore_index
        self.inference = inference or InferenceConfig()
        validate_inference(self.inference)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.unet.device

    def to(self, *args: Any, **kwargs: Any) -> SegmentationPipeline:
        """Move the network to a device, or to a precision (as `torch.nn.Module.to`); returns self."""
        self.unet.to(*args, **kwargs)
        return self

    def optimize_for_inference(self, dtype: torch.dtype | None = None, compile: bool = False) -> SegmentationPipeline:
        """See `accelerate_inference_`: faster, but can no longer be saved. Returns self."""
        accelerate_inference_(self.unet, dtype, compile)
        return self

    @overload
    def __call__(
        self,
        images: ImageLike,
        return_logits: bool = ...,
        batch_size: int | None = ...,
        autocast: torch.dtype | None = ...,
        inference: InferenceConfig | None = ...,
    ) -> SegmentationOutput: ...
    @overload
    def __call__(
        self,
        images: list[Any] | tuple[Any, ...],
        return_logits: bool = ...,
        batch_size: int | None = ...,
        autocast: torch.dtype | None = ...,
        inference: InferenceConfig | None = ...,
    ) -> list[SegmentationOutput]: ...
    def __call__(
        self,
        images: ImageLike | list[Any] | tuple[Any, ...],
        return_logits: bool = False,
        batch_size: int | None = None,
        autocast: torch.dtype | None = None,
        inference: InferenceConfig | None = None,
    ) -> SegmentationOutput | list[SegmentationOutput]:
        """Segment an image, or a list of them (in batches), each at its own size.

        An image is a path, a file's bytes, a PIL image, an array uint8 (H, W, 3) or a tensor uint8 (3, H, W).
        `inference` and `batch_size` override the pipeline's own. `autocast` is the precision to compute in, e.g.
        torch.bfloat16; None: the weights'. Raises UserError naming an unreadable file.
        """
        if isinstance(images, list | tuple):
            return list(self.stream(images, return_logits, batch_size, autocast, inference))
        return next(self.stream([images], return_logits, batch_size, autocast, inference))

    def stream(
        self,
        images: Iterable[ImageLike],
        return_logits: bool = False,
        batch_size: int | None = None,
        autocast: torch.dtype | None = None,
        inference: InferenceConfig | None = None,
    ) -> Iterator[SegmentationOutput]:
        """As a call, for any number of images: each is taken when its turn comes, and yielded in its order."""
        options = inference or self.inference
        if batch_size is not None:
            options = replace(options, batch_size=batch_size)
        for one in predictions(self.unet, images, self.size, options, autocast, return_logits):
            yield self._output(one)

    def _output(self, one: Prediction) -> SegmentationOutput:
        mask = one.mask.numpy()
        bare = [index for index, name in enumerate(self.classes) if name == BACKGROUND]
        blend = overlay(one.image, mask, self.palette, ignore_index=self.ignore_index, transparent=bare)
        return SegmentationOutput(
            mask=mask,
            logits=None if one.logits is None else one.logits.cpu(),
            overlay=Image.fromarray(blend),
            palette_image=palette_image(mask, self.palette, self.ignore_index),
        )

    def save_pretrained(self, directory: str | Path) -> None:
        """Write unet/ and segmentation.json; what else the directory holds stays."""
        directory = Path(directory)
        self.unet.save_pretrained(directory / "unet")
        self.save_settings(directory)

    def save_settings(self, directory: str | Path) -> None:
        """Write segmentation.json alone (for a directory whose unet/ is written by somebody else)."""
        settings = {
            "classes": self.classes,
            "palette": self.palette.tolist(),
            "size": list(self.size) if isinstance(self.size, tuple) else self.size,
            "ignore_index": self.ignore_index,
            "inference": asdict(self.inference),
        }
        write_whole(Path(directory) / SETTINGS, json.dumps(settings, indent=1) + "\n")

    @classmethod
    def from_pretrained(cls, directory: str | Path, torch_dtype: torch.dtype | None = None) -> SegmentationPipeline:
        """Load a directory that `save_pretrained` or a training run (`RUN/best`, `RUN/latest`) wrote.

        Raises UserError naming the file that is missing, truncated, foreign, or does not fit the others.
        """
        directory = Path(directory)
        path = directory / SETTINGS
        if not path.is_file():
            raise UserError(_not_a_segmenter(directory))
        settings = _read_settings(path)
        unet = UNet.from_pretrained(directory / "unet", torch_dtype=torch_dtype)
        try:
            return cls(unet, **settings)
        except UserError as error:
            raise UserError(f"{path} does not fit {directory / 'unet'}: {error}") from None


def _not_a_segmenter(directory: Path) -> str:
    if not directory.is_dir():
        return f"{directory}: no such directory; give a model directory that holds unet/ and {SETTINGS}"
    for name in ("best", "latest"):
        if (directory / name / SETTINGS).is_file():
            return f"{directory} is a run, not a model directory; give {directory / name}"
    if (directory / "model_index.json").is_file():
        return f"{directory} holds a model without a segmentation head (no {SETTINGS}); try GenerationPipeline"
    return f"{directory} has no {SETTINGS}; give a model directory that holds unet/ and {SETTINGS}"


def _read_settings(path: Path) -> dict[str, Any]:
    """segmentation.json -> the pipeline's keyword arguments: every key, of its type, and no other."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError
        raise UserError(f"{path} is truncated or no JSON ({error}); write it again with save_pretrained") from None
    if not isinstance(settings, dict) or set(settings) - set(LATER_KEYS) != set(KEYS):
        found = sorted(settings) if isinstance(settings, dict) else type(settings).__name__
        raise UserError(f"{path} must hold exactly the keys {', '.join(KEYS)}; found {found}")
    classes, palette, size = settings["classes"], settings["palette"], settings["size"]
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise UserError(f"{path}: classes must be a list of names, not {classes!r}")
    if not isinstance(palette, list) or not all(_integers(color, 3) for color in palette):
        raise UserError(f"{path}: palette must be a list of [red, green, blue] of 0..255")
    if size is not None and not _is_size(size):
        raise UserError(f"{path}: size must be {SIZES}, not {size!r}")
    if not _integers([settings["ignore_index"]], 1):
        raise UserError(f"{path}: ignore_index must be an integer, not {settings['ignore_index']!r}")
    if "inference" in settings:
        settings["inference"] = _read_inference(path, settings["inference"])
    return settings


def _read_inference(path: Path, given: Any) -> InferenceConfig:
    """The section as the options it says; a key that it leaves out has its default."""
    known = [item.name for item in fields(InferenceConfig)]
    if not isinstance(given, dict) or not set(given) <= set(known):
        raise UserError(f"{path}: inference must hold some of the keys {', '.join(known)}, not {given!r}")
    config = InferenceConfig(**given)
    numbers = config.scales if isinstance(config.scales, list) else [None]
    if (
        not (config.tile is None or _integers(config.tile, 2))
        or not _integers([config.batch_size], 1)
        or not isinstance(config.flip, bool)
        or not all(isinstance(x, int | float) and not isinstance(x, bool) for x in [config.overlap, *numbers])
    ):
        raise UserError(f"{path}: inference holds a value of the wrong type: {given!r}; see InferenceConfig")
    try:
        validate_inference(config, "inference.")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return config


def saved_inference(directory: str | Path) -> InferenceConfig:
    """How a model directory's segmenter sees images; the defaults where it does not say, or is none."""
    path = Path(directory) / SETTINGS
    return _read_settings(path).get("inference", InferenceConfig()) if path.is_file() else InferenceConfig()


def _is_size(size: Any) -> bool:
    lengths = size if isinstance(size, list) else [size, size]
    return _integers(lengths, 2) and min(lengths) >= 1


def _integers(value: Any, length: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == length
        and all(isinstance(x, int) and not isinstance(x, bool) for x in value)
    )
