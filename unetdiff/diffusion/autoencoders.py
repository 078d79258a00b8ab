"""Frozen autoencoders of images in diffusers' format: AutoencoderKL and AutoencoderTiny, loaded strictly."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.utils import logging
from safetensors import SafetensorError

from unetdiff.diffusion.quiet import errors_only
from unetdiff.errors import FileError, UserError
from unetdiff.files.pipeline_parts import part
from unetdiff.models import loading
from unetdiff.models.bounds import MAX_CHANNELS, MAX_LAYERS, MAX_LEVELS

Autoencoder = AutoencoderKL | AutoencoderTiny
CLASSES: dict[str, Any] = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
"""`_class_name` of a config -> the class: Rombach et al. 2022's autoencoder, and its distilled form (Bohan, "TAESD",
2023), whose latents are a function of the image instead of a distribution."""
LISTS = (
    "block_out_channels",
    "down_block_types",
    "up_block_types",
    "encoder_block_out_channels",
    "decoder_block_out_channels",
    "num_encoder_blocks",
    "num_decoder_blocks",
)
"""Keys with one value per level."""
LAYERS = ("layers_per_block", "num_encoder_blocks", "num_decoder_blocks")
"""Keys that count layers."""


def load_autoencoder(path: str | Path, key: str = "latent.vae") -> Autoencoder:
    """A folder with an autoencoder as diffusers saves it, or one that has it in vae/ (Stable Diffusion's).

    Args:
        path: the folder.
        key: named in messages.

    Raises:
        UserError: no such folder, another kind of model, a pickle, or weights that do not fit.
    """
    constraint = f"{key}={path}: must be a folder with a diffusers {' or '.join(CLASSES)}"

    def config_error(why: str) -> UserError:
        return UserError(f"{constraint} (it {why}).")

    folder = Path(path)
    if not (folder / loading.CONFIG).is_file() and (part(folder, "vae") / loading.CONFIG).is_file():
        folder = part(folder, "vae")
    if not (folder / loading.CONFIG).is_file():
        raise config_error("has no config.json" if folder.is_dir() else "does not exist")
    file = folder / loading.WEIGHTS
    try:
        config = loading.read_json(folder / loading.CONFIG)
        if config.get("_class_name") not in CLASSES:
            raise config_error(f"has a {config.get('_class_name')}")
        header = loading.read_header(file)
        outline = loading.outline(lambda: _from_config(folder / loading.CONFIG, config), folder / loading.CONFIG)
        described, found = (
            sum(math.prod(entry.shape) for entry in named.values()) for named in (outline.state_dict(), header)
        )
        if described != found:  # names and shapes of attention changed between diffusers' versions
            raise FileError.of(folder, f"its config describes {described:,} weights, {file.name} holds {found:,}")
        loading.read_tensors(file)
    except FileError as error:
        raise UserError(f"{constraint}. {error}") from None
    try:
        # without low_cpu_mem_usage, which would leave a missing tensor on the meta device
        with errors_only(logging):  # of keys that AutoencoderTiny itself writes into its config
            vae, info = CLASSES[config["_class_name"]].from_pretrained(
                folder, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
            )
    except (OSError, RuntimeError, ValueError, TypeError, SafetensorError) as error:
        raise config_error(f"cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    wrong = [*info["missing_keys"], *info["unexpected_keys"]]
    if wrong:
        raise config_error(f"has {len(wrong)} missing or unexpected tensors: {wrong[0]}, …")
    for name, verb in (("in_channels", "takes"), ("out_channels", "returns")):
        if vae.config[name] != 3:
            raise config_error(f"{verb} images of {vae.config[name]} channels")
    if factor_of(vae) != _decoding_factor(vae):
        raise config_error(f"encodes by a factor of {factor_of(vae)} and decodes by {_decoding_factor(vae)}")
    return vae


def factor_of(vae: Autoencoder) -> int:
    """Downsampling factor: pixels along one side of a latent cell."""
    levels = "encoder_block_out_channels" if isinstance(vae, AutoencoderTiny) else "block_out_channels"
    return 2 ** (len(vae.config[levels]) - 1)


def _decoding_factor(vae: Autoencoder) -> int:
    if not isinstance(vae, AutoencoderTiny):
        return factor_of(vae)
    return vae.config["upsampling_scaling_factor"] ** (len(vae.config["decoder_block_out_channels"]) - 1)


def fingerprint(vae: Autoencoder) -> str:
    """A hash of the weights and the config: the same for the same latents."""
    digest = hashlib.sha256(repr(sorted(loading.plain(vae.config).items())).encode())
    for name, tensor in sorted(vae.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _from_config(path: Path, config: dict[str, Any]) -> Autoencoder:
    """An autoencoder of a config whose numbers of layers and levels are bounded, as they are built one by one."""
    for key, value in config.items():
        numbers = value if isinstance(value, list) else [value]
        most = MAX_LAYERS if key in LAYERS else MAX_CHANNELS
        if len(numbers) > MAX_CHANNELS or (key in LISTS and not 1 <= len(numbers) <= MAX_LEVELS):
            raise FileError.of(path, f"{key}: must be 1 to {MAX_LEVELS} values (got {len(numbers)})")
        if any(isinstance(number, int) and not 0 <= number <= most for number in numbers):
            raise FileError.of(path, f"{key}={value!r:.80}: must be in [0, {most}]")
    with errors_only(logging):  # of keys that AutoencoderTiny itself writes into its config
        return CLASSES[config["_class_name"]].from_config(config)
