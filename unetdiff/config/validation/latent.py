"""Constraints on the `latent:` section: which networks and tasks read latents, and when these can be cached."""

from __future__ import annotations

from unetdiff.config.schema import RunConfig
from unetdiff.data.config import unbounded_augmentation
from unetdiff.errors import config_error
from unetdiff.models.config import CLASSIC, RESIDUAL


def validate_latent(config: RunConfig) -> None:
    """Check that task and network fit an autoencoder's latents, and that these can be cached."""
    vae, model = config.latent.vae, config.model
    _validate_cache(config)
    if vae is None:
        return
    if model.encoder.name not in (CLASSIC, RESIDUAL):
        constraint = f"{RESIDUAL} or {CLASSIC} with latent.vae, as pretrained encoders read images"
        raise config_error("model.encoder.name", model.encoder.name, constraint)
    if model.encoder.padding == "valid":
        constraint = "same with latent.vae, as logits are upsampled to the image's size"
        raise config_error("model.encoder.padding", "valid", constraint)
    for key, value in (("sample_size", model.sample_size), ("heads.diffusion", model.heads.diffusion)):
        if value is not None:
            constraint = "null with latent.vae, which determines it"
            raise config_error(f"model.{key}", value, constraint)


def _validate_cache(config: RunConfig) -> None:
    latent = config.latent
    key, cache = "latent.cache", latent.cache
    if latent.cache_dir is not None and cache != "disk":
        raise config_error("latent.cache_dir", latent.cache_dir, f"null with {key}={cache}", f"Use {key}=disk.")
    if cache in ("auto", "none"):
        return
    if latent.vae is None:
        raise config_error(key, cache, "auto or none without latent.vae", "Set latent.vae, or leave it out.")
    augmentation = unbounded_augmentation(config.data.augment)
    if augmentation is not None:
        constraint = f"auto or none with {augmentation}, which makes every view of an image different"
        raise config_error(key, cache, constraint, f"Use none, or leave {augmentation} out; flips can be cached.")
    if config.diffusion.condition == "image":
        constraint = "auto or none with diffusion.condition=image, which is made of the image in each step"
        raise config_error(key, cache, constraint, "Use none.")
