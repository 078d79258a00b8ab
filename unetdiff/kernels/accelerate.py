"""Exchange the modules of a built U-Net for faster ones, in place.

On a GPU the exchanged modules compute their plain forward pass: `accelerate_training_` changes nothing there, and of
`accelerate_inference_` only the folded BatchNorm, the dtype, channels-last weights and torch.compile take effect.

A module is exchanged by setting its `__class__`: it stays the same object with the same parameters, hooks and
references to it.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from unetdiff.kernels import fast_modules as fast
from unetdiff.kernels.allocator import return_freed_memory
from unetdiff.kernels.fold_batch_norm import fold_batch_norm
from unetdiff.kernels.packing import can_pack, pack
from unetdiff.models.attention import Attention, AttentionBlock, FeedForward, TransformerBlock
from unetdiff.models.blocks import ResnetBlock, Upsample, Upsample2d
from unetdiff.models.decoders import PyramidDecoder, PyramidUpBlock
from unetdiff.models.heads import DiffusionHead, SegmentationHead
from unetdiff.models.unet import UNet

EXCHANGED: dict[type[nn.Module], type[nn.Module]] = {
    ResnetBlock: fast.FastResnetBlock,
    Upsample: fast.FastUpsample,
    Upsample2d: fast.FastUpsample2d,
    PyramidUpBlock: fast.FastPyramidUpBlock,
    Attention: fast.FastAttention,
    AttentionBlock: fast.FastAttentionBlock,
    FeedForward: fast.FastFeedForward,
    SegmentationHead: fast.FastSegmentationHead,
    DiffusionHead: fast.FastDiffusionHead,
}
"""The class of a module -> that of the faster module.

`FastGroupNorm` is not among them: in residual blocks and heads, norm and SiLU are one step (`norm_silu`), which takes
`nn.GroupNorm` itself only. Those of attention blocks are exchanged separately.
"""
PRIVATE_NAMES = (
    (torch, "native_group_norm"),
    (torch.ops.aten, "convolution_backward"),
    (torch.ops.aten, "silu_backward"),
    (torch.nn.modules.module, "_has_any_global_hook"),
    (torch._C, "_functorch"),
)
"""Undocumented names of torch that the training kernels use; packing has its own (`unetdiff.kernels.packing`)."""


def accelerate_training_(unet: UNet) -> UNet:
    """Exchange modules for faster ones with the same parameters and, up to rounding, the same numbers and gradients.

    The network stays whole: it trains, saves, copies, compiles, exports and takes hooks as before (`state_dict` keys do
    not change); only double backward is lost on a CPU. Also for evaluation and sampling with a network that must stay
    trainable.

    Returns:
        The network itself.

    Warns:
        UserWarning: this torch lacks one of `PRIVATE_NAMES`; then nothing is exchanged.
    """
    missing = [name for owner, name in PRIVATE_NAMES if not hasattr(owner, name)]
    if missing:
        message = f"torch {torch.__version__} lacks {', '.join(missing)}: the network keeps its plain modules."
        warnings.warn(message, UserWarning, stacklevel=2)
        return unet
    for module in unet.modules():
        module.__class__ = EXCHANGED.get(type(module), type(module))
        if isinstance(module, AttentionBlock | TransformerBlock):
            for child in module.children():
                if type(child) is nn.GroupNorm:
                    child.__class__ = fast.FastGroupNorm
    return unet


def accelerate_inference_(unet: UNet, dtype: torch.dtype | None = None, compile: bool = False) -> UNet:
    """Turn a network into one for inference only, in eval mode and without gradients; it can no longer be saved.

    Each BatchNorm is folded into the convolution before it, modules are exchanged as in `accelerate_training_`, and the
    weights are channels-last or, on a CPU, packed for its convolutions (`unetdiff.kernels.packing`).

    Args:
        unet: the network; changed in place.
        dtype: of weights and outputs, e.g. torch.bfloat16 on hardware with fast bfloat16; None: unchanged.
        compile: with torch.compile and constant weights instead of packing. The first call at each size takes half a
            minute or more and needs a C++ compiler (CPU) or Triton (GPU).

    Returns:
        The network itself.
    """
    unet.eval().requires_grad_(False)
    dtype = dtype or unet.dtype
    if any(isinstance(module, nn.BatchNorm2d) for module in unet.modules()):
        side = _example_side(unet)
        example = torch.zeros(1, unet.config["in_channels"], side, side, device=unet.device)
        nn.Module.to(unet, dtype=torch.float32)  # not ModelMixin.to, which warns about every dtype
        fold_batch_norm(unet, lambda: _outputs(unet, example))
    nn.Module.to(unet, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return_freed_memory()  # of the old weights
    accelerate_training_(unet)
    if compile:
        unet.compile(options={"freezing": True})
    elif unet.device.type == "cpu" and can_pack(dtype) and isinstance(unet.decoder, PyramidDecoder):
        own = [getattr(head, "own_decoder", None) for head in unet.heads.values()]
        pack(nn.ModuleList([unet.encoder, unet.mid_block, unet.decoder, *(part for part in own if part is not None)]))
    unet.optimized_for_inference = True
    return unet


def _outputs(unet: UNet, example: torch.Tensor) -> torch.Tensor:
    """The outputs of all heads, side by side: a head may have decoder levels of its own."""
    return torch.cat([unet(example, return_dict=False, head=head)[0].flatten() for head in unet.heads])


def _example_side(unet: UNet) -> int:
    """Height and width of an example that reaches the deepest level."""
    encoder: Any = unet.encoder
    if unet.config["encoder"]["padding"] == "valid":
        return int(encoder.lost_unpadded + 4)
    return int(max(64, unet.config["patch_size"] * 2**encoder.out_level))
