"""Directories of diffusers' `StableDiffusionPipeline`, as the parts of a `GenerationPipeline` and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unetdiff.diffusion.conditioning.prompt import PromptConditioner
from unetdiff.diffusion.conditioning.text_encoder import max_length
from unetdiff.diffusion.mask_codec import INDEX
from unetdiff.errors import FileError, UserError
from unetdiff.files import pipeline_parts, records
from unetdiff.models.unet import UNet

STABLE_DIFFUSION, INPAINTING = "StableDiffusionPipeline", "StableDiffusionInpaintPipeline"
LATENT_DIFFUSION = "LDMTextToImagePipeline"
PIPELINES = (STABLE_DIFFUSION, "StableDiffusionImg2ImgPipeline", INPAINTING, LATENT_DIFFUSION)
"""Classes of pipelines with Stable Diffusion's parts; Latent Diffusion's has a text encoder of diffusers' own."""
LDM_MODULE, LDM_LIBRARY = "diffusers.pipelines.latent_diffusion", "latent_diffusion"
"""Module of Latent Diffusion's text encoder, and its name in model_index.json."""
UNUSED = ("safety_checker", "feature_extractor", "image_encoder", "requires_safety_checker")
"""Parts of theirs that are not read."""
PARTS = ("unet", "scheduler", "vae", "text_encoder", "tokenizer")


def prompt_conditioner(directory: Path, unet: Any, text_encoder: Any, tokenizer: Any) -> PromptConditioner:
    """The conditioner of a Stable Diffusion directory, whose parts it follows from.

    Raises:
        FileError: the U-Net takes other channels than latents, or than latents, mask and masked latents.
    """
    config = unet.config
    latents = config["heads"]["diffusion"]["out_channels"] if isinstance(unet, UNet) else config["out_channels"]
    extra = config["in_channels"] - latents
    if extra not in (0, latents + 1):
        known = f"{latents}, or {2 * latents + 1} for inpainting"
        raise FileError.of(directory / "unet", f"in_channels={config['in_channels']}: must be {known}")
    return PromptConditioner(text_encoder.config.hidden_size, max_length(text_encoder, tokenizer), extra)


def save_stable_diffusion(pipeline: Any, directory: Path) -> None:
    """Write a pipeline whose conditioner is a `PromptConditioner` as a directory of diffusers' own.

    The U-Net is a `UNet2DConditionModel`; a segmentation head lies next to its weights, where diffusers ignores it.

    Raises:
        UserError: a U-Net that diffusers cannot express, by key.
    """
    if pipeline.vae is None or pipeline.text_encoder is None or pipeline.tokenizer is None:
        raise UserError("save_pretrained: Stable Diffusion must have an autoencoder, a text encoder and a tokenizer.")
    is_latent_diffusion = type(pipeline.text_encoder).__module__.startswith(LDM_MODULE)
    names = pipeline_parts.LATENT_DIFFUSION if is_latent_diffusion else {}
    kind = (
        LATENT_DIFFUSION if is_latent_diffusion else INPAINTING if pipeline.conditioner.channels else STABLE_DIFFUSION
    )
    index: dict[str, Any] = {"_class_name": kind, "_diffusers_version": _version()}
    for name in PARTS:
        part, folder = getattr(pipeline, name), directory / names.get(name, name)
        kind, library = type(part).__name__, type(part).__module__.partition(".")[0]
        library = LDM_LIBRARY if type(part).__module__.startswith(LDM_MODULE) else library
        if isinstance(part, UNet):
            part.to_diffusers(folder)
            kind, library = "UNet2DConditionModel", "diffusers"
        else:
            part.save_pretrained(folder)
        index[folder.name] = [library, kind]
    if not is_latent_diffusion:
        index |= {name: [None, None] for name in UNUSED[:-1]} | {UNUSED[-1]: False}
    records.write_json(directory / INDEX, index, indent=2)


def _version() -> str:
    import diffusers

    return diffusers.__version__
