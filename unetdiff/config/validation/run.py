"""The constraints on a whole run, section by section."""

from __future__ import annotations

from unetdiff.config.schema import RunConfig
from unetdiff.config.validation.data import validate_data
from unetdiff.config.validation.diffusion import validate_diffusion
from unetdiff.config.validation.joint import validate_joint
from unetdiff.config.validation.network import validate_heads, validate_network
from unetdiff.config.validation.segmentation import validate_segmentation
from unetdiff.config.validation.training import validate_length, validate_training


def validate(config: RunConfig) -> None:
    """Check a config for combinations that cannot be trained; reads nothing but the config.

    Raises:
        UserError: the first such combination.
    """
    validate_network(config)
    validate_heads(config)
    validate_data(config)
    if config.task != "diffusion":
        validate_segmentation(config)
    if config.task != "segmentation":
        validate_diffusion(config)
    if config.task == "joint":
        validate_joint(config)
    validate_length(config)
    validate_training(config)
