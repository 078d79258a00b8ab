"""A U-Net of segmentation_models_pytorch ("smp") as ours: the same tensors under our names, the same logits.

smp.Unet is a torchvision trunk and the decoder of 2015 with nearest upsampling, (3x3 convolution, BatchNorm, ReLU)
twice a step, and a 3x3 head. All of it is said in our config; only the order in which a map and its skip are joined
differs, and the weights that read them change places.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from unetdiff.errors import UserError
from unetdiff.models import loading
from unetdiff.models.encoders import load_trunk

Model = TypeVar("Model", bound=nn.Module)

PRETRAINED_ENCODERS = ("resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2")
"""Encoders that are torchvision's own in both, tensor for tensor."""
STEPS = 5
UPSAMPLE = ("nearest", "bilinear")
HEAD = "segmentation_head.0"
FIRST = "decoder.blocks.0.conv1"
# smp's options that our network has one value of each for, and what to do about another
ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "_model_class": (("Unet",), "only smp.Unet is the same network here; train an smp.Unet, or a UNet of unetdiff"),
    "encoder_name": (PRETRAINED_ENCODERS, f"the encoders in common are {', '.join(PRETRAINED_ENCODERS)}"),
    "encoder_depth": ((STEPS,), f"train with encoder_depth={STEPS}"),
    "decoder_attention_type": ((None,), "train with decoder_attention_type=None"),
    "decoder_use_norm": ((True, "batchnorm", False, "identity"), "train with decoder_use_norm 'batchnorm' or False"),
    "decoder_interpolation": (UPSAMPLE, f"train with decoder_interpolation {' or '.join(UPSAMPLE)}"),
    "activation": ((None, "identity"), "give the tensors alone (model.state_dict(), or the file): logits have none"),
    "aux_params": ((None,), "train with aux_params=None, or leave the classification_head.* out of the state dict"),
}
RENAMED = (
    (r"^encoder\.", "encoder.trunk."),
    (r"^(decoder\.blocks\.\d+\.conv\d)\.0\.", r"\1."),
    (r"^(decoder\.blocks\.\d+\.)conv(\d)\.1\.", r"\1norm\2."),
    (rf"^{re.escape(HEAD)}\.", "heads.segmentation.conv."),
)


@dataclass(frozen=True)
class Source:
    """An smp model, wherever it came from."""

    name: str
    """What it is called in a refusal."""
    state: dict[str, Tensor]
    """Its tensors by smp's names."""
    told: dict[str, Any]
    """The options it was made with, as far as the source says."""


def load(cls: type[Model], given: Any, upsample: str | None, statistics: str, background: bool) -> Model:
    """See `UNet.from_smp`."""
    source = read(given)
    refuse_options(source)
    refuse_tensors(source)
    state, (trunk, in_channels) = source.state, family(source)
    channels = [state[f"decoder.blocks.{step}.conv2.0.weight"].shape[0] for step in range(STEPS)]
    classes = state[f"{HEAD}.weight"].shape[0]
    if background and classes != 1:
        raise UserError(f"background: {source.name} has {classes} classes, a background of its own; leave it out")
    upsample = upsample or source.told.get("decoder_interpolation", UPSAMPLE[0])
    if upsample not in UPSAMPLE:
        raise UserError(f"upsample: '{upsample}' is not one of {', '.join(UPSAMPLE)}")
    head = {"num_classes": classes + background, "kernel_size": state[f"{HEAD}.weight"].shape[-1]}
    model = cls(
        in_channels=in_channels,
        encoder={"name": trunk, "norm": "batch", "statistics": statistics},
        decoder={
            "channels": channels,
            "norm": "batch" if f"{FIRST}.1.running_mean" in state else "none",
            "upsample": upsample,
        },
        heads={"segmentation": head},
    )
    encoder: Any = model.encoder
    below = [encoder.out_channels, *channels[:-1]]
    loading.fill(model, converted(state, below, background), source.name)
    return model.eval()


def read(given: Any) -> Source:
    """A live model, a state dict, a directory of `save_pretrained`, or a safetensors file.

    Raises:
        UserError: a pickle, or a file that is not there or cannot be read.
    """
    if isinstance(given, nn.Module):
        return Source("the model", unwrapped(given.state_dict()), live(given))
    if isinstance(given, Mapping):
        return Source("the state dict", unwrapped(given), {})
    path = Path(given)
    if not path.is_dir():
        return Source(f"'{path}'", unwrapped(loading.read_tensors(path)), {})
    config = path / "config.json"
    if not config.is_file():
        raise UserError(f"'{path}': no config.json, so it is no model saved by smp; give the safetensors file itself")
    told = loading.read_json(config)
    return Source(f"'{path}'", unwrapped(loading.read_tensors(path / "model.safetensors")), told)


def live(model: nn.Module) -> dict[str, Any]:
    """The options of a model in memory: its config's, its class, and an activation that no config can name."""
    config = getattr(model, "config", None)
    names = [kind.__name__ for kind in type(model).__mro__]
    told = {**(config if isinstance(config, Mapping) else {}), "_model_class": "Unet" if "Unet" in names else names[0]}
    head = getattr(model, "segmentation_head", nn.Identity())
    last = [part for part in head.modules() if not list(part.children())]
    other = [part for part in last if not isinstance(part, nn.Conv2d | nn.Identity)]
    return told | ({"activation": type(other[0]).__name__} if other else {})


def unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without a name that stands before all of them: "module." of several processes, "model." of a wrapping class."""
    first = next((name for name in state if name.endswith(f"{HEAD}.weight")), "")
    wrapper = first.removesuffix(f"{HEAD}.weight")
    if not all(name.startswith(wrapper) for name in state):
        return dict(state)
    return {name.removeprefix(wrapper): tensor for name, tensor in state.items()}


def refuse_options(source: Source) -> None:
    """UserError for an option that our network has not."""
    for option, (right, remedy) in ONLY.items():
        if option not in source.told:
            continue
        value = source.told[option]
        if isinstance(value, dict) and list(value) == ["type"]:  # decoder_use_norm in smp's long form
            value = value["type"]
        if value not in right:
            raise UserError(f"{source.name}: {option.lstrip('_')} {value!r} of smp has no equal here; {remedy}")


def refuse_tensors(source: Source) -> None:
    """UserError for what shows in the tensors alone: other decoders, attention, norms, depths, a second head."""
    state = source.state

    def config_error(option: str, value: str) -> UserError:
        return UserError(f"{source.name}: {option} {value} of smp has no equal here; {ONLY[option][1]}")

    if any(name.startswith("classification_head.") for name in state):
        raise config_error("aux_params", "(a classification head)")
    if f"{FIRST}.0.weight" not in state or f"{HEAD}.weight" not in state:
        seen = ", ".join(list(state)[:3]) or "none"
        raise UserError(f"{source.name} holds no smp.Unet ({FIRST}.0.weight is not there); its tensors: {seen}, …")
    steps = len({name.split(".")[2] for name in state if name.startswith("decoder.blocks.")})
    if steps != STEPS:
        raise config_error("encoder_depth", str(steps))
    if any(".attention1." in name for name in state):
        raise config_error("decoder_attention_type", "'scse'")
    plain, batch = f"{FIRST}.0.bias" in state, f"{FIRST}.1.num_batches_tracked" in state
    if not plain and not batch:  # in-place BatchNorm has no such counter, other norms no statistics
        raise config_error("decoder_use_norm", "that is no BatchNorm")


def family(source: Source) -> tuple[str, int]:
    """The trunk whose tensors the encoder's are, by names and shapes, and the input channels of its stem.

    Raises:
        UserError: none of those in common.
    """
    shapes = {name.removeprefix("encoder."): t.shape for name, t in source.state.items() if name.startswith("encoder.")}
    for name in PRETRAINED_ENCODERS:
        with torch.device("meta"):
            expected = {key: tensor.shape for key, tensor in load_trunk(name, None).state_dict().items()}
        stem = next(iter(expected))
        if shapes.keys() == expected.keys() and all(shapes[key] == expected[key] for key in shapes if key != stem):
            return name, shapes[stem][1]
    raise UserError(
        f"{source.name}: its encoder ({', '.join(list(shapes)[:2])}, …) is another; {ONLY['encoder_name'][1]}"
    )


def converted(state: Mapping[str, Tensor], below: list[int], background: bool) -> dict[str, Tensor]:
    """The tensors by our names, and in our order where they read a map and its skip.

    below: channels of the map that each decoder step grows.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if re.fullmatch(r"decoder\.blocks\.\d+\.conv1\.0\.weight", name):
            skip = tensor.shape[1] - below[int(name.split(".")[2])]
            tensor = tensor.roll(skip, dims=1)  # smp: map, skip; ours: skip, map
        if background and name.startswith(f"{HEAD}."):  # a logit of 0: softmax over (0, z) is the sigmoid of z
            tensor = torch.cat([torch.zeros_like(tensor), tensor])
        for pattern, to in RENAMED:
            name = re.sub(pattern, to, name)
        ours[name] = tensor
    return ours
