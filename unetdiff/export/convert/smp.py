"""Conversion from segmentation_models_pytorch (smp): the same tensors under new names, the same logits.

smp.Unet is a torchvision encoder and the decoder of 2015 with nearest-neighbor upsampling, (3x3 convolution, BatchNorm,
ReLU) twice per level, and a 3x3 head. The config of a UNet expresses all of it; only the order in which a map and its
skip are concatenated differs, and the weights that read them are permuted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from unetdiff.errors import UserError, as_yaml, config_error
from unetdiff.models import loading
from unetdiff.models.config import RGB
from unetdiff.models.encoders import IMAGENET_MEAN, IMAGENET_STD
from unetdiff.models.pretrained import load_pretrained_encoder

Model = TypeVar("Model", bound=nn.Module)

PRETRAINED_ENCODERS = ("resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2")
"""Encoders that are torchvision's in both, tensor for tensor."""
LEVELS = 5
UPSAMPLE = ("nearest", "bilinear")
HEAD = "segmentation_head.0"
FIRST = "decoder.blocks.0.conv1"
SUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "_model_class": (("Unet",), "Train an smp.Unet, or a UNet of unetdiff."),
    "encoder_name": (PRETRAINED_ENCODERS, "Train with one of them."),
    "encoder_depth": ((LEVELS,), f"Train with encoder_depth={LEVELS}."),
    "decoder_attention_type": ((None,), "Train with decoder_attention_type=None."),
    "decoder_use_norm": ((True, "batchnorm", False, "identity"), "Train with decoder_use_norm=batchnorm or false."),
    "decoder_interpolation": (UPSAMPLE, "Train with one of them."),
    "activation": ((None, "identity"), "Pass model.state_dict() or the file: logits have no activation."),
    "aux_params": ((None,), "Train with aux_params=None, or remove classification_head.* from the state dict."),
}
RENAMED = (
    (r"^encoder\.", "encoder.model."),
    (r"^decoder\.blocks\.(\d+)\.conv(\d)\.0\.", r"decoder.up_blocks.\1.block.conv\2."),
    (r"^decoder\.blocks\.(\d+)\.conv(\d)\.1\.", r"decoder.up_blocks.\1.block.norm\2."),
    (rf"^{re.escape(HEAD)}\.", "heads.segmentation.conv."),
)


@dataclass(frozen=True)
class Source:
    """An smp model from any source."""

    name: str
    """Its name in messages."""
    state: dict[str, Tensor]
    """Its tensors, by smp's names."""
    options: dict[str, Any]
    """Its options, as far as the source has them."""


def load(cls: type[Model], model: Any, upsample: str | None, statistics: str, background: bool) -> Model:
    """See `UNet.from_smp`."""
    source = read(model)
    refuse_options(source)
    refuse_tensors(source)
    state, (encoder_name, in_channels) = source.state, find_encoder(source)
    channels = [state[f"decoder.blocks.{step}.conv2.0.weight"].shape[0] for step in range(LEVELS)]
    classes = state[f"{HEAD}.weight"].shape[0]
    if background and classes != 1:
        raise UserError(f"background=true: must be false for {source.name}, which has {classes} classes.")
    upsample = upsample or source.options.get("decoder_interpolation", UPSAMPLE[0])
    if upsample not in UPSAMPLE:
        raise config_error("upsample", upsample, f"one of {', '.join(UPSAMPLE)}")
    unet = cls(
        in_channels=in_channels,
        encoder={"name": encoder_name, "norm": "batch", "statistics": statistics, **_input(in_channels, statistics)},
        decoder={
            "channels": channels,
            "norm": "batch" if f"{FIRST}.1.running_mean" in state else "none",
            "upsample": upsample,
        },
        heads={"segmentation": {"num_classes": classes + background}},
        imported={"segmentation_kernel_size": state[f"{HEAD}.weight"].shape[-1]},
    )
    encoder: Any = unet.encoder
    below = [encoder.out_channels, *channels[:-1]]
    loading.fill(unet, converted(state, below, background), source.name)
    return unet.eval()


def _input(channels: int, statistics: str) -> dict[str, list[float]]:
    """Mean and deviation of an input of other than three channels: the first three are RGB, the others are not changed
    (0.5 and 0.5 for pixels in [-1, 1])."""
    if channels == RGB:
        return {}
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if statistics == "imagenet" else ((0.0,) * RGB, (1.0,) * RGB)
    rest = [0.5] * (channels - RGB)
    return {"mean": [*mean[:channels], *rest], "std": [*std[:channels], *rest]}


def read(source: Any) -> Source:
    """A live model, a state dict, a directory of `save_pretrained`, or a safetensors file.

    Raises:
        UserError: a pickle, or a file that is not there or cannot be read.
    """
    if isinstance(source, nn.Module):
        return Source("the model", unwrapped(source.state_dict()), options_of(source))
    if isinstance(source, Mapping):
        return Source("the state dict", unwrapped(source), {})
    path = Path(source)
    if not path.is_dir():
        return Source(f"'{path}'", unwrapped(loading.read_tensors(path)), {})
    config = path / "config.json"
    if not config.is_file():
        raise UserError(f"{path}: must contain config.json. Pass the safetensors file instead.")
    options = loading.read_json(config)
    return Source(f"'{path}'", unwrapped(loading.read_tensors(path / "model.safetensors")), options)


def options_of(model: nn.Module) -> dict[str, Any]:
    """The options of a model in memory: its config, its class, and its activation."""
    config = getattr(model, "config", None)
    names = [kind.__name__ for kind in type(model).__mro__]
    kind = "Unet" if "Unet" in names else names[0]
    options = {**(config if isinstance(config, Mapping) else {}), "_model_class": kind}
    head = getattr(model, "segmentation_head", nn.Identity())
    last = [part for part in head.modules() if not list(part.children())]
    other = [part for part in last if not isinstance(part, nn.Conv2d | nn.Identity)]
    return options | ({"activation": type(other[0]).__name__} if other else {})


def unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without a common prefix: "module." of DistributedDataParallel, "model." of a wrapping class."""
    first = next((name for name in state if name.endswith(f"{HEAD}.weight")), "")
    wrapper = first.removesuffix(f"{HEAD}.weight")
    if not all(name.startswith(wrapper) for name in state):
        return dict(state)
    return {name.removeprefix(wrapper): tensor for name, tensor in state.items()}


def refuse_options(source: Source) -> None:
    """UserError for an unsupported option."""
    for option, (supported, remedy) in SUPPORTED.items():
        if option not in source.options:
            continue
        value = source.options[option]
        if isinstance(value, dict) and list(value) == ["type"]:  # the long form of decoder_use_norm
            value = value["type"]
        if value not in supported:
            constraint = " or ".join(as_yaml(one) for one in supported)
            raise UserError(f"{source.name}: {config_error(option.lstrip('_'), value, constraint, remedy)}")


def refuse_tensors(source: Source) -> None:
    """UserError for unsupported options that only the tensors show: decoder, attention, norm, depth, a second head."""
    state = source.state

    def unsupported(option: str, value: str) -> UserError:
        supported, remedy = SUPPORTED[option]
        constraint = " or ".join(as_yaml(one) for one in supported)
        return UserError(f"{source.name}: {config_error(option, value, constraint, remedy)}")

    if any(name.startswith("classification_head.") for name in state):
        raise unsupported("aux_params", "(a classification head)")
    if f"{FIRST}.0.weight" not in state or f"{HEAD}.weight" not in state:
        seen = ", ".join(list(state)[:3]) or "none"
        raise UserError(f"{source.name}: must be an smp.Unet with {FIRST}.0.weight (got tensors {seen}, …).")
    levels = len({name.split(".")[2] for name in state if name.startswith("decoder.blocks.")})
    if levels != LEVELS:
        raise unsupported("encoder_depth", str(levels))
    if any(".attention1." in name for name in state):
        raise unsupported("decoder_attention_type", "scse")
    plain, batch = f"{FIRST}.0.bias" in state, f"{FIRST}.1.num_batches_tracked" in state
    if not plain and not batch:  # in-place BatchNorm has no such counter, other norms no statistics
        raise unsupported("decoder_use_norm", "(not BatchNorm)")


def find_encoder(source: Source) -> tuple[str, int]:
    """The encoder with these tensors, by names and shapes, and the input channels of its stem.

    Raises:
        UserError: an unsupported encoder.
    """
    shapes = {name.removeprefix("encoder."): t.shape for name, t in source.state.items() if name.startswith("encoder.")}
    for name in PRETRAINED_ENCODERS:
        with torch.device("meta"):
            expected = {key: tensor.shape for key, tensor in load_pretrained_encoder(name, None).state_dict().items()}
        stem = next(iter(expected))
        if shapes.keys() == expected.keys() and all(shapes[key] == expected[key] for key in shapes if key != stem):
            return name, shapes[stem][1]
    raise UserError(
        f"{source.name}: the encoder must be one of {', '.join(PRETRAINED_ENCODERS)} "
        f"(got tensors {', '.join(list(shapes)[:2])}, …)."
    )


def converted(state: Mapping[str, Tensor], below: list[int], background: bool) -> dict[str, Tensor]:
    """The tensors under unetdiff's names, permuted where they read a map and its skip.

    below: channels of the map that each decoder level upsamples.
    """
    target: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if re.fullmatch(r"decoder\.blocks\.\d+\.conv1\.0\.weight", name):
            skip = tensor.shape[1] - below[int(name.split(".")[2])]
            tensor = tensor.roll(skip, dims=1)  # smp: map, skip; unetdiff: skip, map
        if background and name.startswith(f"{HEAD}."):  # a logit of 0: softmax over (0, z) is the sigmoid of z
            tensor = torch.cat([torch.zeros_like(tensor), tensor])
        for pattern, to in RENAMED:
            name = re.sub(pattern, to, name)
        target[name] = tensor
    return target
