"""What an export traces: a module of tensors alone, with the shape and the name of all that goes in and comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx.experimental._config as shape_config
from einops import rearrange
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from unetdiff.data.transforms import to_model_range
from unetdiff.errors import UserError
from unetdiff.models.unet import Head, UNet
from unetdiff.segmentation.inference import segment_whole

Dims = list[int | str]  # a free dimension has a name


class _Segmenter(nn.Module):
    """Pixels (B, C, H, W), or images uint8 (B, H, W, C), to logits."""

    def __init__(self, unet: UNet, images: bool) -> None:
        super().__init__()
        self.unet, self.images = unet, images

    def forward(self, pixels: Tensor) -> Tensor:
        if self.images:
            pixels = to_model_range(rearrange(pixels, "b h w c -> b c h w").contiguous())
        return segment_whole(self.unet, pixels)


class _Denoiser(nn.Module):
    """The diffusers contract without what is no tensor."""

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
    """What is traced: a module of tensors, and the shapes of what goes in and comes out (free dimensions by name)."""

    module: nn.Module
    arguments: dict[str, Dims | None]  # in the module's order; None: this network has no such input
    output: str
    out_dims: Dims
    smallest: int  # height and width
    below: dict[str, int]  # integer inputs: the number that their values stay below

    @property
    def shapes(self) -> dict[str, Dims]:
        """The inputs that there are."""
        return {name: dims for name, dims in self.arguments.items() if dims is not None}

    def inputs(self, batch: int, size: tuple[int, int], seed: int) -> tuple[Tensor | None, ...]:
        """Random inputs; a dimension that is fixed stays as it is."""
        generator = torch.Generator().manual_seed(seed)
        free = {"batch": batch, "height": size[0], "width": size[1], "tokens": (3, 1, 4)[seed]}
        tensors: list[Tensor | None] = []
        for name, dims in self.arguments.items():
            if dims is None:
                tensors.append(None)
                continue
            shape = [free[dim] if isinstance(dim, str) else dim for dim in dims]
            if name in self.below:
                dtype = torch.uint8 if name == "pixels" else torch.int64
                tensors.append(torch.randint(self.below[name], shape, generator=generator).to(dtype))
            else:
                tensors.append(2 * torch.rand(shape, generator=generator) - 1)
        return tuple(tensors)

    def capture(self) -> ExportedProgram:
        """The program, traced at sizes that are odd and no multiple of anything."""
        unit = max(self.smallest, 8)
        least = {"height": self.smallest, "width": self.smallest, "tokens": 1, "batch": 1}
        free = tuple(
            None if dims is None else {i: Dim.DYNAMIC(min=least[d]) for i, d in enumerate(dims) if isinstance(d, str)}
            for dims in self.arguments.values()
        )
        example = self.inputs(2, (2 * unit + unit // 3 + 1, 3 * unit + unit // 3 + 1), seed=0)
        # sizes of one are as good as others (torch.onnx sets the same when it captures)
        with torch.no_grad(), shape_config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
            program = torch.export.export(self.module, example, dynamic_shapes=free, strict=False)
        # what still excludes them are inequalities: torch asked about strides, but the operators take any
        program._guards_code = [guard for guard in program._guards_code if " != " not in guard]
        return program

    def cases(self) -> list[tuple[Tensor | None, ...]]:
        """Inputs of other sizes than the traced one (where they are not fixed), the smallest and odd ones too."""
        unit = max(self.smallest, 8)
        return [
            self.inputs(1, (self.smallest, 3 * unit + 1), seed=1),
            self.inputs(3, (3 * unit - 1, 2 * unit + 1), seed=2),
        ]

    def metadata(self, extra: Mapping[str, Any] | None) -> dict[str, Any]:
        """Metadata of the file: names, shapes and range of its inputs, and the extra entries."""
        pixels = "uint8, 0 to 255" if "pixels" in self.below else "float32, -1 to 1: x / 127.5 - 1 of x in 0 to 255"
        return {"inputs": self.shapes, "output": self.output, "pixels": pixels, **(extra or {})}


def make_plan(unet: UNet, head: Head | None, size: Sequence[int] | None, batch: int | None, preprocess: bool) -> Plan:
    """The plan for one head of a network; see `to_onnx` for the arguments and what is refused."""
    unet.refuse_if_optimized("export")
    head = head or ("segmentation" if "segmentation" in unet.heads else "diffusion")
    if head not in unet.heads:
        raise UserError(f"head: this UNet has no {head} head, only {', '.join(unet.heads)}; name that one")
    if preprocess and head == "diffusion":
        raise UserError("preprocess: a denoiser takes noisy floats, not images; leave preprocess out")
    smallest = _smallest(unet)
    if size is not None and (len(size) != 2 or min(size) < smallest):
        raise UserError(f"size: {list(size)} is too small; give height and width of {smallest} or more")
    if batch is not None and batch < 1:
        raise UserError(f"batch: {batch} is too small; use 1 or more")
    n: int | str = "batch" if batch is None else batch
    h, w = ("height", "width") if size is None else (int(size[0]), int(size[1]))
    channels = unet.config["in_channels"]
    copy = deepcopy(unet).requires_grad_(False).eval()
    nn.Module.to(copy, "cpu", torch.float32)  # not diffusers' own, which warns
    nn.Module.to(copy, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    if head == "segmentation":
        pixels: Dims = [n, h, w, channels] if preprocess else [n, channels, h, w]
        below = {"pixels": 256} if preprocess else {}
        out: Dims = [n, unet.num_classes or 0, h, w]
        return Plan(_Segmenter(copy, preprocess), {"pixels": pixels}, "logits", out, smallest, below)
    imported = unet.config["imported"]
    dim = unet.config["conditioning"]["cross_attention_dim"]
    labels, kind = imported["num_class_embeds"], imported["class_embed_type"]
    arguments: dict[str, Dims | None] = {"sample": [n, channels, h, w], "timestep": [n]}
    if dim or labels or kind:
        arguments["encoder_hidden_states"] = [n, "tokens", dim] if dim else None
    if labels or kind:
        arguments["class_labels"] = [n, 4 * unet.num_sinusoids] if kind == "identity" else [n]
    below = {"timestep": 1000} | ({} if kind == "identity" else {"class_labels": labels or 1000})
    return Plan(_Denoiser(copy), arguments, "prediction", [n, unet.out_channels or 0, h, w], smallest, below)


def _smallest(unet: UNet) -> int:
    """The height and width that the deepest map needs, at least."""
    encoder = unet.config["encoder"]
    if not encoder["channels"]:
        return 32
    levels = len(encoder["channels"])
    stride = unet.config["patch_size"] * 2 ** (levels - 1)
    if encoder["padding"] == "valid":  # the mirrored border must fit into the image, see `segment_whole`
        return 12 * 2 ** (levels - 2) - 4 + stride + 1
    return stride
