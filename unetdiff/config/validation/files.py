"""Files and directories that a config names must exist."""

from __future__ import annotations

from pathlib import Path

from unetdiff.config.schema import RunConfig
from unetdiff.data.capabilities import DOWNLOADABLE
from unetdiff.errors import config_error
from unetdiff.files.hub import NAME


def check_files(config: RunConfig) -> None:
    """Check that the files and directories of a config exist.

    Raises:
        UserError: the first that is missing.
    """
    weights, data = config.model.encoder.weights, config.data
    if weights is not None and weights != "imagenet" and not Path(weights).is_file():
        raise config_error("model.encoder.weights", weights, "an existing safetensors file, imagenet or null")
    is_on_hub = data.name == "huggingface" and data.root is not None and NAME.fullmatch(data.root) is not None
    is_needed = data.name != "scenes" and not data.download and not is_on_hub
    if data.root is not None and is_needed and not Path(data.root).exists():
        remedy = "Give its folder: --data.root DIR."
        if data.name in DOWNLOADABLE:
            remedy = "Give its folder (--data.root DIR), or download it: --data.download true."
        raise config_error("data.root", data.root, "the existing folder or file of the dataset", remedy)
    regularization = data.regularization_root
    if regularization is not None and not Path(regularization).is_dir():
        raise config_error("data.regularization_root", regularization, "an existing folder of images, or null")
    if data.unlabelled_root is not None and not Path(data.unlabelled_root).expanduser().is_dir():
        raise config_error("data.unlabelled_root", data.unlabelled_root, "an existing folder of images, or null")
    name, vae = config.model.pretrained, config.latent.vae
    if vae is not None and vae != name and not Path(vae).is_dir():
        raise config_error(
            "latent.vae", vae, "an existing folder with a diffusers AutoencoderKL or AutoencoderTiny, or null"
        )
    source = config.training.init_from
    is_read = not config.training.resume or config.training.lora.rank is not None  # a LoRA run adapts it again
    if source is not None and is_read and not Path(source).is_dir():
        constraint = "an existing run directory, model directory or directory of a diffusers U-Net, or null"
        raise config_error("training.init_from", source, constraint)
