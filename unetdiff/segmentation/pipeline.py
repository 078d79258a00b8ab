"""The segmentation pipeline: images to masks with a trained network."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unetdiff.data.masks.classes import voc_colormap
from unetdiff.errors import FileError, UserError, config_error
from unetdiff.files import hub
from unetdiff.files.folders import is_there
from unetdiff.files.pipeline_parts import part
from unetdiff.files.push import PushMixin
from unetdiff.files.records import read_object, write_json
from unetdiff.kernels.accelerate import accelerate_inference_
from unetdiff.models.class_names import require_class_names, require_colors
from unetdiff.models.unet import UNet
from unetdiff.segmentation.config import MAX_SIDE, InferenceConfig, validate_inference
from unetdiff.segmentation.context import FOLDER as CONTEXT_FOLDER
from unetdiff.segmentation.context import SegmentationContext
from unetdiff.segmentation.inference import ImageLike, InputSize, Prediction, load_image, predictions
from unetdiff.segmentation.palette import Palette, as_palette, overlay, palette_image
from unetdiff.segmentation.segmenter import Autoencoder, NetworkInput, Segmenter

__all__ = [
    "SETTINGS_FILE",
    "SegmentationOutput",
    "SegmentationPipeline",
    "saved_classes",
    "saved_inference",
    "saved_input",
]

SETTINGS_FILE = "segmentation.json"
KEYS = ("classes", "palette", "size", "ignore_index", "inference", "input")
MAX_TIMESTEP = 100_000
SIZES = "[height, width] in pixels, a longest side, or null (not resized)"
BACKGROUND = "background"  # a class of this name is not blended in overlays


@dataclass
class SegmentationOutput:
    """The prediction for one image, at its own size."""

    mask: np.ndarray
    """Class indices, uint8 (H, W)."""
    logits: Tensor | None
    """(classes, H, W), float32 on the CPU, with `return_logits`."""
    overlay: Image.Image
    """The image blended with the classes' colors (RGB), except for a class named "background"."""
    palette_image: Image.Image
    """The mask as an image of mode "P": `palette_image.save("mask.png")` writes a mask as VOC stores it."""

    @property
    def probabilities(self) -> Tensor | None:
        """Softmax of the logits, (classes, H, W), float32 on the CPU, with `return_logits`; they sum to 1."""
        return None if self.logits is None else self.logits.softmax(dim=0)


class SegmentationPipeline(PushMixin):
    """Semantic segmentation of images of any size.

        pipeline = SegmentationPipeline.from_pretrained("runs/camvid/best")
        output = pipeline("street.jpg")
        output.overlay.save("overlay.png")
        pipeline.inference = InferenceConfig(tile=[512, 512], flip=True, scales=[0.75, 1.0, 1.25])

    Args:
        unet: a model with a segmentation head.
        classes: class names.
        palette: a color [r, g, b] per class; None: VOC's.
        size: (H, W) that images are resized to for the network, or the longest side (an int, aspect ratio kept); None:
            not resized.
        ignore_index: of the masks it was trained on.
        inference: tiles, flips, scales and batch size, saved with the pipeline; None: the whole image, one view.
        codec: the autoencoder (`unetdiff.diffusion.codecs.LatentCodec`) of a network of latents; None: pixels.
        input: the timestep and the noise that the network sees images at; None: clean images.
        context: tokens for the network's cross-attention; None: one zero token.

    Raises:
        UserError: the numbers of classes, colors and logits differ, or there is no segmentation head.
    """

    def __init__(
        self,
        unet: UNet,
        classes: Sequence[str],
        palette: Palette | None = None,
        size: InputSize = None,
        ignore_index: int = 255,
        inference: InferenceConfig | None = None,
        codec: Autoencoder | None = None,
        input: NetworkInput | None = None,
        context: SegmentationContext | None = None,
    ) -> None:
        if unet.num_classes is None:
            raise UserError('unet: must have a segmentation head. See unet.add_head("segmentation", num_classes=...).')
        if unet.num_classes != len(classes):
            raise UserError(f"classes: must have one name per class (got {len(classes)} for {unet.num_classes}).")
        if len(set(classes)) != len(classes):
            raise UserError(f"classes: must be different names (got {', '.join(map(str, classes))}).")
        self.segmenter = Segmenter(unet, input or NetworkInput(), codec, context)
        _require_fitting(self.segmenter)
        self.size = size if isinstance(size, int) or size is None else tuple(int(length) for length in size)
        if size is not None and not _is_size(size if isinstance(size, int) else list(size)):
            raise config_error("size", size, SIZES)
        self.unet = unet  # calls predict in eval mode and restore its mode
        self.classes = list(classes)
        self.palette = as_palette(voc_colormap(len(classes)) if palette is None else palette, len(classes))
        self.ignore_index = ignore_index
        self.inference = inference or InferenceConfig()
        validate_inference(self.inference)

    @property
    def device(self) -> torch.device:
        """The network's device."""
        return self.unet.device

    def to(self, *args: Any, **kwargs: Any) -> SegmentationPipeline:
        """Move the network to a device or dtype (as `torch.nn.Module.to`); returns self."""
        self.unet.to(*args, **kwargs)
        if self.segmenter.context is not None:
            self.segmenter.context.to(*args, **kwargs)
        return self

    def load_image(self, image: ImageLike, page: int | None = None) -> Tensor:
        """An image as the network reads it, uint8 (C, H, W); arguments and errors as of `inference.load_image`."""
        return load_image(image, self.inference.image_range, self.segmenter.image_channels, page)

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
        prompt: str | Sequence[str] | None = ...,
    ) -> SegmentationOutput: ...
    @overload
    def __call__(
        self,
        images: list[Any] | tuple[Any, ...],
        return_logits: bool = ...,
        batch_size: int | None = ...,
        autocast: torch.dtype | None = ...,
        inference: InferenceConfig | None = ...,
        prompt: str | Sequence[str] | None = ...,
    ) -> list[SegmentationOutput]: ...
    def __call__(
        self,
        images: ImageLike | list[Any] | tuple[Any, ...],
        return_logits: bool = False,
        batch_size: int | None = None,
        autocast: torch.dtype | None = None,
        inference: InferenceConfig | None = None,
        prompt: str | Sequence[str] | None = None,
    ) -> SegmentationOutput | list[SegmentationOutput]:
        """Segment an image, or a list of them (in batches), each at its own size.

        An image is a path, a file's bytes, a PIL image, an array uint8 (H, W, C) or a tensor uint8 (C, H, W), with the
        channels that the network reads (gray and RGB are converted into each other).
        `inference` and `batch_size` override the pipeline's own. `autocast`: e.g. torch.bfloat16; None: the weights'
        dtype. `prompt`: one caption for all images, or one for each, of a segmenter that was trained with captions;
        None: the empty one. Raises UserError for an unreadable file.
        """
        options = (return_logits, batch_size, autocast, inference)
        many = list(images) if isinstance(images, list | tuple) else [images]
        if prompt is None or isinstance(prompt, str):
            results = list(self.stream(many, *options, prompt))
        elif len(prompt) != len(many):
            raise UserError(f"prompt: must be one, or one per image (got {len(prompt)} for {len(many)} images).")
        else:
            results = [next(self.stream([one], *options, text)) for one, text in zip(many, prompt, strict=True)]
        return results if isinstance(images, list | tuple) else results[0]

    def stream(
        self,
        images: Iterable[ImageLike],
        return_logits: bool = False,
        batch_size: int | None = None,
        autocast: torch.dtype | None = None,
        inference: InferenceConfig | None = None,
        prompt: str | None = None,
    ) -> Iterator[SegmentationOutput]:
        """As `__call__` for an iterable of images, read lazily; yields in order."""
        segmenter = self.segmenter.with_prompt(prompt)
        options = inference or self.inference
        if options.image_range is None:
            options = replace(options, image_range=self.inference.image_range)  # the network was trained with it
        if batch_size is not None:
            options = replace(options, batch_size=batch_size)
        for one in predictions(segmenter, images, self.size, options, autocast, return_logits):
            yield self._output(one)

    @property
    def transparent(self) -> list[int]:
        """The classes that overlays do not blend."""
        return [index for index, name in enumerate(self.classes) if name == BACKGROUND]

    def _output(self, one: Prediction) -> SegmentationOutput:
        mask = one.mask.numpy()
        blend = overlay(one.image, mask, self.palette, ignore_index=self.ignore_index, transparent=self.transparent)
        return SegmentationOutput(
            mask=mask,
            logits=None if one.logits is None else one.logits.cpu(),
            overlay=Image.fromarray(blend),
            palette_image=palette_image(mask, self.palette, self.ignore_index),
        )

    def save_pretrained(self, directory: str | Path, skip: Collection[str] = ()) -> None:
        """Write unet/, segmentation.json, and vae/ and segmentation_context/ if there are; other files are kept.

        Of a segmenter of captions also text_encoder/ and tokenizer/.

        skip: parts that are not written, as another pipeline in the same directory has them: unet, vae, text_encoder.
        """
        directory, one = Path(directory), self.segmenter
        if "unet" not in skip:
            self.unet.save_pretrained(directory / "unet")
        if one.codec is not None and "vae" not in skip:
            one.codec.vae.save_pretrained(directory / "vae")
        if one.context is not None:
            one.context.save_pretrained(directory / CONTEXT_FOLDER)
            if one.context.features is not None and "text_encoder" not in skip:
                one.context.features.encoder.model.save_pretrained(directory / "text_encoder")
                one.context.features.encoder.tokenizer.save_pretrained(directory / "tokenizer")
        self.save_settings(directory)

    def card_facts(self) -> dict[str, Any]:
        """Arguments of the model card."""
        facts = self.unet.card_facts() | {"heads": ["segmentation"], "loaders": ["SegmentationPipeline"]}
        return facts | {"details": {"classes": ", ".join(self.classes)}}

    def save_settings(self, directory: str | Path) -> None:
        """Write segmentation.json only."""
        settings = {
            "classes": self.classes,
            "palette": self.palette.tolist(),
            "size": list(self.size) if isinstance(self.size, tuple) else self.size,
            "ignore_index": self.ignore_index,
            "inference": asdict(self.inference),
            "input": asdict(self.segmenter.view),
        }
        write_json(Path(directory) / SETTINGS_FILE, settings)

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, torch_dtype: torch.dtype | None = None, revision: str | None = None
    ) -> SegmentationPipeline:
        """Load a directory that `save_pretrained` or a training run (`RUN/best`, `RUN/latest`) wrote.

        Args:
            directory: the directory, or OWNER/NAME on the Hub.
            torch_dtype: of the weights; None: float32.
            revision: branch, tag or commit on the Hub.

        Raises:
            UserError: a file that is missing, truncated, invalid, or does not match the others; no such model on the
                Hub, or no connection.
        """
        directory = hub.resolved(directory, hub.MODEL_FILES, revision=revision)
        path = directory / SETTINGS_FILE
        if not is_there(path):
            raise _missing_settings(directory)
        settings = _read_settings(path)
        unet = UNet.from_pretrained(directory / "unet", torch_dtype=torch_dtype)
        codec = None
        vae = part(directory, "vae")
        if vae.is_dir():
            from unetdiff.diffusion.codecs import LatentCodec

            codec = LatentCodec.from_pretrained(vae, "vae")
        folder = directory / CONTEXT_FOLDER
        context = SegmentationContext.from_pretrained(folder) if folder.is_dir() else None
        if context is not None and context.reads_captions:
            from unetdiff.diffusion.conditioning.text_encoder import SavedFeatures

            context.features = SavedFeatures(directory, context.config["tokens"])
        if context is not None and torch_dtype is not None:
            context.to(torch_dtype)
        try:
            return cls(unet, **settings, codec=codec, context=context)
        except UserError as error:
            reason = f"does not match {directory / 'unet'}: {str(error).rstrip('.')}"
            raise FileError.of(path, reason) from None


def _require_fitting(segmenter: Segmenter) -> None:
    """UserError where the network's channels are not those of the latents, or its tokens not those of the context."""
    config, codec, context = segmenter.unet.config, segmenter.codec, segmenter.context
    if codec is not None and config["in_channels"] != codec.channels:
        raise config_error("in_channels", config["in_channels"], f"{codec.channels}, as the autoencoder's latents have")
    dim = config["conditioning"]["cross_attention_dim"]
    if context is not None and context.config["dim"] != dim:
        raise config_error("cross_attention_dim", dim, f"{context.config['dim']}, the width of the context's tokens")
    if segmenter.view.timestep and not config["conditioning"]["timestep"]:
        raise config_error("input.timestep", segmenter.view.timestep, "0 for a network without time embedding")


def _missing_settings(directory: Path) -> FileError:
    if not directory.is_dir():
        return FileError.of(directory, "not found", f"Give a model directory with unet/ and {SETTINGS_FILE}.")
    for name in ("best", "latest"):
        if (directory / name / SETTINGS_FILE).is_file():
            return FileError.of(directory, "is a run directory", f"Give {directory / name}.")
    if (directory / "model_index.json").is_file():
        return FileError.of(directory, f"has no segmentation head (no {SETTINGS_FILE})", "Use GenerationPipeline.")
    remedy = f"Give a model directory with unet/ and {SETTINGS_FILE}."
    return FileError.of(directory, f"no {SETTINGS_FILE} found", remedy)


def _read_settings(path: Path) -> dict[str, Any]:
    """segmentation.json -> the pipeline's keyword arguments; FileError for missing or unknown keys and wrong types."""
    settings = {"input": {}} | read_object(path, "Write it again with save_pretrained.")
    if set(settings) != set(KEYS):
        raise FileError.of(path, f"keys must be {', '.join(KEYS)} (got {', '.join(sorted(settings)) or 'none'})")
    size, ignore_index = settings["size"], settings["ignore_index"]
    classes = require_class_names(path, "classes", settings["classes"])
    require_colors(path, "palette", settings["palette"], len(classes))
    if size is not None and not _is_size(size):
        raise FileError.of(path, f"size must be {SIZES} (got {size!r:.80})")
    if not _integers([ignore_index], 1) or not 0 <= ignore_index <= 255:
        raise FileError.of(path, f"ignore_index must be an integer in [0, 255] (got {ignore_index!r:.80})")
    settings["inference"] = _read_inference(path, settings["inference"])
    settings["input"] = _read_input(path, settings["input"])
    return settings


def _read_inference(path: Path, section: Any) -> InferenceConfig:
    """The section "inference"; missing keys have their defaults."""
    known = [item.name for item in fields(InferenceConfig)]
    if not isinstance(section, dict) or not set(section) <= set(known):
        raise FileError.of(path, f"keys of inference must be some of {', '.join(known)} (got {section!r:.200})")
    config = InferenceConfig(**section)
    numbers = config.scales if isinstance(config.scales, list) else [None]
    if (
        not (config.tile is None or _integers(config.tile, 2))
        or not _integers([config.batch_size], 1)
        or not _integers([config.margin], 1)
        or not isinstance(config.flip, bool)
        or not (config.image_range is None or _is_numbers(config.image_range))
        or not all(isinstance(x, int | float) and not isinstance(x, bool) for x in [config.overlap, *numbers])
    ):
        raise FileError.of(
            path, f"inference has a value of the wrong type (got {section!r:.200})", "See InferenceConfig."
        )
    try:
        validate_inference(config, "inference.")
    except UserError as error:
        raise FileError.of(path, str(error).rstrip(".")) from None
    return config


def _read_input(path: Path, section: Any) -> NetworkInput:
    """The section "input"; missing keys have their defaults."""
    known = [item.name for item in fields(NetworkInput)]
    if not isinstance(section, dict) or not set(section) <= set(known):
        raise FileError.of(path, f"keys of input must be some of {', '.join(known)} (got {section!r:.200})")
    timestep, level = section.get("timestep", 0), section.get("noise_level")
    if not _integers([timestep], 1) or not 0 <= timestep <= MAX_TIMESTEP:
        raise FileError.of(path, f"input.timestep must be an integer in [0, {MAX_TIMESTEP}] (got {timestep!r:.80})")
    if level is not None and not (_is_numbers(level) and len(level) == 2 and all(abs(x) <= 1e6 for x in level)):
        raise FileError.of(path, f"input.noise_level must be two numbers or null (got {level!r:.80})")
    return NetworkInput(timestep, None if level is None else (float(level[0]), float(level[1])))


def _is_numbers(values: Any) -> bool:
    """Whether a value is a list of numbers."""
    return isinstance(values, list) and all(isinstance(x, int | float) and not isinstance(x, bool) for x in values)


def saved_inference(directory: str | Path) -> InferenceConfig:
    """The inference options of a model directory; the defaults if it has no segmentation head."""
    path = Path(directory) / SETTINGS_FILE
    return _read_settings(path)["inference"] if is_there(path) else InferenceConfig()


def saved_input(directory: str | Path) -> NetworkInput:
    """The timestep and the noise that a model directory's segmenter sees images at; clean images if it has none."""
    path = Path(directory) / SETTINGS_FILE
    return _read_settings(path)["input"] if is_there(path) else NetworkInput()


def saved_classes(directory: str | Path) -> list[str] | None:
    """The class names of a model directory; None if it has no segmentation head."""
    path = Path(directory) / SETTINGS_FILE
    return _read_settings(path)["classes"] if is_there(path) else None


def _is_size(size: Any) -> bool:
    lengths = size if isinstance(size, list) else [size, size]
    return _integers(lengths, 2) and min(lengths) >= 1 and max(lengths) <= MAX_SIDE


def _integers(value: Any, length: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == length
        and all(isinstance(x, int) and not isinstance(x, bool) for x in value)
    )
