"""The module that an export traces, and the names and shapes of its inputs and output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch.fx.experimental._config as shape_config
from einops import rearrange
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from unetdiff.data.transforms import to_model_range
from unetdiff.errors import config_error
from unetdiff.models.unet import Head, UNet
from unetdiff.segmentation.segmenter import Autoencoder, Segmenter, as_segmenter

Module = TypeVar("Module", bound=nn.Module)
Dims = list[int | str]
"""A shape; a dynamic dimension is a name."""


class _Segmenter(nn.Module):
    """Pixels (B, C, H, W) in [-1, 1], or uint8 images (B, H, W, C), to logits (B, num_classes, H, W)."""

    def __init__(self, segmenter: Segmenter, images: bool) -> None:
        super().__init__()
        self.unet, self.images, self.context = segmenter.unet, images, segmenter.context
        codec = segmenter.codec
        self.vae = None if codec is None else codec.vae
        self.segmenter = segmenter if codec is None else replace(segmenter, codec=_InOnePass(codec))

    def forward(self, pixels: Tensor) -> Tensor:
        if self.images:
            pixels = to_model_range(rearrange(pixels, "b h w c -> b c h w").contiguous())
        return self.segmenter(pixels)


class _InOnePass:
    """An autoencoder that encodes any number of images in one pass, so that it is traced for all."""

    def __init__(self, codec: Autoencoder) -> None:
        self.codec, self.vae, self.channels, self.factor = codec, codec.vae, codec.channels, codec.factor

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents, (B, C, h, w); noise is not used."""
        return self.mean_latents(pixels)

    def mean_latents(self, pixels: Tensor) -> Tensor:
        """See `LatentCodec.mean_latents`."""
        return self.codec.mean_latents(pixels)


class _Denoiser(nn.Module):
    """The diffusion head with diffusers' arguments, tensors only."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor | None = None,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        return self.unet(sample, timestep, encoder_hidden_states, class_labels, return_dict=False)[0]


@dataclass(frozen=True)
class Plan:
    """A module to trace, and the names and shapes of its inputs and output."""

    module: nn.Module
    """Takes and returns tensors."""
    arguments: dict[str, Dims | None]
    """Shapes in the order of the module's arguments; None: the network does not have this input."""
    output: str
    """Name of the output."""
    out_dims: Dims
    """Its shape."""
    min_side: int
    """Smallest height and width."""
    upper_bounds: dict[str, int]
    """Integer inputs: the exclusive upper bound of their values."""

    @property
    def shapes(self) -> dict[str, Dims]:
        """Shapes of the inputs that the network has."""
        return {name: dims for name, dims in self.arguments.items() if dims is not None}

    def inputs(self, batch: int, size: tuple[int, int], seed: int) -> tuple[Tensor | None, ...]:
        """Random inputs with these values of the dynamic dimensions (and 3, 1 or 4 tokens for seed 0, 1 or 2)."""
        generator = torch.Generator().manual_seed(seed)
        dynamic = {"batch": batch, "height": size[0], "width": size[1], "tokens": (3, 1, 4)[seed]}
        tensors: list[Tensor | None] = []
        for name, dims in self.arguments.items():
            if dims is None:
                tensors.append(None)
                continue
            shape = [dynamic[dim] if isinstance(dim, str) else dim for dim in dims]
            if name in self.upper_bounds:
                dtype = torch.uint8 if name == "pixels" else torch.int64
                tensors.append(torch.randint(self.upper_bounds[name], shape, generator=generator).to(dtype))
            else:
                tensors.append(2 * torch.rand(shape, generator=generator) - 1)
        return tuple(tensors)

    def capture(self) -> ExportedProgram:
        """The program, traced at sizes that are not multiples of the network's strides."""
        unit = max(self.min_side, 8)
        lowest = {"height": self.min_side, "width": self.min_side, "tokens": 1, "batch": 1}
        dynamic = tuple(
            None if dims is None else {i: Dim.DYNAMIC(min=lowest[d]) for i, d in enumerate(dims) if isinstance(d, str)}
            for dims in self.arguments.values()
        )
        example = self.inputs(2, (2 * unit + unit // 3 + 1, 3 * unit + unit // 3 + 1), seed=0)
        # otherwise a dynamic dimension could not be 1 (torch.onnx sets the same)
        with torch.no_grad(), shape_config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
            program = torch.export.export(self.module, example, dynamic_shapes=dynamic, strict=False)
        # the remaining guards against 1 are inequalities about strides; the operators take any strides
        program._guards_code = [
            guard for guard in program._guards_code if " != " not in guard and not guard.endswith("[0] > 1")
        ]
        return program

    def cases(self) -> list[tuple[Tensor | None, ...]]:
        """Inputs whose dynamic sizes differ from the traced ones, including the smallest and odd sizes."""
        unit = max(self.min_side, 8)
        return [
            self.inputs(1, (self.min_side, 3 * unit + 1), seed=1),
            self.inputs(3, (3 * unit - 1, 2 * unit + 1), seed=2),
        ]

    @property
    def expected(self) -> str | None:
        """What the input `pixels` must hold; None for a denoiser."""
        if (dims := self.arguments.get("pixels")) is None:
            return None
        is_uint8 = "pixels" in self.upper_bounds
        channels = dims[-1] if is_uint8 else dims[1]
        order = {1: "gray", 3: "RGB"}.get(channels, "channels as trained")  # type: ignore[arg-type]
        if is_uint8:
            return f"{order}, uint8, 0 to 255, channels last"
        return f"{order}, float32, -1 to 1 (x / 127.5 - 1 of x in 0 to 255), channels first"

    def metadata(self, extra: Mapping[str, Any] | None) -> dict[str, Any]:
        """Metadata of the file: names and shapes of its inputs, what pixels hold, the output's name, and `extra`."""
        pixels = {} if self.expected is None else {"pixels": self.expected}
        return {"inputs": self.shapes, "output": self.output, **pixels, **(extra or {})}


def make_plan(
    network: UNet | Segmenter,
    head: Head | None,
    size: Sequence[int] | None,
    batch: int | None,
    preprocess: bool,
) -> Plan:
    """The plan for one head of a network; arguments and errors as of `to_onnx`."""
    segmenter = as_segmenter(network)
    unet = segmenter.unet
    unet.refuse_if_optimized("export")
    head = head or ("segmentation" if "segmentation" in unet.heads else "diffusion")
    if head not in unet.heads:
        raise config_error("head", head, f"one of this UNet's heads ({', '.join(unet.heads)})")
    if preprocess and head == "diffusion":
        raise config_error("preprocess", True, "false with head=diffusion, whose input is noise, not an image")
    latent_cell = segmenter.codec.factor if segmenter.codec is not None and head == "segmentation" else 1
    min_side = _min_side(unet) * latent_cell
    if size is not None and (len(size) != 2 or min(size) < min_side):
        raise config_error("size", list(size), f"[height, width] of at least {min_side} each")
    if batch is not None and batch < 1:
        raise config_error("batch", batch, "at least 1")
    n: int | str = "batch" if batch is None else batch
    h, w = ("height", "width") if size is None else (int(size[0]), int(size[1]))
    channels = unet.config["in_channels"]
    copy = _for_export(unet)
    if head == "segmentation":
        if segmenter.view.noise_level is not None:
            constraint = "false in an export, which has no random numbers"
            raise config_error("segmentation.noised", True, constraint)
        codec, context = segmenter.codec, segmenter.context
        if codec is not None:
            channels, codec = 3, type(codec)(_for_export(codec.vae))  # type: ignore[call-arg]
        context = None if context is None else _for_export(context)
        segmenter = Segmenter(copy, segmenter.view, codec, context)
        pixels: Dims = [n, h, w, channels] if preprocess else [n, channels, h, w]
        bounds = {"pixels": 256} if preprocess else {}
        out: Dims = [n, unet.num_classes or 0, h, w]
        return Plan(_Segmenter(segmenter, preprocess), {"pixels": pixels}, "logits", out, min_side, bounds)
    imported = unet.config["imported"]
    dim = unet.config["conditioning"]["cross_attention_dim"]
    labels, kind = imported["num_class_embeds"], imported["class_embed_type"]
    arguments: dict[str, Dims | None] = {"sample": [n, channels, h, w], "timestep": [n]}
    if dim or labels or kind:
        arguments["encoder_hidden_states"] = [n, "tokens", dim] if dim else None
    if labels or kind:
        arguments["class_labels"] = [n, 4 * unet.num_sinusoids] if kind == "identity" else [n]
    bounds = {"timestep": 1000} | ({} if kind == "identity" else {"class_labels": labels or 1000})
    return Plan(_Denoiser(copy), arguments, "prediction", [n, unet.out_channels or 0, h, w], min_side, bounds)


def _for_export(module: Module) -> Module:
    """A frozen float32 copy on the CPU, in eval mode."""
    copy = deepcopy(module).requires_grad_(False).eval()
    nn.Module.to(copy, "cpu", torch.float32)  # not ModelMixin.to, which warns about every dtype
    nn.Module.to(copy, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return copy


def _min_side(unet: UNet) -> int:
    """The smallest height and width, at which the deepest map still has a pixel."""
    encoder = unet.config["encoder"]
    if not encoder["channels"]:
        return 32
    levels = len(encoder["channels"])
    stride = unet.config["patch_size"] * 2 ** (levels - 1)
    if encoder["padding"] == "valid":  # the mirrored border must fit into the image, see `segment_whole`
        return 12 * 2 ** (levels - 2) - 4 + stride + 1
    return stride
