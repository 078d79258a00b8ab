"""Strict loading of a model directory: config.json and its safetensors files, which must agree.

What the config describes is built on the meta device first, and compared with the header of the weights file: a config
or a file that is wrong takes no memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from unetdiff.errors import FileError, UserError, did_you_mean
from unetdiff.files import records, tensors
from unetdiff.files.folders import files_in, regular_file
from unetdiff.models import weights_files
from unetdiff.models.config import STOCK_CLASSES, HeadsConfig, ModelConfig
from unetdiff.models.weights_files import WEIGHTS as WEIGHTS
from unetdiff.models.weights_files import find_weights, is_index

Model = TypeVar("Model", bound=nn.Module)

CONFIG = "config.json"
EMA_KEYS = frozenset(
    {"decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power"}
)
"""Keys that diffusers' `EMAModel.save_pretrained` adds to a config."""
BUILDING_ERRORS = (TypeError, ValueError, RuntimeError, KeyError, IndexError, ArithmeticError)


class Described(Protocol):
    """What is compared of a tensor: a tensor, or an entry of a header."""

    @property
    def shape(self) -> Any: ...

    @property
    def dtype(self) -> Any: ...


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A model's config as plain, fresh dicts and lists, without diffusers' own entries (_class_name, ...)."""
    return json.loads(json.dumps({k: v for k, v in config.items() if not k.startswith("_")}))


def build(cls: type[Model], config: dict[str, Any]) -> Model:
    """A model of this config with random weights; `encoder.weights` is not read, but stays in the config."""
    encoder = config.get("encoder") or {}
    model: Any = cls(**{**config, "encoder": {**encoder, "weights": None}})
    model.register_to_config(encoder={**model.config["encoder"], "weights": encoder.get("weights")})
    return model


def load(cls: type[Model], directory: Path, dtype: torch.dtype | None, variant: str | None = None) -> Model:
    """See `UNet.from_pretrained`."""
    config, file = read_config(directory), find_weights(directory, variant)
    check_file(file, outline(lambda: build(cls, config), directory / CONFIG).state_dict())
    model = build(cls, config)
    load_weights(model, file)
    if dtype is not None:
        nn.Module.to(model, dtype=dtype)  # not ModelMixin.to, which warns about every dtype
    return model.eval()


def outline(make: Callable[[], Model], path: Path) -> Model:
    """A model without memory for its tensors (on the meta device).

    Raises:
        FileError: naming the config file `path`, whose values describe no model.
    """
    try:
        with torch.device("meta"):
            return make()
    except UserError as error:
        raise FileError.of(path, str(error).rstrip(".")) from None
    except BUILDING_ERRORS as error:
        raise FileError.of(path, f"describes no model ({' '.join(str(error).split())})") from None


def is_stock(directory: Path) -> bool:
    """Whether the config.json of a directory is that of a U-Net of diffusers."""
    path = directory / CONFIG
    return path.is_file() and records.read_object(path).get("_class_name") in STOCK_CLASSES


def read_config(directory: Path) -> dict[str, Any]:
    """The config.json of one of our model directories, without diffusers' own entries.

    Raises:
        FileError: not a config of a `UNet`, or a key that is missing or unknown.
    """
    path = directory / CONFIG
    config = read_json(path)
    name = config.get("_class_name")
    if name != "UNet":
        raise FileError.of(path, f"_class_name={name}: must be UNet")
    config = {k: v for k, v in config.items() if not k.startswith("_") and k not in EMA_KEYS}
    _require_keys(path, config, ModelConfig(), "")
    return config


def _require_keys(path: Path, section: Mapping[str, Any], default: Any, prefix: str) -> None:
    """FileError for keys that a section of a config lacks or that it does not have."""
    known = [item.name for item in fields(default)]
    unknown, missing = [key for key in section if key not in known], [key for key in known if key not in section]
    if unknown:
        reason = f"'{prefix}{unknown[0]}' is not a key of this version of unetdiff"
        raise FileError.of(path, reason, did_you_mean(unknown[0], known, prefix + "{}"))
    if missing and prefix != "imported.":  # an option added since: its default is what older networks compute
        raise FileError.of(path, f"must have the key '{prefix}{missing[0]}'", "Write it again with save_pretrained.")
    for key in known:
        inner, value = getattr(default, key), section.get(key)
        if is_dataclass(inner) and not isinstance(inner, HeadsConfig):
            if not isinstance(value, dict):
                raise FileError.of(path, f"'{prefix}{key}' must be an object (got {records.type_name(value)})")
            _require_keys(path, value, inner, f"{prefix}{key}.")


def read_json(path: Path) -> dict[str, Any]:
    """The config.json of any model directory.

    Raises:
        FileError: missing, not UTF-8, not JSON, or not an object.
    """
    if not path.is_file():
        raise FileError.of(path.parent, f"must be a model directory with {path.name}")
    return records.read_object(path)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file into a model, strictly; see `fill`."""
    fill(model, read_tensors(path, model.state_dict()), f"'{path}'")


def check_file(
    path: Path, expected: Mapping[str, Described], source_name: Callable[[str], str] = lambda name: name
) -> None:
    """Compare names, shapes and dtypes of a safetensors file with what is expected, without reading its tensors.

    Args:
        path: the file.
        expected: tensors (of any device, meta too) by the file's names.
        source_name: a name -> the name in messages.

    Raises:
        UserError: as of `check` and `read_tensors`.
    """
    check(read_header(path), expected, f"'{path}' does not fit this model", source_name)


def read_tensors(path: Path, expected: Mapping[str, Described] | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name.

    Args:
        path: the file.
        expected: compared with the file's header before its tensors are read; see `check_file`. None: not compared.

    Raises:
        UserError: a file that is missing (names a pickle in its place), a pickle (says how to convert it),
            truncated, of other names, shapes or dtypes, or with a value that is not finite.
    """
    if expected is None:
        read_header(path)
    else:
        check_file(path, expected)
    state = weights_files.read_tensors(path) if is_index(path) else tensors.read_tensors(path)
    require_finite(state, str(path))
    return state


def read_header(path: Path) -> dict[str, tensors.Entry]:
    """dtype and shape of every tensor of a safetensors file, by name. Errors as of `read_tensors`."""
    if path.suffix in tensors.PICKLES:
        raise FileError.of(path, "must be a safetensors file (got a pickle)", tensors.conversion(path))
    if not path.is_file():
        regular_file(path, _instead(path))  # raises
    if is_index(path):
        return weights_files.read_header(path)
    return tensors.read_header(path)


def require_finite(state: Mapping[str, Tensor], where: str) -> None:
    """FileError naming the first tensor with NaN or infinite values."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and tensor.device.type != "meta" and not bool(torch.isfinite(tensor).all()):
            raise FileError.of(where, f"'{name}' must be finite (got NaN or infinity)", "Use another checkpoint.")


def _instead(path: Path) -> str:
    """The files in the place of a missing weights file, and what to do."""
    others = files_in(path.parent) if path.parent.is_dir() else []
    pickles = [other for other in others if other.suffix in tensors.PICKLES]
    if pickles:
        return f"{pickles[0].name} is a pickle. {tensors.conversion(pickles[0])}"
    return next((f"Found {other.name}." for other in others if other.suffix == ".safetensors"), "")


def fill(
    model: nn.Module, state: Mapping[str, Tensor], source: str, source_name: Callable[[str], str] = lambda name: name
) -> None:
    """Copy tensors into a model, strictly: the same names, shapes and kinds of numbers.

    Args:
        model: a model on any device but meta.
        state: tensors by the model's names.
        source: for the message.
        source_name: the model's name of a tensor -> the source's, for the message.

    Raises:
        UserError: naming the source and the tensors that do not fit; the model is then unchanged.
    """
    check(state, model.state_dict(), f"{source} does not fit this model", source_name)
    model.load_state_dict(state, strict=True)


def check(
    state: Mapping[str, Described],
    expected: Mapping[str, Described],
    complaint: str,
    source_name: Callable[[str], str] = lambda name: name,
) -> None:
    """Refuse (UserError) tensors that are missing, unexpected, of another shape or kind of number, by name.

    Floating-point numbers of any precision are of one kind.
    """
    both = sorted(set(state) & set(expected))
    shapes = [
        f"{source_name(k)} {tuple(state[k].shape)} instead of {tuple(expected[k].shape)}"
        for k in both
        if tuple(state[k].shape) != tuple(expected[k].shape)
    ]
    kinds = [
        f"{source_name(k)} {_dtype(state[k])} instead of {_dtype(expected[k])}"
        for k in both
        if _kind(state[k]) != _kind(expected[k])
    ]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
        for what, names in (
            ("missing", [source_name(k) for k in sorted(set(expected) - set(state))]),
            ("unexpected", [source_name(k) for k in sorted(set(state) - set(expected))]),
            ("of another shape", shapes),
            ("of another dtype", kinds),
        )
        if names
    ]
    if problems:
        raise UserError(f"{complaint}: " + "; ".join(problems))


def _dtype(tensor: Described) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _kind(tensor: Described) -> str:
    if isinstance(tensor.dtype, torch.dtype):
        return "float" if tensor.dtype.is_floating_point else _dtype(tensor)
    return "float" if tensor.dtype in tensors.FLOATS else DTYPES.get(tensor.dtype, tensor.dtype)


DTYPES = {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}
"""safetensors' names of dtypes other than floating-point -> torch's."""
