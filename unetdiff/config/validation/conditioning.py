"""Constraints on `diffusion.condition`: the dataset must have it, and the network must take it in."""

from __future__ import annotations

from unetdiff.config.schema import RunConfig
from unetdiff.config.validation.data import require_captions
from unetdiff.data.capabilities import WITH_LABELS, WITH_MASKS
from unetdiff.diffusion.config import InpaintingConfig
from unetdiff.errors import config_error


def validate_conditioning(config: RunConfig) -> None:
    """Check the condition against dataset, task and network."""
    diffusion, dim = config.diffusion, config.model.conditioning.cross_attention_dim
    _validate_source(config)
    if diffusion.condition in ("class", "text") and dim is None:
        raise config_error(
            "model.conditioning.cross_attention_dim",
            None,
            f"set with diffusion.condition={diffusion.condition}, whose tokens enter by cross-attention",
            "Give e.g. 64, or use diffusion.condition=none.",
        )
    if diffusion.condition == "text" and not diffusion.text.projection:
        _validate_prompts(config)
    if diffusion.condition == "layout":
        _validate_layout(config)
    if diffusion.condition == "image" and diffusion.image.degradation != "none":
        bound = 1 if diffusion.image.degradation == "downscale" else 0
        if diffusion.image.strength <= bound:
            constraint = f"greater than {bound} with diffusion.image.degradation={diffusion.image.degradation}"
            raise config_error("diffusion.image.strength", diffusion.image.strength, constraint)


def _validate_source(config: RunConfig) -> None:
    """Labels, masks or captions of the dataset, as the condition needs them."""
    diffusion, data = config.diffusion, config.data
    several = diffusion.condition == "class" and diffusion.max_classes > 1
    needs = {"class": ("class labels", WITH_LABELS), "layout": ("masks", WITH_MASKS)}
    if several:
        needs["class"] = ("masks (diffusion.max_classes above 1)", WITH_MASKS)
    if diffusion.condition in needs:
        what, datasets = needs[diffusion.condition]
        if data.name not in datasets:
            raise config_error(
                "diffusion.condition",
                diffusion.condition,
                f"none with data.name={data.name}, which has no {what}",
                f"Or use data.name={', '.join(datasets)}.",
            )
    if config.task == "joint" and diffusion.condition in ("layout", "image"):
        constraint = "class, text or none with task=joint: it would leak the mask, or need input channels of its own"
        raise config_error("diffusion.condition", diffusion.condition, constraint)
    if diffusion.condition == "text":
        require_captions("diffusion.condition", "text", data)


def _validate_prompts(config: RunConfig) -> None:
    """Stable Diffusion's conditioning: latents, and prompts of one length."""
    if config.latent.vae is None:
        constraint = "true without latent.vae: Stable Diffusion's prompts condition latents"
        raise config_error("diffusion.text.projection", False, constraint, "Set latent.vae, or model.pretrained.")
    tokens = config.diffusion.text.max_tokens
    if tokens is not None:
        constraint = "null with diffusion.text.projection=false, which pads prompts to the encoder's maximum"
        raise config_error("diffusion.text.max_tokens", tokens, constraint)


def validate_inpainting(config: RunConfig) -> None:
    """Inpainting needs latents and Stable Diffusion's prompts, and the images themselves in each step."""
    diffusion, key = config.diffusion, "diffusion.inpainting.enabled"
    default = InpaintingConfig()
    if not diffusion.inpainting.enabled:
        fraction = diffusion.inpainting.full_mask_fraction
        if fraction != default.full_mask_fraction:
            constraint = f"{default.full_mask_fraction} without {key}"
            raise config_error("diffusion.inpainting.full_mask_fraction", fraction, constraint)
        return
    if config.task != "diffusion":
        constraint = f"false with task={config.task}, whose segmentation head sees images without a mask"
        remedy = "Give a model of 4 input channels." if config.model.pretrained else ""
        raise config_error(key, True, constraint, remedy)
    if config.latent.vae is None or diffusion.condition != "text" or diffusion.text.projection:
        constraint = "false without latent.vae, diffusion.condition=text and diffusion.text.projection=false"
        raise config_error(key, True, constraint, "Set them, or model.pretrained.")
    if config.latent.cache not in ("auto", "none"):
        constraint = (
            f"auto or none with {key}=true: the mask of an image is another in each step, and so are its latents"
        )
        raise config_error("latent.cache", config.latent.cache, constraint, "Use none.")


def _validate_layout(config: RunConfig) -> None:
    layout, dim = config.diffusion.layout, config.model.conditioning.cross_attention_dim
    if not layout.channels and (not layout.grid or dim is None):
        raise config_error(
            "diffusion.layout.channels",
            0,
            "positive without layout tokens",
            "Give e.g. 8, or set diffusion.layout.grid and model.conditioning.cross_attention_dim.",
        )
