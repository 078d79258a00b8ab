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
    if config.task != "diffusion":
        constraint = f"null with task={config.task}, whose segmentation head reads pixels"
        raise config_error("latent.vae", vae, constraint, "Use task=diffusion, or pixels.")
    if model.encoder.name not in (CLASSIC, RESIDUAL):
        constraint = f"{RESIDUAL} or {CLASSIC} with latent.vae, as pretrained encoders read images"
        raise config_error("model.encoder.name", model.encoder.name, constraint)
    for key, value in (("sample_size", model.sample_size), ("heads.diffusion", model.heads.diffusion)):
        if value is not None:
            constraint = "null with latent.vae, which determines it"
            raise config_error(f"model.{key}", value, constraint)
