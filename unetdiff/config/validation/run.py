"""The constraints on a whole run, section by section."""

from __future__ import annotations

from dataclasses import asdict

from unetdiff.config.bounds import check_bounds
from unetdiff.config.schema import RunConfig, flatten
from unetdiff.config.validation.conditioning import validate_inpainting
from unetdiff.config.validation.data import validate_data
from unetdiff.config.validation.diffusion import validate_diffusion
from unetdiff.config.validation.joint import validate_joint
from unetdiff.config.validation.latent import validate_latent
from unetdiff.config.validation.lora import validate_lora
from unetdiff.config.validation.network import validate_heads, validate_network
from unetdiff.config.validation.segmentation import validate_segmentation
from unetdiff.config.validation.training import validate_length, validate_training


def validate(config: RunConfig) -> None:
    """Check a config for values out of range and combinations that cannot be trained; reads nothing but the config.

    Raises:
        UserError: the first of them.
    """
    check_bounds(flatten(asdict(config)))
    validate_network(config)
    validate_heads(config)
    validate_data(config)
    validate_latent(config)
    validate_inpainting(config)
    if config.task != "diffusion":
        validate_segmentation(config)
    if config.task != "segmentation":
        validate_diffusion(config)
    if config.task == "joint":
        validate_joint(config)
    validate_length(config)
    validate_training(config)
    validate_lora(config)
