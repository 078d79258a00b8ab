"""Constraints on the `joint:` section."""

from __future__ import annotations

from unetdiff.config.schema import RunConfig
from unetdiff.errors import config_error
from unetdiff.models.config import SegmentationHeadConfig


def validate_joint(config: RunConfig) -> None:
    """Check what both heads share, and that each loss's gradient can be read."""
    joint, training = config.joint, config.training
    if joint.backbone_gradient == 0 and joint.log_gradients:
        constraint = "0 with joint.backbone_gradient=0, which leaves one gradient to compare"
        raise config_error("joint.log_gradients", joint.log_gradients, constraint)
    if joint.backbone_gradient == 0 and joint.weighting == "gradient_norm":
        constraint = "fixed or uncertainty with joint.backbone_gradient=0, which leaves one gradient"
        raise config_error("joint.weighting", "gradient_norm", constraint)
    if joint.backbone_gradient != 1 and config.segmentation.context != "none":
        constraint = f"1 with segmentation.context={config.segmentation.context}, which takes a pass of its own"
        raise config_error("joint.backbone_gradient", joint.backbone_gradient, constraint)
    if joint.segment_noise_below:
        _require_one_pass(config)
    balanced = joint.weighting == "gradient_norm"
    if training.compile and (balanced or joint.log_gradients):  # several backward passes through one graph
        reader = "joint.weighting=gradient_norm" if balanced else f"joint.log_gradients={joint.log_gradients}"
        constraint = f"false with {reader}, which computes the gradient of each loss"
        raise config_error("training.compile", True, constraint)
    frozen = "training.freeze_backbone=true" if training.freeze_backbone else None
    if frozen and joint.log_gradients:
        constraint = f"0 with {frozen}, which leaves no shared layer to train"
        raise config_error("joint.log_gradients", joint.log_gradients, constraint)
    frozen = frozen or (None if training.lora.rank is None else f"training.lora.rank={training.lora.rank}")
    if balanced and frozen:
        constraint = f"fixed or uncertainty with {frozen}, which freezes the layer whose gradients it compares"
        raise config_error("joint.weighting", "gradient_norm", constraint)
    if balanced and training.mixed_precision == "fp16":
        constraint = "bf16 or no with joint.weighting=gradient_norm, whose gradients underflow in fp16"
        raise config_error("training.mixed_precision", "fp16", constraint)


def _require_one_pass(config: RunConfig) -> None:
    """UserError where the pass of the segmentation head is not the denoiser's without its condition."""
    head = config.model.heads.segmentation or SegmentationHeadConfig()
    passes = {
        f"model.heads.segmentation.own_decoder_levels={head.own_decoder_levels}": head.own_decoder_levels,
        "model.heads.segmentation.task_embedding=true": head.task_embedding,
        f"segmentation.context={config.segmentation.context}": config.segmentation.context != "none",
    }
    other = next((name for name, differs in passes.items() if differs), None)
    if other is not None:
        constraint = f"0 with {other}: the maps that denoise an image are not those that segment it"
        raise config_error("joint.segment_noise_below", config.joint.segment_noise_below, constraint)
