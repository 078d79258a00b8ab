"""The images in the diagram: inputs and outputs of the run's own network on a validation image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unetdiff.data.base import collate
from unetdiff.data.transforms import to_model_range
from unetdiff.diffusion.codecs import Codec
from unetdiff.diffusion.conditioning.base import Conditioning
from unetdiff.diffusion.inpainting import with_mask
from unetdiff.diffusion.mask_codec import MaskCodec
from unetdiff.diffusion.noise import noise_for
from unetdiff.diffusion.processes.load import process_of
from unetdiff.errors import UserError
from unetdiff.reports.dataset_groups import choose, open_dataset
from unetdiff.reports.embed import data_uri
from unetdiff.reports.runs import Run
from unetdiff.reports.samples import load_generator
from unetdiff.segmentation.palette import colorize
from unetdiff.segmentation.pipeline import SegmentationPipeline


@torch.no_grad()
def illustrations(run: Run, seed: int = 0, noise_level: float = 0.55) -> dict[str, str]:
    """Data URIs of a run's inputs ("image", "noised") and outputs ("mask", "noise"), as far as it has the heads.

    {} for a run without its dataset or readable weights; the diagram then shows placeholders.

    noise_level: sigma_t of the noised image.
    """
    if run.model is None:
        return {}
    try:
        return _illustrations(run, run.model, seed, noise_level)
    except UserError:  # the page says why where the masks or samples are missing
        return {}


def _illustrations(run: Run, model: Path, seed: int, noise_level: float) -> dict[str, str]:
    dataset = open_dataset(run, layout=_generates_masks(run))
    item = dataset[choose(dataset, 1, seed)[0]]
    uris = {"image": data_uri(item["image"])}
    if "segmentation" in run.heads:
        segmenter = SegmentationPipeline.from_pretrained(model)
        uris["mask"] = data_uri(colorize(segmenter(item["image"]).mask, segmenter.palette), photo=False)
    if "diffusion" in run.heads:
        pipeline = load_generator(model)
        size = (item["image"].shape[-2], item["image"].shape[-1])
        clean = _clean(pipeline.codec, item)  # (1, C, h, w)
        process = process_of(pipeline.scheduler)
        steps = process.at_fraction(torch.linspace(0, 1, process.num_timesteps))
        t = steps[(process.alpha_sigma(steps)[1] - noise_level).abs().argmin()][None]
        noised = process.add_noise(clean, noise_for(seed, 0, clean.shape[1:])[None], t)
        conditioning = Conditioning()
        if pipeline.conditioner is not None:
            conditioner = pipeline.conditioner
            if conditioner.batch_key in item:
                conditions = conditioner.from_batch(collate([item]))
            else:
                conditions = conditioner.null_condition(1, size)
            grid = clean.shape[-2], clean.shape[-1]
            conditioning = with_mask(conditioner(conditions, grid), conditioner, grid, pipeline.codec)
        output = pipeline.unet.eval()(conditioning.concat_channels(noised), t, conditioning.tokens).sample
        uris["noised"] = data_uri((pipeline.codec.decode(noised)[0] / 2 + 0.5).clamp(0, 1))
        channels = 3 if output.shape[1] >= 3 else 1  # two channels do not make an image
        uris["noise"] = data_uri((output[0, :channels] / 4 + 0.5).clamp(0, 1))  # shows -2 to 2
    return uris


def _generates_masks(run: Run) -> bool:
    return "diffusion" in run.heads and (run.config.get("diffusion") or {}).get("target") == "mask"


def _clean(codec: Codec, item: Mapping[str, Any]) -> Tensor:
    """The diffusion target of an item, (1, C, h, w): its image, the image's latents, or its mask."""
    if isinstance(codec, MaskCodec):
        return codec.encode_masks(item["mask"][None])
    return codec.encode(to_model_range(item["image"])[None])
