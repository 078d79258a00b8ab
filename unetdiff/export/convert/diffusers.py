"""Conversion from and to diffusers, whose `UNet2DModel` and `UNet2DConditionModel` are residual UNets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from unetdiff.errors import UserError
from unetdiff.export.convert.diffusers_names import from_diffusers_name, to_diffusers_name
from unetdiff.export.convert.from_diffusers import CLASSES, config_from_diffusers
from unetdiff.export.convert.to_diffusers import config_to_diffusers
from unetdiff.files.tensors import write_tensors
from unetdiff.models import loading
from unetdiff.models.resolve import parse

Model = TypeVar("Model", bound=ModelMixin)

SEGMENTATION_HEAD = "segmentation_head.safetensors"
"""The segmentation head, next to diffusers' own file."""
PREFIX = "heads.segmentation."
CLASSIFIER = f"{PREFIX}conv.weight"  # (classes, C, kernel_size, kernel_size)


def load(
    cls: type[Model],
    source: str | Path | nn.Module,
    subfolder: str | None,
    variant: str | None,
    dtype: torch.dtype | None,
) -> Model:
    """See `UNet.from_diffusers`."""
    for name, kind in CLASSES.items():
        if isinstance(source, kind):
            model: Any = source
            where = f"this {name}"
            return _build(cls, name, model.config, model.state_dict(), {}, where, dtype or model.dtype, model.device)
    if not isinstance(source, str | Path):
        raise UserError(f"from_diffusers: must be a directory, {' or '.join(CLASSES)} (got a {type(source).__name__}).")
    directory = _model_directory(Path(source) / (subfolder or ""))
    config = loading.read_json(directory / "config.json")
    described = config.get("_class_name")
    if described not in CLASSES:
        hint = " Use UNet.from_pretrained." if described == cls.__name__ else ""
        raise UserError(f"{directory / 'config.json'}: _class_name={described}: must be {' or '.join(CLASSES)}.{hint}")
    file = directory / loading.weights_file(variant)
    state, head = loading.read_tensors(file), _read_head(directory / SEGMENTATION_HEAD)
    return _build(cls, described, config, state, head, f"'{file}'", dtype or torch.float32, torch.device("cpu"))


def _model_directory(path: Path) -> Path:
    """A model directory itself, or the unet/ of a pipeline directory."""
    for directory in (path, path / "unet"):
        if (directory / "config.json").is_file():
            return directory
    if not path.is_dir():
        raise UserError(
            f"{path}: no such directory. Pass a model directory, a pipeline directory with unet/, or a model loaded by "
            "diffusers (Hub names are not resolved)."
        )
    raise UserError(f"{path}: must contain config.json or unet/config.json.")


def _read_head(path: Path) -> dict[str, Tensor]:
    """The tensors of the segmentation head that `save` wrote next to the denoiser, if any."""
    if not path.is_file():
        return {}
    head = loading.read_tensors(path)
    if CLASSIFIER not in head:
        raise UserError(f"{path}: must contain {CLASSIFIER}. Write it again or delete it.")
    return head


def _build(
    cls: type[Model],
    name: str,
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    head: Mapping[str, Tensor],
    source: str,
    dtype: torch.dtype,
    device: torch.device,
) -> Model:
    """A UNet for a diffusers config, with copies of its tensors (diffusers' names) and of a head (unetdiff's names)."""
    arguments = config_from_diffusers(name, config, f"from_diffusers: {source}")
    if head:
        classes, _, size, _ = head[CLASSIFIER].shape
        arguments["heads"]["segmentation"] = {"num_classes": classes}
        arguments["imported"]["segmentation_kernel_size"] = size
    with torch.device("meta"):  # no initialization: every tensor is overwritten
        model = loading.build(cls, arguments)
        nn.Module.to(model, dtype=dtype)
    model.to_empty(device=device)
    renamed = {from_diffusers_name(key): tensor for key, tensor in state.items()}
    loading.fill(model, {**renamed, **head}, source, to_diffusers_name)
    return model.eval()


def save(model: ModelMixin, directory: Path) -> None:
    """See `UNet.to_diffusers`."""
    name, config = config_to_diffusers(parse(**loading.plain(model.config)))
    with torch.device("meta"):
        target = CLASSES[name](**config)
    state = model.state_dict()
    head = {key: tensor for key, tensor in state.items() if key.startswith(PREFIX)}
    renamed = {to_diffusers_name(key): tensor for key, tensor in state.items() if key not in head}
    loading.check(renamed, target.state_dict(), f"to_diffusers: this network does not fit a {name}")
    directory.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".writing-", dir=directory) as folder:
        aside = Path(folder)
        write_tensors(renamed, aside / loading.WEIGHTS, {"format": "pt"})
        if head:
            write_tensors(head, aside / SEGMENTATION_HEAD)
        target.save_config(aside)
        for file in sorted(aside.iterdir()):
            os.replace(file, directory / file.name)
    if not head:
        (directory / SEGMENTATION_HEAD).unlink(missing_ok=True)
