"""timm's networks as encoders, by name: `encoder.name: timm/convnext_nano` (the extra `timm`)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_exporting

from unetdiff.errors import UserError, config_error, did_you_mean
from unetdiff.models.attention_plan import AttentionPlan, LevelAttention
from unetdiff.models.blocks import replace_batch_norm
from unetdiff.models.config import TIMM_PREFIX, ModelConfig, image_channels
from unetdiff.models.embeddings import TimeModulation
from unetdiff.models.forward_state import ForwardState
from unetdiff.models.input_normalization import pretrained_normalization
from unetdiff.models.loading import read_tensors

STRIDE = 32
"""Of the deepest map, level 5: that of the decoder's default widths."""
PROBE = 128
"""Height of the image at which a network shows its maps."""


class TimmEncoder(nn.Module):
    """A `features_only` network of timm: its maps at strides 2 (or 4) to 32 are the skips and the deepest map.

    Images are padded on the right and bottom, by replication, to multiples of 32, and the maps cropped to what they
    show of the image, so that any network takes any size. timm runs its levels in one call: the time embedding scales
    and shifts each map, and attention joins there, on its way to the decoder (both the identity at initialization).
    """

    def __init__(self, config: ModelConfig, in_channels: int, time_dim: int | None, attention: AttentionPlan) -> None:
        super().__init__()
        encoder = config.encoder
        images = image_channels(config)
        self.model, self.is_channels_last = load_timm_encoder(encoder.name, encoder.weights, images)
        if in_channels > images:
            add_input_channels(self.model, in_channels - images)
        if encoder.norm in ("frozen", "group"):
            replace_batch_norm(self.model, encoder.norm)
        source = self.model.pretrained_cfg
        self.normalization = pretrained_normalization(config, source["mean"], source["std"])
        self.times, self.attentions = nn.ModuleDict(), LevelAttention()
        self.skips: list[tuple[int, int]] = []
        for stride, channels in zip(_strides(self.model), self.model.feature_info.channels(), strict=True):
            level = stride.bit_length() - 1
            self.skips.append((level, channels))
            if time_dim:
                self.times[str(level)] = TimeModulation(time_dim, channels)
            self.attentions.add(attention, level, channels)
        self.out_level, self.out_channels = self.skips.pop()

    def freezable_modules(self) -> list[nn.Module]:
        return [self.model]

    def level_modules(self, count: int) -> list[nn.Module]:
        if count:
            remedy = "Use training.freeze_encoder."
            raise config_error("training.frozen_levels", count, "0 with an encoder of timm, which is one block", remedy)
        return []

    def forward(self, x: Tensor, state: ForwardState) -> tuple[list[Tensor], Tensor]:
        height, width = x.shape[-2:]
        x = _padded(self.normalization(x))
        found = state.run(self._maps, x, owner=self.model)
        maps = []
        for level, h in zip([*[level for level, _ in self.skips], self.out_level], found, strict=True):
            stride = 2**level
            h = h[..., : (height + stride - 1) // stride, : (width + stride - 1) // stride]  # (B, C, H / s, W / s)
            if state.temb is not None and str(level) in self.times:
                h = self.times[str(level)](h, state.temb)
            h = self.attentions(level, h, state)
            maps.append(state.record(f"encoder.{level}", h))
        return maps[:-1], maps[-1]

    def _maps(self, x: Tensor) -> Any:
        maps = self.model(x)
        return tuple(h.permute(0, 3, 1, 2) if self.is_channels_last else h for h in maps)


def _padded(x: Tensor) -> Tensor:
    """Images (B, C, H, W) with the right and bottom border replicated up to multiples of `STRIDE`."""
    for dim in (-2, -1):
        length = x.shape[dim]
        if is_exporting() or length % STRIDE:
            index = torch.arange((length + STRIDE - 1) // STRIDE * STRIDE, device=x.device)
            x = x.index_select(dim, index.clamp(max=length - 1))  # unlike F.pad, exported for every size
    return x


def load_timm_encoder(name: str, weights: str | None, channels: int) -> tuple[Any, bool]:
    """A `features_only` network of timm with `channels` inputs, and whether its maps are (B, H, W, C).

    Args:
        name: "timm/" and a name of `timm.list_models()`, e.g. timm/convnext_nano or timm/convnext_nano.in12k.
        weights: "imagenet" (timm's default weights of the name), the path of a safetensors file with the tensors of
            `timm.create_model(name).state_dict()`, or None (random). The filters of RGB are summed or repeated.
        channels: of the images.

    Raises:
        UserError: timm is not installed, has no such network, or it has no maps of strides up to 32; weights that
            cannot be downloaded, or a file that is not of this network.
    """
    if find_spec("timm") is None:
        remedy = "Run `pip install 'unetdiff[timm]'`."
        raise config_error("encoder.name", name, "an encoder of torchvision without timm installed", remedy)
    import timm

    short = name.removeprefix(TIMM_PREFIX)
    if not timm.is_model(short):
        remedy = did_you_mean(short, timm.list_models(), TIMM_PREFIX + "{}", "timm.list_models() lists them.")
        raise config_error("encoder.name", name, "the name of a network of timm", remedy)
    options: dict[str, Any] = {"features_only": True, "in_chans": channels}
    if weights is not None:
        options["pretrained"] = True
    if weights is not None and weights != "imagenet":
        state = _read_state(timm.create_model(short, num_classes=0), name, weights)
        options["pretrained_cfg_overlay"] = {"state_dict": state, "num_classes": 0}
    problems: list[str] = []
    variants: tuple[dict[str, Any], ...] = ({}, {"strict_img_size": False})  # of window attention
    for flexible in variants:
        try:
            model = timm.create_model(short, **options, **flexible)
        except (TypeError, AttributeError, NotImplementedError, RuntimeError, AssertionError) as error:
            problems.append(_first_line(error))
            continue
        except Exception as error:  # a failed download: the hub's exceptions share no base class
            constraint = f"downloaded by timm ({_first_line(error)})"
            remedy = "Give a safetensors file of timm's weights, or null (random initialization)."
            raise config_error("model.encoder.weights", weights, constraint, remedy) from None
        try:
            return split_norm_act(model), _shows_maps(model, channels)
        except (ValueError, RuntimeError, AssertionError) as error:
            problems.append(_first_line(error))
    constraint = f"a features_only network with maps of strides 4, 8, 16 and 32 at any image size ({problems[0]})"
    raise config_error("encoder.name", name, constraint, "Use e.g. timm/convnext_nano.")


def _first_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:120]


def _strides(model: Any) -> list[int]:
    return [int(stride) for stride in model.feature_info.reduction()]


def _shows_maps(model: Any, channels: int) -> bool:
    """Whether a network's maps are channels-last.

    Raises:
        ValueError: its maps are not a pyramid of doubled strides that ends with 32.
    """
    strides = _strides(model)
    if strides[-1] != STRIDE or any(b != 2 * a for a, b in zip(strides, strides[1:], strict=False)):
        raise ValueError(f"it has strides {strides}")
    training = model.training
    with torch.no_grad():
        maps = model.eval()(torch.zeros(1, channels, PROBE, PROBE + STRIDE))
    model.train(training)
    widths = model.feature_info.channels()
    is_last = all(h.shape[-1] == width for h, width in zip(maps, widths, strict=True))
    for h, stride, width in zip(maps, strides, widths, strict=True):
        shape = (PROBE // stride, (PROBE + STRIDE) // stride)
        if tuple(h.shape[1:]) != ((*shape, width) if is_last else (width, *shape)):
            raise ValueError(f"its map of stride {stride} has shape {tuple(h.shape)}")
    return is_last


def _read_state(model: nn.Module, name: str, weights: str) -> dict[str, Tensor]:
    """The tensors of a network without its classifier, from a file with timm's names.

    Raises:
        UserError: the file is missing, not safetensors, or lacks some of them.
    """
    try:
        state = read_tensors(Path(weights))
    except UserError as error:
        raise UserError(f"model.encoder.weights: {error} Give a safetensors file, imagenet or null.") from None
    expected = model.state_dict()
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    if missing:
        constraint = f"a file of {name} with timm's names (got {len(missing)} tensors missing {missing[:2]})"
        raise config_error("model.encoder.weights", weights, constraint)
    return {key: state.get(key, value) for key, value in expected.items()}


def split_norm_act(module: nn.Module) -> nn.Module:
    """Turn timm's BatchNorm with an activation into a Sequential of the two, in place; returns the module.

    So BatchNorm is torch's own everywhere: it is frozen, folded, and shared between processes like any other.
    """
    from timm.layers import BatchNormAct2d

    for name, child in module.named_children():
        if isinstance(child, BatchNormAct2d):
            norm = nn.BatchNorm2d(child.num_features, child.eps, child.momentum, child.affine)
            norm.load_state_dict(child.state_dict())
            setattr(module, name, nn.Sequential(norm.train(child.training), child.drop, child.act))
        else:
            split_norm_act(child)
    return module


def add_input_channels(model: nn.Module, count: int) -> None:
    """Give the first convolution `count` more inputs, whose filters are zero."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.Conv2d):
                new = type(child)(
                    child.in_channels + count,
                    child.out_channels,
                    child.kernel_size,  # type: ignore[arg-type]
                    child.stride,  # type: ignore[arg-type]
                    child.padding,  # type: ignore[arg-type]
                    bias=child.bias is not None,
                )
                with torch.no_grad():
                    new.weight.zero_()
                    new.weight[:, : child.in_channels] = child.weight
                    if child.bias is not None and new.bias is not None:
                        new.bias.copy_(child.bias)
                setattr(module, name, new)
                return
