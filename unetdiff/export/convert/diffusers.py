"""To and from diffusers: its `UNet2DModel` and `UNet2DConditionModel` are our residual family under other names."""

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
from unetdiff.export.convert import diffusers_names as interop_names
from unetdiff.export.convert.from_diffusers import CLASSES, from_theirs
from unetdiff.export.convert.to_diffusers import to_theirs
from unetdiff.models import loading
from unetdiff.models.resolve import parse

Model = TypeVar("Model", bound=ModelMixin)

SEGMENTATION_HEAD = "segmentation_head.safetensors"
"""Beside diffusers' own file, which it reads alone: our segmentation head, by our names."""
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
            theirs: Any = source
            given = dtype or theirs.dtype
            return _build(cls, name, theirs.config, theirs.state_dict(), {}, f"this {name}", given, theirs.device)
    if not isinstance(source, str | Path):
        raise UserError(f"from_diffusers: a {type(source).__name__} is none of {', '.join(CLASSES)}, nor a directory")
    directory = _model_directory(Path(source) / (subfolder or ""))
    config = loading.read_json(directory / "config.json")
    described = config.get("_class_name")
    if described not in CLASSES:
        hint = "; UNet.from_pretrained reads that" if described == cls.__name__ else ""
        raise UserError(f"'{directory / 'config.json'}' describes a {described}, none of {', '.join(CLASSES)}{hint}")
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
            f"no directory '{path}'; give a model directory, a pipeline directory with unet/, or a model that "
            "diffusers has loaded (names of the Hub are not looked up)"
        )
    raise UserError(f"'{path}' holds no model: neither config.json nor unet/config.json is there")


def _read_head(path: Path) -> dict[str, Tensor]:
    """The tensors of the segmentation head that `save` has put beside the denoiser, if it has."""
    if not path.is_file():
        return {}
    head = loading.read_tensors(path)
    if CLASSIFIER not in head:
        raise UserError(f"'{path}' holds no segmentation head: {CLASSIFIER} is missing; write it again or delete it")
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
    """A model of ours for a diffusers config, with copies of these tensors (diffusers' names) and of a head (ours)."""
    ours = from_theirs(name, config, f"from_diffusers: {source}")
    if head:
        classes, _, size, _ = head[CLASSIFIER].shape
        ours["heads"]["segmentation"] = {"num_classes": classes, "kernel_size": size}
    with torch.device("meta"):  # no random start for what is overwritten in whole
        model = loading.build(cls, ours)
        nn.Module.to(model, dtype=dtype)
    model.to_empty(device=device)
    renamed = {interop_names.to_ours(key): tensor for key, tensor in state.items()}
    loading.fill(model, {**renamed, **head}, source, interop_names.to_theirs)
    return model.eval()


def save(model: ModelMixin, directory: Path) -> None:
    """See `UNet.to_diffusers`."""
    name, config = to_theirs(parse(**loading.plain(model.config)))
    with torch.device("meta"):
        theirs = CLASSES[name](**config)
    state = model.state_dict()
    head = {key: tensor for key, tensor in state.items() if key.startswith(PREFIX)}
    renamed = {interop_names.to_theirs(key): tensor for key, tensor in state.items() if key not in head}
    loading.check(renamed, theirs.state_dict(), f"to_diffusers: this network is no {name} of its config")
    directory.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".writing-", dir=directory) as folder:
        aside = Path(folder)
        loading.save_tensors(renamed, aside / loading.WEIGHTS, {"format": "pt"})
        if head:
            loading.save_tensors(head, aside / SEGMENTATION_HEAD)
        theirs.save_config(aside)
        for file in sorted(aside.iterdir()):
            os.replace(file, directory / file.name)
    if not head:
        (directory / SEGMENTATION_HEAD).unlink(missing_ok=True)
