"""The three changes in words, and the images in the diagram: all from the network that was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unetdiff.data.base import collate
from unetdiff.data.transforms import to_model_range
from unetdiff.diffusion.codecs import Codec
from unetdiff.diffusion.conditioning.base import Conditioning
from unetdiff.diffusion.mask_codec import MaskCodec
from unetdiff.diffusion.noise import noise_for
from unetdiff.diffusion.objectives import alpha_sigma
from unetdiff.errors import UserError
from unetdiff.reports.dataset_groups import choose, open_set
from unetdiff.reports.embed import data_uri
from unetdiff.reports.network_spec import Anatomy
from unetdiff.reports.runs import Run
from unetdiff.reports.samples import load_generator
from unetdiff.reports.table import compact
from unetdiff.segmentation.palette import colorize
from unetdiff.segmentation.pipeline import SegmentationPipeline

TARGETS = {
    "epsilon": "the noise in it",
    "v_prediction": "v: noise less image",
    "sample": "the clean image",
}
"""What the diffusion head puts out, by the prediction type."""


@dataclass(frozen=True)
class Change:
    """One of the three, as a card under the diagram."""

    number: int
    title: str
    text: str
    present: bool
    """False: this network does not have it."""


def changes(anatomy: Anatomy, run: Run) -> list[Change]:
    """What turns the segmenter of 2015 into the denoiser, in the numbers of this network."""
    return [_timestep(anatomy), _attention(anatomy, run), _output(anatomy, run)]


def _timestep(anatomy: Anatomy) -> Change:
    why = "A denoiser must know how much noise is in its input. "
    if not anatomy.timestep:
        return Change(1, "Timestep embedding", why + "This network only labels images: it has none.", False)
    how = "scales and shifts" if anatomy.scale_shift else "is added in"
    text = (
        f"{why}The timestep becomes sines and cosines, then goes through an MLP, and {how} every block. "
        "To label a clean image, the timestep is left out."
    )
    return Change(1, "Timestep embedding", text, True)


def _attention(anatomy: Anatomy, run: Run) -> Change:
    why = "A denoiser must know what to draw. "
    if anatomy.cross_attention_dim is None:
        text = why + "This network is told nothing but the image: it has no cross-attention."
        return Change(2, "Cross-attention", text, False)
    sizes = [
        f"{level.size}×{level.size}" if level.size else f"1/{level.stride} size"
        for level in anatomy.levels
        if level.attention
    ]
    if not sizes and anatomy.middle_attention:
        sizes = ["the bottom"]
    diffusion = run.config.get("diffusion") or {}
    tokens = diffusion.get("class_tokens", 1)
    if "diffusion" in run.heads and diffusion.get("condition", "class") == "class":
        many = "one token" if tokens == 1 else f"{tokens} tokens"
        told = f"the class, as {many} of {anatomy.cross_attention_dim} numbers. "
    else:
        told = f"tokens of {anatomy.cross_attention_dim} numbers. "
    text = (
        f"{why}At {_listed(sizes)} every pixel asks, and the tokens answer: {told}"
        "A segmenter is told nothing: it reads one zero token."
    )
    return Change(2, "Cross-attention", text, True)


def _output(anatomy: Anatomy, run: Run) -> Change:
    head = f"{anatomy.head_kernel}×{anatomy.head_kernel}"
    if anatomy.out_channels is None:
        text = (
            f"This network ends in a {head} convolution to {anatomy.num_classes} classes; "
            "a denoiser ends in the channels of the noise."
        )
        return Change(3, "Output convolution", text, False)
    weights = run.head_parameters("diffusion")
    counted = f" ({compact(weights)} weights)" if weights else ""
    if anatomy.num_classes is not None:
        first = f"Where the segmenter has a {head} convolution to {anatomy.num_classes} classes, the denoiser has"
    else:
        first = "Where a segmenter has a 1×1 convolution to its classes, the denoiser has"
    text = (
        f"{first} norm, SiLU and a 3×3 convolution to {anatomy.out_channels} channels, "
        f"as many as its input has{counted}."
    )
    if anatomy.levels[0].encoder_layers == 0:
        text += " This trunk never sees full resolution, so the head takes a skip from the input."
    return Change(3, "Output convolution", text, True)


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else "the bottom"


@torch.no_grad()
def illustrations(run: Run, seed: int = 0, noise_level: float = 0.55) -> dict[str, str]:
    """Data URIs of what really goes into and comes out of a run's network: image, noised, mask, noise.

    {} where the run has no weights or its images are not there: the diagram then draws patterns.
    noise_level: the sigma_t that the noised image is shown at.
    """
    if run.model is None:
        return {}
    try:
        dataset = open_set(run, layout=_draws_masks(run))
    except UserError:
        return {}
    item = dataset[choose(dataset, 1, seed)[0]]
    found = {"image": data_uri(item["image"])}
    if "segmentation" in run.heads:
        segmenter = SegmentationPipeline.from_pretrained(run.model)
        found["mask"] = data_uri(colorize(segmenter(item["image"]).mask, segmenter.palette), photo=False)
    if "diffusion" in run.heads:
        pipeline = load_generator(run.model)
        size = (item["image"].shape[-2], item["image"].shape[-1])
        clean = _clean(pipeline.codec, item)  # (1, C, h, w)
        steps = torch.arange(pipeline.scheduler.config.num_train_timesteps)
        sigma = alpha_sigma(pipeline.scheduler, steps)[1]
        t = (sigma - noise_level).abs().argmin()[None]
        noised = pipeline.scheduler.add_noise(clean, noise_for(seed, 0, clean.shape[1:])[None], t)
        conditioning = Conditioning()
        if pipeline.conditioner is not None:
            conditioner = pipeline.conditioner
            known = conditioner.batch_key in item
            conditions = conditioner.from_batch(collate([item])) if known else conditioner.null_condition(1, size)
            conditioning = conditioner(conditions, (clean.shape[-2], clean.shape[-1]))
        output = pipeline.unet.eval()(conditioning.concat_channels(noised), t, conditioning.tokens).sample
        found["noised"] = data_uri((pipeline.codec.decode(noised)[0] / 2 + 0.5).clamp(0, 1))
        channels = 3 if output.shape[1] >= 3 else 1  # of two there is no image
        found["noise"] = data_uri((output[0, :channels] / 4 + 0.5).clamp(0, 1))  # two deviations either way
    return found


def _draws_masks(run: Run) -> bool:
    return "diffusion" in run.heads and (run.config.get("diffusion") or {}).get("target") == "mask"


def _clean(codec: Codec, item: Mapping[str, Any]) -> Tensor:
    """What is noised of an item: its image, the latents of that, or its mask, (1, C, h, w)."""
    if isinstance(codec, MaskCodec):
        return codec.encode_masks(item["mask"][None])
    return codec.encode(to_model_range(item["image"])[None])
