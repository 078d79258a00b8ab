"""What a config may not say: each impossible combination is refused with key, value and what is right."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from unetdiff.config.validation.config_error import config_error
from unetdiff.config.validation.data import (
    DOWNLOADABLE,
    WITH_CAPTIONS,
    WITH_CLASSES,
    WITH_LABELS,
    WITH_MASKS,
    require_captions,
    validate_data,
)
from unetdiff.config.validation.diffusion import validate_diffusion, validate_joint
from unetdiff.config.validation.network import validate_heads, validate_network
from unetdiff.config.validation.segmentation import LOSSES, validate_inference, validate_segmentation
from unetdiff.config.validation.training import validate_length, validate_training

if TYPE_CHECKING:
    from unetdiff.config.parsing import RunConfig

__all__ = [
    "LOSSES",
    "WITH_CAPTIONS",
    "WITH_CLASSES",
    "WITH_LABELS",
    "WITH_MASKS",
    "check_files",
    "require_captions",
    "validate",
    "validate_inference",
]


def validate(config: RunConfig) -> None:
    """Refuse a config that cannot be trained (UserError); looks at nothing but the config."""
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


def check_files(config: RunConfig) -> None:
    """Refuse files that are named and not there, and half precision that the machine has not."""
    weights, root, vae = config.model.encoder.weights, config.data.root, config.diffusion.latent.vae
    if weights is not None and weights != "imagenet" and not Path(weights).is_file():
        raise config_error(
            "model.encoder.weights", weights, "does not exist", 'give a safetensors file, "imagenet", or null'
        )
    if (
        root is not None
        and config.data.name != "scenes"
        and not config.data.download
        and not Path(root).expanduser().exists()
    ):
        hint = ", or set data.download to true" if config.data.name in DOWNLOADABLE else ""
        raise config_error("data.root", root, "does not exist", f"give the place of the set{hint}")
    if vae is not None and config.task != "segmentation" and not Path(vae).is_dir():
        raise config_error(
            "diffusion.latent.vae", vae, "does not exist", "give a diffusers AutoencoderKL's folder, or null"
        )
    start = config.training.init_from
    if start is not None and not config.training.resume and not Path(start).is_dir():  # a resumed run does not read it
        right = "give a run directory, a model directory or a directory of a diffusers U-Net, or null"
        raise config_error("training.init_from", start, "does not exist", right)
    if config.training.mixed_precision == "fp16":
        import torch

        if not torch.cuda.is_available():
            raise config_error("training.mixed_precision", "fp16", "needs a GPU", "use auto, bf16 or no")
