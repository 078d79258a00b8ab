"""Low-rank adaptation of a network (Hu et al. 2022) with peft: what is trained, saved, merged and exported.

An adapted layer is peft's, around the layer itself. The faster kernels call such a layer as any other module, as they
replace the exact classes of torch only. Checkpoints hold the trained tensors alone; a resumed run reads the network it
adapts from where the run began, and compares its hash.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from unetdiff.config.training import LoRAConfig
from unetdiff.errors import config_error, did_you_mean
from unetdiff.models.config import RESIDUAL
from unetdiff.models.unet import UNet
from unetdiff.training.tasks.base import Task

ADAPTER = "default"
MARK = ".lora_"
"""In the name of every tensor of an adapter."""
BASE = ".base_layer"
"""What peft adds to the name of an adapted layer's own tensors."""
INPUT = "conv_in"
"""The first convolution."""
TRAINED_HEAD = "heads.segmentation."
"""Parameters that are trained whole next to an adapter: a pretrained denoiser has no segmentation head."""


def inject(unet: UNet, config: LoRAConfig, seed: int) -> None:
    """Add a new adapter to a residual network, in place; all other parameters but the segmentation head's are frozen.

    A is random, B zero: the network computes the same as before.

    Args:
        unet: with the weights to adapt; modules are exchanged (`kernels.accelerate`) after this.
        config: with a rank.
        seed: of A.

    Raises:
        UserError: another family, or a target that names no layer of the network.
    """
    from peft import LoraConfig, inject_adapter_in_model

    assert config.rank is not None
    if unet.config["encoder"]["name"] != RESIDUAL:
        constraint = f"null with model.encoder.name={unet.config['encoder']['name']}, as LoRA adapts residual networks"
        raise config_error("training.lora.rank", config.rank, constraint)
    head = [p for name, p in unet.named_parameters() if name.startswith(TRAINED_HEAD) and p.requires_grad]
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha or config.rank,  # type: ignore[arg-type]  # floats are fine
        target_modules=_targets(unet, config.targets),
        lora_dropout=config.dropout,
        revision=fingerprint(unet),
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        inject_adapter_in_model(settings, unet)
    for parameter in head:
        parameter.requires_grad_(True)


def _targets(unet: UNet, names: list[str]) -> list[str]:
    """The full names of the layers whose last parts are among `names`.

    Raises:
        UserError: a name without such a layer.
    """
    layers = [name for name, m in unet.named_modules() if type(m) in (nn.Linear, nn.Conv2d)]
    layers = [name for name in layers if not name.startswith(TRAINED_HEAD)]
    for name in names:
        if not any(_ends_with(layer, name) for layer in layers):
            known = sorted({_last_part(layer) for layer in layers})
            constraint = "the last parts of the names of linear layers or convolutions of the network"
            near = did_you_mean(name, known, otherwise=f"They are {', '.join(known)}.")
            raise config_error("training.lora.targets", names, constraint, f"'{name}' is none of them. {near}")
    return [layer for layer in layers if any(_ends_with(layer, name) for name in names)]


def require_trained_input(config: LoRAConfig, channels: int) -> None:
    """Refuse an adapter that leaves new input channels at zero.

    Raises:
        UserError: the first convolution is not among the targets.
    """
    if config.rank is not None and INPUT not in config.targets:
        constraint = f"a list with {INPUT}: {channels} input channels, those of inpainting, start at zero"
        raise config_error("training.lora.targets", config.targets, constraint)


def _ends_with(layer: str, name: str) -> bool:
    return layer == name or layer.endswith(f".{name}")


def _last_part(layer: str) -> str:
    """Of "...ff.net.0.proj", "ff.net.0.proj"; of "...conv1", "conv1"; of "...to_out.0", "to_out.0"."""
    before, dot, rest = layer.rpartition(".ff.")
    if dot:
        return f"ff.{rest}"
    parts = layer.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]


# ------------------------------------------------------------------ what is trained


def has_adapter(module: nn.Module) -> bool:
    """Whether a module is a network with an adapter."""
    return "peft_config" in vars(module)


def is_trained(name: str) -> bool:
    """Whether a tensor of an adapted UNet is trained, by its name."""
    return MARK in name or name.startswith(TRAINED_HEAD)


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of a component of a task; of an adapted UNet, only what is trained."""
    state: dict[str, Tensor] = module.state_dict()
    return {name: t for name, t in state.items() if is_trained(name)} if has_adapter(module) else state


def frozen_parameters(task: Task) -> set[int]:
    """The ids of the parameters that an adapter leaves as they are; empty without an adapter."""
    if not has_adapter(task.unet):
        return set()
    return {id(parameter) for name, parameter in task.unet.named_parameters() if not is_trained(name)}


def fingerprint(unet: UNet) -> str:
    """A hash of the weights that an adapter leaves as they are, before or after it is added."""
    digest = hashlib.sha256()
    for name, tensor in sorted((name.replace(BASE, ""), tensor) for name, tensor in unet.state_dict().items()):
        if not is_trained(name):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def identity(unet: UNet) -> dict[str, Any] | None:
    """Rank, factor and base network of an adapter, as JSON; None without one."""
    if not has_adapter(unet):
        return None
    settings = unet.peft_config[ADAPTER]
    return {"rank": settings.r, "alpha": settings.lora_alpha, "base": settings.revision}


# ------------------------------------------------------------------ merged


def merged_copy(unet: UNet) -> UNet:
    """An adapted network as a plain one with the weights W + (alpha / rank) B A; the others are shared, not copied."""
    from peft.tuners.lora import LoraLayer

    shared = {id(tensor): tensor for tensor in chain(unet.parameters(), unet.buffers())}
    merged: UNet = copy.deepcopy(unet, shared)
    vars(merged).pop("peft_config")
    adapted: dict[str, Any] = {name: layer for name, layer in merged.named_modules() if isinstance(layer, LoraLayer)}
    for name, layer in adapted.items():
        base = layer.get_base_layer()
        weight = base.weight.detach() + layer.get_delta_weight(ADAPTER).detach()
        base.weight = nn.Parameter(weight.contiguous(memory_format=_format(base.weight)), requires_grad=False)
        parent, _, child = name.rpartition(".")
        setattr(merged.get_submodule(parent), child, base)
    return merged


def _format(weight: Tensor) -> torch.memory_format:
    channels_last = weight.ndim == 4 and not weight.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


@contextmanager
def merged(task: Task) -> Iterator[None]:
    """While a model directory is written, the task's network is a plain one (`merged_copy`)."""
    unet = task.unet
    if not has_adapter(unet):
        yield
        return
    parts = [part for part in task.modules() if isinstance(part, Task)]
    plain = merged_copy(unet)
    try:
        for part in parts:
            part.unet = plain
        yield
    finally:
        for part in parts:
            part.unet = unet
