"""Adapters of diffusers and peft (LoRA) on a U-Net; their files have diffusers' names of the layers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from diffusers.loaders import PeftAdapterMixin
from diffusers.utils import convert_unet_state_dict_to_peft
from torch import Tensor, nn

from unetdiff.errors import UserError
from unetdiff.files import tensors
from unetdiff.files.writing import write_into_directory
from unetdiff.models.diffusers_names import from_diffusers_name, to_diffusers_name

LORA_WEIGHTS = "pytorch_lora_weights.safetensors"
"""diffusers' file of an adapter."""
METADATA = "lora_adapter_metadata"
"""Key of the adapter's config in the header of that file."""


class AdapterMixin(PeftAdapterMixin, nn.Module):  # type: ignore[misc]
    """The methods of `UNet` for adapters: diffusers' (`add_adapter`, `set_adapters`, `fuse_lora`, `unload_lora`, ...).

    Layers are named as here or as in diffusers: both end in the same names (to_q, down_blocks.0.resnets.0.conv1, ...).
    """

    peft_config: dict[str, Any]

    def require_no_adapter(self, what: str) -> None:
        """UserError while adapters are loaded: the network's file would have the names of their layers."""
        if getattr(self, "peft_config", None):
            remedy = "Merge it with fuse_lora() and unload_lora(), or save it alone with save_lora_adapter."
            raise UserError(f"{what}: this UNet has the adapter '{next(iter(self.peft_config))}'. {remedy}")

    def load_lora_adapter(  # type: ignore[override]
        self,
        pretrained_model_name_or_path_or_dict: str | Path | Mapping[str, Tensor],
        prefix: str | None = "unet",
        hotswap: bool = False,
        **options: Any,
    ) -> None:
        """Load a LoRA of diffusers' U-Net, as stock `pipe.load_lora_weights` does.

        Args:
            pretrained_model_name_or_path_or_dict: tensors by diffusers' names, a safetensors file, or a directory with
                pytorch_lora_weights.safetensors.
            prefix: before the names of the U-Net's tensors ("unet"); others are ignored. None: no prefix.
            hotswap: put the tensors in the place of those of a loaded adapter.
            options: diffusers', e.g. adapter_name, network_alphas and metadata.

        Raises:
            UserError: a tensor of a layer that this network does not have or has in another size, by diffusers' name;
                a missing or damaged file.
        """
        source, metadata = pretrained_model_name_or_path_or_dict, options.pop("metadata", None)
        if not isinstance(source, Mapping):
            path = Path(source) / (options.pop("subfolder", None) or "")
            name = options.pop("weight_name", None) or LORA_WEIGHTS
            path = path / name if path.is_dir() else path
            header = tensors.open_tensors(path).metadata() or {}
            metadata = json.loads(header[METADATA]) if metadata is None and METADATA in header else metadata
            source = tensors.read_tensors(path)
        state = _renamed(_without(prefix, source), from_diffusers_name)
        if not any("lora_A" in name for name in state):
            state = convert_unet_state_dict_to_peft(state)
        self._require_layers(state)
        alphas = options.pop("network_alphas", None)
        if alphas:
            options["network_alphas"] = {
                f"unet.{k}": v for k, v in _renamed(_without(prefix, alphas), from_diffusers_name).items()
            }
        if metadata:
            options["metadata"] = {
                f"unet.{k}": v for k, v in _of_config(_without(prefix, metadata), from_diffusers_name).items()
            }
        state = {f"unet.{name}": tensor for name, tensor in state.items()}
        super().load_lora_adapter(state, prefix="unet", hotswap=hotswap, **options)

    def _require_layers(self, state: Mapping[str, Tensor]) -> None:
        layers = dict(self.named_modules())
        for name, tensor in state.items():
            layer, mark, which = name.partition(".lora_")
            if not mark:
                continue
            shown = f"load_lora_adapter: {to_diffusers_name(name)}"
            if layer not in layers:
                raise UserError(f"{shown}: must be of a layer of this network. Load a LoRA of the same architecture.")
            base: Any = layers[layer]
            weight = getattr(base, "base_layer", base).weight
            side = 1 if which.startswith("A") else 0
            if which[:1] in "AB" and tensor.ndim > 1 and tensor.shape[side] != weight.shape[side]:
                constraint = f"{weight.shape[side]} channels on side {side}"
                raise UserError(f"{shown}: must have {constraint} (got {tuple(tensor.shape)}).")

    def lora_state_dict(self, adapter_name: str = "default") -> dict[str, Tensor]:
        """The tensors of an adapter by diffusers' names, for stock `pipe.save_lora_weights(directory, ...)`.

        Raises:
            UserError: no such adapter.
        """
        from peft.utils import get_peft_model_state_dict

        known = list(getattr(self, "peft_config", {}))
        if adapter_name not in known:
            raise UserError(
                f"adapter_name={adapter_name}: must be one of the loaded adapters ({', '.join(known) or 'none'})."
            )
        return _renamed(get_peft_model_state_dict(self, adapter_name=adapter_name), to_diffusers_name)

    def save_lora_adapter(  # type: ignore[override]
        self,
        save_directory: str | Path,
        adapter_name: str = "default",
        weight_name: str = LORA_WEIGHTS,
        prefix: str | None = None,
    ) -> None:
        """Write an adapter as safetensors with diffusers' names, and its config in the header.

        Args:
            save_directory: may exist; other files are kept.
            adapter_name: of a loaded adapter.
            weight_name: name of the file.
            prefix: before all names. None: for `unet.load_lora_adapter(directory, prefix=None)`; "unet": for stock
                `pipe.load_lora_weights(directory)`.

        Raises:
            UserError: no such adapter.
            OSError: e.g. a full disk.
        """
        before = "" if prefix is None else f"{prefix}."
        state = {f"{before}{name}": tensor for name, tensor in self.lora_state_dict(adapter_name).items()}
        settings = _of_config(_set_options(self.peft_config[adapter_name]), to_diffusers_name)
        config = {f"{before}{key}": value for key, value in settings.items()}
        header = {"format": "pt", METADATA: json.dumps(config, indent=2, sort_keys=True)}
        write_into_directory(
            Path(save_directory), lambda aside: tensors.write_tensors(state, aside / weight_name, header)
        )


def _set_options(settings: Any) -> dict[str, Any]:
    """Rank, factor and layers of a peft config, and its other options that differ from their defaults: an older peft
    reads them too. Those of training are left out: diffusers would sample with the dropout."""
    config, defaults = settings.to_dict(), type(settings)().to_dict()
    always, of_training = ("r", "lora_alpha", "target_modules"), ("lora_dropout", "revision", "inference_mode")
    return {k: v for k, v in config.items() if k in always or (k not in of_training and v != defaults.get(k))}


def _without(prefix: str | None, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values under a prefix, without it."""
    if prefix is None:
        return dict(values)
    return {k.removeprefix(f"{prefix}."): v for k, v in values.items() if k.startswith(f"{prefix}.")}


def _renamed(values: Mapping[str, Any], rename: Callable[[str], str]) -> dict[str, Any]:
    return {rename(name): value for name, value in values.items()}


def _of_config(config: Mapping[str, Any], rename: Callable[[str], str]) -> dict[str, Any]:
    """A peft config with other names of the layers; a target that is a regular expression stays."""
    result = dict(config)
    for key, value in config.items():
        if key in ("target_modules", "exclude_modules") and isinstance(value, list | set | tuple):
            result[key] = sorted(map(rename, value))
        elif key in ("rank_pattern", "alpha_pattern") and value:
            result[key] = {"^" * k.startswith("^") + rename(k.removeprefix("^")): v for k, v in value.items()}
    return result
