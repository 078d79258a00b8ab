"""torchvision classifiers as encoders: their weights, and their blocks by level."""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from unetdiff.console import Console
from unetdiff.errors import UserError, config_error
from unetdiff.models.loading import read_tensors

CLASSIFIER = ("avgpool", "fc", "classifier")
"""torchvision's modules after the last feature map."""


def load_pretrained_encoder(name: str, weights: str | None) -> nn.Module:
    """A torchvision classifier without its last layers: random, with ImageNet weights, or from a safetensors file.

    The file has torchvision's names: safetensors' `save_file` of the `state_dict()` of
    `torchvision.models.resnet18(weights="DEFAULT")`.

    Raises:
        UserError: a file that is missing, a pickle, not safetensors, or of another network; ImageNet weights that
            cannot be downloaded.

    Warns:
        UserWarning: the file contains the classifier's tensors too; it names them.
    """
    model = torchvision.models.get_model(name)
    if weights == "imagenet":
        model.load_state_dict(_imagenet_weights(name))
    for module in CLASSIFIER:
        if hasattr(model, module):
            delattr(model, module)
    if weights is None or weights == "imagenet":
        return model
    try:
        state = read_tensors(Path(weights))
    except UserError as error:
        raise UserError(f"model.encoder.weights: {error} Give a safetensors file, imagenet or null.") from None
    unused = [name for name in state if name.split(".")[0] in CLASSIFIER]
    state = {name: tensor for name, tensor in state.items() if name not in unused}
    expected = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    wrong = [k for k in expected if k not in state or state[k].shape != expected[k].shape]
    foreign = [k for k in state if k not in model.state_dict()]
    if wrong or foreign:
        raise UserError(
            f"model.encoder.weights={weights}: must contain torchvision's {name} (got {len(wrong)} tensors missing or "
            f"of another shape {wrong[:2]}, {len(foreign)} unknown {foreign[:2]})."
        )
    if unused:
        message = f"model.encoder.weights={weights}: ignoring the classifier's tensors {', '.join(unused)}."
        warnings.warn(message, UserWarning, stacklevel=2)
    model.load_state_dict(state, strict=False)
    return model


def _imagenet_weights(name: str) -> dict[str, Tensor]:
    """torchvision's weights from its cache, or downloaded; only tensors are read from the file.

    Raises:
        UserError: no connection, or a damaged file; it says where the file belongs.
    """
    entry = torchvision.models.get_model_weights(name).DEFAULT
    console = Console()
    try:  # torch's words about a download are for a terminal: a failure is one line
        stream: Any = console if console.isatty() else io.StringIO()
        with redirect_stdout(stream), redirect_stderr(stream):
            return dict(entry.get_state_dict(progress=True, check_hash=True, weights_only=True))
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(entry.url).name
        constraint = f"downloaded from {entry.url} ({' '.join(str(error).split()) or type(error).__name__})"
        remedy = (
            f"Put this file at '{cached}', give a safetensors file (--model.encoder.weights FILE), or train from "
            "random weights (--model.encoder.weights null)."
        )
        raise config_error("model.encoder.weights", "imagenet", constraint, remedy) from None


def feature_levels(model: nn.Module, in_channels: int) -> list[tuple[int, list[str], list[int]]]:
    """Group a model's blocks by output size: (level, names, channels of each block), finest first."""
    names = list(_block_names(model, ""))
    training = model.training
    model.eval()
    levels: list[tuple[int, list[str], list[int]]] = []
    with torch.no_grad():
        h = torch.zeros(1, in_channels, 64, 64)
        for name in names:
            h = model.get_submodule(name)(h)
            level = (64 // h.shape[-1]).bit_length() - 1
            if not levels or levels[-1][0] != level:
                levels.append((level, [], []))
            levels[-1][1].append(name)
            levels[-1][2].append(h.shape[1])
    model.train(training)
    return levels


def _block_names(module: nn.Module, prefix: str) -> Iterator[str]:
    """Names of the blocks in execution order: Sequentials are flattened, any other module is one block."""
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if type(child) is nn.Sequential:
            yield from _block_names(child, f"{path}.")
        else:
            yield path


def replace_stem(model: nn.Module, images: int, further: int, pretrained: bool) -> None:
    """Give the first convolution of an RGB network `images` + `further` input channels.

    The filters of an image of other than three channels are those of RGB: their sum for one (a gray image gives what it
    gave as RGB), else repeated and scaled by 3 / `images`, as in timm and segmentation_models_pytorch. The filters of
    further channels, a denoiser's condition, are zero. Without pretrained weights, all are random.
    """
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.Conv2d):
                new = nn.Conv2d(
                    images + further,
                    child.out_channels,
                    child.kernel_size,  # type: ignore[arg-type]
                    child.stride,  # type: ignore[arg-type]
                    child.padding,  # type: ignore[arg-type]
                    bias=child.bias is not None,
                )
                if pretrained:
                    with torch.no_grad():
                        new.weight.zero_()
                        new.weight[:, :images] = adapt_filters(child.weight, images)
                        if child.bias is not None and new.bias is not None:
                            new.bias.copy_(child.bias)
                setattr(module, name, new)
                return


def adapt_filters(weight: Tensor, channels: int) -> Tensor:
    """RGB filters (O, 3, k, k) for images of other channels, (O, channels, k, k), as `replace_stem` describes."""
    if channels == 3:
        return weight
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    repeated = weight.repeat(1, (channels + 2) // 3, 1, 1)[:, :channels]
    return repeated * (3 / channels)
