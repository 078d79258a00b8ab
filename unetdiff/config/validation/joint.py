"""Constraints on the `joint:` section."""

from __future__ import annotations

from unetdiff.config.schema import RunConfig
from unetdiff.config.validation.checks import require_at_least, require_positive
from unetdiff.errors import config_error


def validate_joint(config: RunConfig) -> None:
    """Check the weights of the two losses, and that each loss's gradient can be read."""
    joint, training = config.joint, config.training
    require_positive("joint.segmentation_weight", joint.segmentation_weight)
    require_positive("joint.diffusion_weight", joint.diffusion_weight)
    if not 0 < joint.segmentation_fraction <= 1:
        raise config_error("joint.segmentation_fraction", joint.segmentation_fraction, "in (0, 1]")
    require_at_least("joint.log_gradients", joint.log_gradients, 0)
    balanced = joint.weighting == "gradient_norm"
    if training.compile and (balanced or joint.log_gradients):  # several backward passes through one graph
        reader = "joint.weighting=gradient_norm" if balanced else f"joint.log_gradients={joint.log_gradients}"
        constraint = f"false with {reader}, which computes the gradient of each loss"
        raise config_error("training.compile", True, constraint)
    if balanced and training.mixed_precision == "fp16":
        constraint = "bf16 or no with joint.weighting=gradient_norm, whose gradients underflow in fp16"
        raise config_error("training.mixed_precision", "fp16", constraint)
