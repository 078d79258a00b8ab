"""Segmentation of one image at a noise level, and how it is shown."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from unetdiff.app import html
from unetdiff.app.display import shown_image, shown_mask
from unetdiff.app.runs import AppRun, timestep_at
from unetdiff.data.transforms import ignore_mask, resize_image, to_model_range, to_uint8
from unetdiff.errors import UserError, config_error
from unetdiff.segmentation.config import InferenceConfig
from unetdiff.segmentation.inference import input_size_of, predictions
from unetdiff.segmentation.palette import as_rgb_array, colorize, error_map, overlay, palette_image
from unetdiff.segmentation.pipeline import SegmentationPipeline
from unetdiff.segmentation.segmenter import NetworkInput, Segmenter

MAX_PROBABILITIES = 1 << 26
"""Classes x pixels of the probabilities that are kept for the pointer, 128 MiB in float16."""
MAX_TILE = 4096
OVERLAY, MASK, INPUT, TRUTH, ERRORS = "overlay", "mask", "input image", "ground truth", "misclassified"
VIEWS = (OVERLAY, MASK, INPUT)
"""What is shown of any image."""
TRUTH_VIEWS = (TRUTH, ERRORS)
"""What is shown of an image with a ground truth as well."""


@dataclass(frozen=True)
class Source:
    """An image that was chosen or dropped."""

    image: Tensor
    """uint8 (C, H, W)."""
    name: str
    truth: NDArray[np.uint8] | None = None
    """The mask of the dataset, (H, W), if there is one of the image's size."""


@dataclass(frozen=True)
class Segmented:
    """A segmented image."""

    source: Source
    seen: NDArray[np.uint8]
    """The image as the network sees it, noised, at its own size, (H, W, 3)."""
    mask: NDArray[np.uint8]
    """Class indices, (H, W)."""
    probabilities: NDArray[np.float16] | None
    """(classes, H, W); None for large images."""
    noise: str
    """How much noise it has, as a text."""


def inference_options(
    run: AppRun, tile: float | None, overlap: float, flip: bool, margin: int | None = None
) -> InferenceConfig:
    """The page's options of inference; the others are the model's own.

    Args:
        run: the run.
        tile: side of the tiles in pixels; None or 0: the whole image.
        overlap: fraction of a tile that neighbors overlap by at least.
        flip: average with the flipped image.
        margin: pixels that are seen around a tile; None: the model's own.
    """
    own = _pipeline(run).inference
    side = int(tile or 0)
    if not 0 <= side <= MAX_TILE:
        raise config_error("tile", side, f"in [0, {MAX_TILE}], pixels", "0 is the whole image.")
    tiles = [side, side] if side else None
    return replace(own, tile=tiles, overlap=overlap, flip=flip, margin=own.margin if margin is None else margin)


def segment(
    run: AppRun, source: Source, noise: float = 0.0, options: InferenceConfig | None = None, prompt: str | None = None
) -> Segmented:
    """Segment an image with noise in it.

    The noise is that of the run's forward process, the same for every image and run, and a network with a time
    embedding is given its timestep. Without noise, the network sees images as in `unetdiff predict`.

    Args:
        run: with a segmentation head.
        source: the image.
        noise: fraction of the timesteps in [0, 1]; 0: none.
        options: tiles and flips; None: the model's own.
        prompt: a caption, for a segmenter that was trained with captions; None: the empty one.

    Raises:
        UserError: an option out of range, or an image that is too large as a whole.
    """
    pipeline = _pipeline(run)
    segmenter = pipeline.segmenter.with_prompt(prompt)
    segmenter = replace(segmenter, view=network_input(run, noise))
    pixels = source.image.shape[-2] * source.image.shape[-1] * len(pipeline.classes)
    keep = pixels <= MAX_PROBABILITIES
    one = next(predictions(segmenter, [source.image], pipeline.size, options or pipeline.inference, keep_logits=keep))
    probabilities = None
    if one.logits is not None:
        probabilities = one.logits.softmax(dim=0).half().cpu().numpy()
    seen = as_rgb_array(one.image) if noise == 0 else noised(segmenter, one.image, pipeline.size)
    return Segmented(source, seen, one.mask.numpy(), probabilities, noise_text(noise, run))


def noise_text(noise: float, run: AppRun | None = None) -> str:
    """An amount of noise, a fraction in [0, 1], as a text; of a run that was trained on noise with its timestep."""
    if noise == 0:
        return "no noise"
    timestep = f" (timestep {float(timestep_at(run.process, noise)):g})" if run and run.trained_on_noise else ""
    return f"{100 * noise:.0f} % noise{timestep}"


def network_input(run: AppRun, noise: float) -> NetworkInput:
    """The timestep and noise of a fraction of the timesteps; of 0 the input that the segmenter was trained with."""
    pipeline = _pipeline(run)
    if noise == 0:
        return pipeline.segmenter.view
    timestep = timestep_at(run.process, noise)
    alpha, sigma = run.process.alpha_sigma(timestep)
    conditioned = pipeline.unet.config["conditioning"]["timestep"]
    return NetworkInput(timestep.item() if conditioned else 0, (float(alpha), float(sigma)))


@torch.inference_mode()
def noised(segmenter: Segmenter, image: Tensor, size: Any) -> NDArray[np.uint8]:
    """An image uint8 (C, H, W) as the network sees it, (H, W, 3) at its own size; latents are decoded."""
    height, width = image.shape[-2:]
    input_size = input_size_of(image, size)
    unet, codec = segmenter.unet, segmenter.codec
    pixels = to_model_range(resize_image(image, input_size)[None].to(unet.device)).to(unet.dtype)
    xt = segmenter.view.at(segmenter.encode(pixels)).float()
    if codec is not None:
        decoding: Any = codec
        xt = decoding.decode(xt)[..., : input_size[0], : input_size[1]]
    seen = Image.fromarray(as_rgb_array(to_uint8(xt[0]).cpu()))
    return np.asarray(seen.resize((width, height), Image.Resampling.NEAREST))


def render(result: Segmented, pipeline: SegmentationPipeline, view: str, opacity: float) -> Image.Image:
    """One of `VIEWS` or `TRUTH_VIEWS`, at the size that the page shows.

    Raises:
        UserError: a view of the ground truth for an image without one.
    """
    image, mask = np.asarray(shown_image(result.seen)), shown_mask(result.mask)
    ignore = pipeline.ignore_index
    if view == INPUT:
        return Image.fromarray(image)
    if view in TRUTH_VIEWS:
        if result.source.truth is None:
            raise UserError("view: this image has no ground truth. Choose an image of the validation set.")
        truth = shown_mask(result.source.truth)
        if view == ERRORS:
            return Image.fromarray(error_map(mask, truth, ignore, image))
        mask = truth
    if view in (MASK, TRUTH):
        return Image.fromarray(colorize(mask, pipeline.palette, ignore))
    return Image.fromarray(blend(image, mask, pipeline, opacity))


def blend(
    image: NDArray[np.uint8], mask: NDArray[np.uint8], pipeline: SegmentationPipeline, opacity: float
) -> NDArray[np.uint8]:
    """An image (H, W, 3) blended with the colors of its mask, except for the background's."""
    return overlay(image, mask, pipeline.palette, opacity, pipeline.ignore_index, pipeline.transparent)


def full_overlay(result: Segmented, pipeline: SegmentationPipeline, opacity: float) -> Image.Image:
    """The overlay at the image's own size."""
    return Image.fromarray(blend(result.seen, result.mask, pipeline, opacity))


def mask_file(result: Segmented, pipeline: SegmentationPipeline) -> Image.Image:
    """The mask as `predict` writes it, of mode "P"."""
    return palette_image(result.mask, pipeline.palette, pipeline.ignore_index)


def summary(result: Segmented, pipeline: SegmentationPipeline) -> str:
    """The legend with the fraction of each class, and with a ground truth the pixel accuracy."""
    height, width = result.mask.shape
    facts = [result.source.name, f"{width} × {height} pixels", result.noise]
    truth = result.source.truth
    if truth is not None:
        counted = ~ignore_mask(truth, pipeline.ignore_index)
        if counted.any():
            accuracy = float((truth == result.mask)[counted].mean())
            facts.append(f"pixel accuracy {html.percent(accuracy)}")
    return html.note(" · ".join(facts)) + html.legend(result.mask, pipeline.classes, pipeline.palette)


def at_pointer(result: Segmented, pipeline: SegmentationPipeline, x: float, y: float, size: tuple[int, int]) -> str:
    """The most probable classes at a point of the shown image.

    Args:
        result: the segmented image.
        pipeline: its pipeline.
        x: pixels from the left of the shown image.
        y: pixels from its top.
        size: width and height of the shown image.
    """
    height, width = result.mask.shape
    column = min(width - 1, max(0, int(x * width / size[0])))
    row = min(height - 1, max(0, int(y * height / size[1])))
    title = f"Pixel ({column}, {row})"
    if result.source.truth is not None:
        label = int(result.source.truth[row, column])
        title += f", ground truth {pipeline.classes[label] if label < len(pipeline.classes) else 'ignore'}"
    if result.probabilities is None:
        name = pipeline.classes[int(result.mask[row, column])]
        return html.note(f"{title}: {name}. Probabilities are kept for smaller images only.")
    values = result.probabilities[:, row, column].astype(np.float32)
    best = np.argsort(-values, kind="stable")[:4]
    return html.bars([(pipeline.classes[i], pipeline.palette[i], float(values[i])) for i in best], title)


def _pipeline(run: AppRun) -> SegmentationPipeline:
    if run.segmentation is None:
        raise UserError(f"{run.name}: must be a run with a segmentation head.")
    return run.segmentation
