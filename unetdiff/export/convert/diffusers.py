"""Conversion from and to diffusers, whose `UNet2DModel` and `UNet2DConditionModel` are residual UNets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, Unpack

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from unetdiff.errors import FileError, UserError
from unetdiff.export.convert.from_diffusers import CLASSES, config_from_diffusers
from unetdiff.export.convert.to_diffusers import config_to_diffusers
from unetdiff.files.hub import HubOptions, resolved
from unetdiff.files.tensors import Entry, write_tensors
from unetdiff.files.writing import remove_tree, write_into_directory
from unetdiff.models import loading
from unetdiff.models.diffusers_names import from_diffusers_name, to_diffusers_name
from unetdiff.models.resolve import parse
from unetdiff.models.weights_files import INDEX, WEIGHTS, find_weights, hub_patterns

Model = TypeVar("Model", bound=ModelMixin)

SEGMENTATION_HEAD = "segmentation_head.safetensors"
"""The segmentation head, next to diffusers' own file."""
PREFIX = "heads.segmentation."
CLASSIFIER = f"{PREFIX}conv.weight"  # (classes, C, kernel_size, kernel_size)
KERNEL_SIZE = "segmentation_kernel_size"


def load(
    cls: type[Model],
    source: str | Path | nn.Module,
    subfolder: str | None,
    variant: str | None,
    dtype: torch.dtype | None,
    **hub: Unpack[HubOptions],
) -> Model:
    """See `UNet.from_diffusers`."""
    for name, kind in CLASSES.items():
        if isinstance(source, kind):
            live: Any = source
            where, state = f"this {name}", live.state_dict()
            model = _outline(cls, name, live.config, None, f"from_diffusers: {where}", dtype or live.dtype)
            return _filled(model, state, where, live.device)
    if not isinstance(source, str | Path):
        raise UserError(f"from_diffusers: must be a directory, {' or '.join(CLASSES)} (got a {type(source).__name__}).")
    folders = (subfolder,) if subfolder else ("", "unet")
    directory = _model_directory(resolved(source, hub_patterns(variant, folders), **hub) / (subfolder or ""))
    path = directory / loading.CONFIG
    config = loading.read_json(path)
    described = config.get("_class_name")
    if described not in CLASSES:
        hint = "Use UNet.from_pretrained." if described == cls.__name__ else ""
        raise FileError.of(path, f"_class_name={described}: must be {' or '.join(CLASSES)}", hint)
    file, head = find_weights(directory, variant), directory / SEGMENTATION_HEAD
    header = loading.read_header(file)
    head_header = loading.read_header(head) if head.is_file() else {}
    model = _described(cls, directory, f"from_diffusers: '{file}'", dtype or torch.float32)
    renamed = {from_diffusers_name(key): entry for key, entry in header.items()}
    loading.check(
        {**renamed, **head_header}, model.state_dict(), f"'{file}' does not fit this model", to_diffusers_name
    )
    state = loading.read_tensors(file) | (loading.read_tensors(head) if head_header else {})
    return _filled(model, state, f"'{file}'", torch.device("cpu"))


def read_config(cls: type[Model], directory: Path) -> dict[str, Any]:
    """The config of our network for a directory of diffusers' U-Net, whose weights are not read."""
    return loading.plain(_described(cls, directory, str(directory), torch.float32).config)


def _described(cls: type[Model], directory: Path, where: str, dtype: torch.dtype) -> Model:
    """The UNet of a directory on the meta device, with the segmentation head next to diffusers' weights."""
    path, head = directory / loading.CONFIG, directory / SEGMENTATION_HEAD
    config = loading.read_json(path)
    segmentation = _head_options(head, loading.read_header(head)) if head.is_file() else None
    return loading.outline(lambda: _outline(cls, config["_class_name"], config, segmentation, where, dtype), path)


def _model_directory(path: Path) -> Path:
    """A model directory itself, or the unet/ of a pipeline directory."""
    for directory in (path, path / "unet"):
        if (directory / "config.json").is_file():
            return directory
    if not path.is_dir():
        raise UserError(
            f"{path}: no such directory. Pass a model directory, a pipeline directory with unet/, a name on the "
            "Hub, or a model loaded by diffusers."
        )
    raise UserError(f"{path}: must contain config.json or unet/config.json.")


def _outline(
    cls: type[Model],
    name: str,
    config: Mapping[str, Any],
    segmentation: Mapping[str, Any] | None,
    source: str,
    dtype: torch.dtype,
) -> Model:
    """A UNet on the meta device for a diffusers config, with a segmentation head of these options."""
    arguments = config_from_diffusers(name, config, source)
    if segmentation is not None:
        arguments["heads"]["segmentation"] = {k: v for k, v in segmentation.items() if k != KERNEL_SIZE}
        arguments["imported"][KERNEL_SIZE] = segmentation[KERNEL_SIZE]
    with torch.device("meta"):  # no initialization: every tensor is overwritten
        model = loading.build(cls, arguments)
        nn.Module.to(model, dtype=dtype)
    return model


def _head_options(path: Path, header: Mapping[str, Entry]) -> dict[str, Any]:
    """The options of a segmentation head, from the shapes of its tensors.

    Raises:
        FileError: no classifier.
    """
    shape = header.get(CLASSIFIER, Entry("", ())).shape
    if len(shape) != 4:
        raise FileError.of(path, f"must contain {CLASSIFIER}, (classes, C, size, size)", "Write it again or delete it.")
    options: dict[str, Any] = {"num_classes": shape[0], KERNEL_SIZE: shape[-1]}
    laterals = {
        name: entry.shape for name, entry in header.items() if re.fullmatch(rf"{PREFIX}laterals\.\d+\.weight", name)
    }
    if laterals:
        widths = {name: header.get(name.replace("laterals", "norms"), Entry("", (0,))).shape[0] for name in laterals}
        attends = any(laterals[name][1] != width for name, width in widths.items())
        options |= {"pyramid": shape[1], "attention_maps": attends}
    own = {match[1] for name in header if (match := re.match(rf"{PREFIX}own_decoder\.up_blocks\.(\d+)\.", name))}
    options |= {"own_decoder_levels": len(own), "task_embedding": f"{PREFIX}task_embedding" in header}
    return options


def _filled(model: Model, state: Mapping[str, Tensor], source: str, device: torch.device) -> Model:
    """The model with copies of tensors, by diffusers' names (of the denoiser) and unetdiff's (of the head)."""
    model.to_empty(device=device)
    loading.fill(model, {from_diffusers_name(key): tensor for key, tensor in state.items()}, source, to_diffusers_name)
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

    def write(aside: Path) -> None:
        write_tensors(renamed, aside / WEIGHTS, {"format": "pt"})
        if head:
            write_tensors(head, aside / SEGMENTATION_HEAD)
        target.save_config(aside)

    write_into_directory(directory, write)
    remove_tree(directory / INDEX)  # of shards that were there before: diffusers would read them
    if not head:
        remove_tree(directory / SEGMENTATION_HEAD)
