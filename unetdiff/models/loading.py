"""Strict loading of a model directory: config.json and one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from unetdiff.errors import UserError
from unetdiff.files.writing import sha256_of

Model = TypeVar("Model", bound=nn.Module)

WEIGHTS = "diffusion_pytorch_model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A model's config as plain, fresh dicts and lists, without diffusers' own entries (_class_name, ...)."""
    return json.loads(json.dumps({k: v for k, v in config.items() if not k.startswith("_")}))


def build(cls: type[Model], config: dict[str, Any]) -> Model:
    """A model of this config with random weights; `encoder.weights` is not read, but stays in the config."""
    weights = config["encoder"].get("weights")
    model: Any = cls(**{**config, "encoder": {**config["encoder"], "weights": None}})
    model.register_to_config(encoder={**model.config["encoder"], "weights": weights})
    return model


def weights_file(variant: str | None) -> str:
    """Name of the weights file of a diffusers variant."""
    stem, suffix = WEIGHTS.split(".")
    return f"{stem}.{variant}.{suffix}" if variant else WEIGHTS


def fingerprint(directory: Path) -> str:
    """A hash of a network's weights file."""
    return sha256_of(directory / WEIGHTS)[:16]


def load(cls: type[Model], directory: Path, dtype: torch.dtype | None, variant: str | None = None) -> Model:
    """See `UNet.from_pretrained`."""
    config = read_config(directory)
    model = build(cls, config)
    load_weights(model, directory / weights_file(variant))
    if dtype is not None:
        model.to(dtype)
    return model.eval()


def read_config(directory: Path) -> dict[str, Any]:
    """The config.json of one of our model directories, without diffusers' own entries."""
    config = read_json(directory / "config.json")
    name = config.get("_class_name")
    if name != "UNet":
        hint = " Use UNet.from_diffusers." if name in ("UNet2DModel", "UNet2DConditionModel") else ""
        raise UserError(f"{directory / 'config.json'}: _class_name={name}: must be UNet.{hint}")
    return {k: v for k, v in config.items() if not k.startswith("_")}


def read_json(path: Path) -> dict[str, Any]:
    """The config.json of any model directory."""
    if not path.is_file():
        raise UserError(f"{path.parent}: must be a model directory with {path.name}.")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError
        raise UserError(f"{path}: must be JSON ({error}).") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: must be a JSON object (got a {type(config).__name__}).")
    return config


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file into a model, strictly; see `fill`."""
    fill(model, read_tensors(path), f"'{path}'")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name.

    Raises:
        UserError: a file that is missing (names a pickle or shards in its place), a pickle (says how to convert it), or
            truncated.
    """
    if path.suffix in PICKLES:
        raise UserError(f"{path}: must be a safetensors file (got a pickle). {conversion(path)}")
    if not path.is_file():
        raise UserError(f"{path}: no such file.{_instead(path)}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: must be a complete safetensors file ({error}).") from None


def _instead(path: Path) -> str:
    """The files in the place of a missing weights file, and what to do."""
    shards = sorted(p.name for p in path.parent.glob("*.index.json"))
    if shards:
        return f" {shards[0]}: sharded weights are not supported. Load them with diffusers and save them as one file."
    pickles = sorted(p for p in path.parent.glob("*") if p.suffix in PICKLES)
    if pickles:
        return f" {pickles[0].name} is a pickle. {conversion(pickles[0])}"
    others = sorted(p.name for p in path.parent.glob("*.safetensors"))
    return f" Found {others[0]}." if others else ""


def conversion(pickle: Path) -> str:
    """How to convert a pickled state dict to safetensors."""
    return (
        "Pickles are never loaded; convert it: "
        f"state = torch.load('{pickle.name}', map_location='cpu', weights_only=True); "
        f"safetensors.torch.save_file(state, '{pickle.with_suffix('.safetensors').name}')"
    )


def fill(
    model: nn.Module, state: Mapping[str, Tensor], source: str, source_name: Callable[[str], str] = lambda name: name
) -> None:
    """Copy tensors into a model, strictly: the same names and shapes.

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
    state: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    complaint: str,
    source_name: Callable[[str], str] = lambda name: name,
) -> None:
    """Refuse (UserError) tensors that are missing, unexpected or of another shape, by name."""
    shapes = [
        f"{source_name(k)} {tuple(state[k].shape)} instead of {tuple(expected[k].shape)}"
        for k in sorted(set(state) & set(expected))
        if state[k].shape != expected[k].shape
    ]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
        for what, names in (
            ("missing", [source_name(k) for k in sorted(set(expected) - set(state))]),
            ("unexpected", [source_name(k) for k in sorted(set(state) - set(expected))]),
            ("of another shape", shapes),
        )
        if names
    ]
    if problems:
        raise UserError(f"{complaint}: " + "; ".join(problems))
