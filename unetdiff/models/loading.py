"""Strict loading of a model directory: config.json and one safetensors file, every tensor accounted for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from unetdiff.errors import UserError

Model = TypeVar("Model", bound=nn.Module)

WEIGHTS = "diffusion_pytorch_model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A model's config as plain, fresh dicts and lists, without diffusers' own entries (_class_name, ...)."""
    return json.loads(json.dumps({k: v for k, v in config.items() if not k.startswith("_")}))


def build(cls: type[Model], config: dict[str, Any]) -> Model:
    """A model of this config with fresh weights; `encoder.weights` is not read (the config goes on to name it)."""
    encoder = config["encoder"]
    model = cls(**{**config, "encoder": {**encoder, "weights": None}})
    model.register_to_config(encoder=dict(encoder))  # type: ignore[operator]
    return model


def load(cls: type[Model], directory: Path, dtype: torch.dtype | None) -> Model:
    """See `UNet.from_pretrained`."""
    config = read_config(directory)
    model = build(cls, config)
    load_weights(model, directory / WEIGHTS)
    if dtype is not None:
        model.to(dtype)
    return model.eval()


def read_config(directory: Path) -> dict[str, Any]:
    """The config.json of a model directory."""
    path = directory / "config.json"
    if not path.is_file():
        raise UserError(f"'{directory}' is no model directory: it has no config.json")
    try:
        config = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"'{path}' is no JSON: {error}") from None
    if config.get("_class_name") != "UNet":
        raise UserError(f"'{path}' describes a {config.get('_class_name')}, not a unetdiff UNet")
    return {k: v for k, v in config.items() if not k.startswith("_")}


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file into a model: the same names, the same shapes, nothing more and nothing less.

    Raises:
        UserError: naming the file and the tensors that do not fit; the model is then unchanged.
    """
    load_state(model, read_tensors(path), f"'{path}'")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name.

    Raises:
        UserError: naming the file, and how a pickle is converted.
    """
    if path.suffix in PICKLES:
        raise UserError(f"'{path}' is a pickle: {conversion(path)}")
    if not path.is_file():
        pickles = sorted(p for p in path.parent.glob("*") if p.suffix in PICKLES)
        hint = f" ('{pickles[0].name}' is a pickle: {conversion(pickles[0])})" if pickles else ""
        raise UserError(f"no file '{path}'{hint}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"'{path}' is truncated or no safetensors file: {error}") from None


def conversion(pickle: Path) -> str:
    """How a pickled state dict becomes a safetensors file."""
    return (
        "pickles are never loaded, convert it to safetensors: "
        f"state = torch.load('{pickle.name}', map_location='cpu', weights_only=True); "
        f"safetensors.torch.save_file(state, '{pickle.with_suffix('.safetensors').name}')"
    )


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load tensors into a model: the same names, the same shapes, nothing more and nothing less.

    Raises:
        UserError: naming the source and the tensors that do not fit; the model is then unchanged.
    """
    expected = model.state_dict()
    missing = sorted(set(expected) - set(state))
    unexpected = sorted(set(state) - set(expected))
    shapes = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(expected[k].shape)}"
        for k in sorted(set(state) & set(expected))
        if state[k].shape != expected[k].shape
    ]
    faults = [
        f"{len(names)} {what}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if faults:
        raise UserError(f"{source} does not fit this model: " + "; ".join(faults))
    model.load_state_dict(state, strict=True)
