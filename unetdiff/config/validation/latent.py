"""Constraints on the `latent:` section: which networks and tasks read latents."""

from __future__ import annotations

from unetdiff.config.schema import RunConfig
from unetdiff.errors import config_error
from unetdiff.models.config import CLASSIC, RESIDUAL


def validate_latent(config: RunConfig) -> None:
    """Check that task and network fit an autoencoder's latents."""
    vae, model = config.latent.vae, config.model
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
