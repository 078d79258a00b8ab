"""Speedup of each kernel of `unetdiff.kernels` over the plain operation that it replaces, on a CPU.

    OMP_NUM_THREADS=2 python benchmarks/kernels.py [--rounds 20] [--only upsampling]

Feature maps are channels-last, in bfloat16 where the machine computes it natively. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unetdiff.benchmark.timing import Quartiles, Workload, speedup, time_interleaved
from unetdiff.kernels.fast_modules import FastAttention
from unetdiff.kernels.losses import accelerate_loss
from unetdiff.kernels.norm_silu_conv import FastGroupNorm, norm_silu_conv
from unetdiff.kernels.packing import PackedConv
from unetdiff.kernels.upsample_conv import upsample_conv
from unetdiff.models.blocks import upsample_nearest
from unetdiff.segmentation.config import SegmentationConfig
from unetdiff.segmentation.losses import combined
from unetdiff.training import runtime

WARMUPS = 3
DTYPE = runtime.autocast_dtype(device="cpu") or torch.float32


def random_map(*shape: int) -> Tensor:
    """A random feature map (B, C, H, W) in `DTYPE`, channels-last."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DTYPE)
    return x.contiguous(memory_format=torch.channels_last)


def convolution(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 3 × 3 convolution in `DTYPE`, channels-last."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    return conv.to(DTYPE, memory_format=torch.channels_last)  # type: ignore[call-overload]


def with_gradient(function: Callable[[], Tensor]) -> Workload:
    """The forward and backward pass."""
    grad = torch.ones_like(function())
    return lambda: function().backward(grad)


def without_gradient(function: Callable[[], Tensor]) -> Workload:
    """The forward pass for inference."""
    return torch.inference_mode()(function)


def cases() -> Iterator[tuple[str, Workload, Workload]]:
    """(name, kernel, plain operation)."""
    yield from upsampling()
    yield from normalization()
    yield from attention()
    yield from losses()
    yield from packing()


def upsampling() -> Iterator[tuple[str, Workload, Workload]]:
    for batch, channels, width, size in ((32, 128, 128, 16), (4, 32, 16, 128), (4, 2048, 256, 8)):
        x, conv = random_map(batch, channels, size, size).requires_grad_(), convolution(channels, width)
        name = f"upsampling of {batch} x {channels} x {size} x {size} and convolution to {width}"

        def kernel(x: Tensor = x, conv: nn.Conv2d = conv) -> Tensor:
            return upsample_conv(conv, x)

        def plain(x: Tensor = x, conv: nn.Conv2d = conv) -> Tensor:
            return conv(upsample_nearest(x, None))

        yield f"{name}, with gradient", with_gradient(kernel), with_gradient(plain)
        yield name, without_gradient(kernel), without_gradient(plain)


def normalization() -> Iterator[tuple[str, Workload, Workload]]:
    norm, fast_norm = (kind(32, 128).to(DTYPE) for kind in (nn.GroupNorm, FastGroupNorm))
    for size in (16, 32):
        x, conv = random_map(32, 128, size, size).requires_grad_(), convolution(128, 128)
        name = f"of 32 x 128 x {size} x {size}"
        yield (
            f"GroupNorm, SiLU and convolution {name}, with gradient",
            with_gradient(lambda x=x, conv=conv: norm_silu_conv(norm, conv, x)),
            with_gradient(lambda x=x, conv=conv: conv(F.silu(norm(x)))),
        )
        yield f"GroupNorm {name}", without_gradient(lambda x=x: fast_norm(x)), without_gradient(lambda x=x: norm(x))


def attention() -> Iterator[tuple[str, Workload, Workload]]:
    q, k, v = (random_map(32, 4, 256, 32).contiguous().requires_grad_() for _ in "qkv")
    module = FastAttention(128, None, heads=4)
    name = "attention, 32 x 4 heads x 256 tokens of 32"
    kernel, plain = (lambda: module.attend(q, k, v)), (lambda: F.scaled_dot_product_attention(q, k, v))
    yield f"{name}, with gradient", with_gradient(kernel), with_gradient(plain)
    yield name, without_gradient(kernel), without_gradient(plain)


def losses() -> Iterator[tuple[str, Workload, Workload]]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 21, 256, 256, generator=generator).requires_grad_()
    target = torch.randint(21, (4, 256, 256), generator=generator)
    plain = combined(SegmentationConfig().losses, 255)
    kernel = accelerate_loss(plain)
    yield (
        "cross-entropy and Dice of 4 x 21 x 256 x 256, with gradient",
        with_gradient(lambda: kernel(logits, target)[0]),
        with_gradient(lambda: plain(logits, target)[0]),
    )


def packing() -> Iterator[tuple[str, Workload, Workload]]:
    for batch, channels, size in ((1, 512, 8), (8, 64, 64)):
        x, conv = random_map(batch, channels, size, size), convolution(channels, channels)
        packed = PackedConv.of(conv, [], relu=True)
        yield (
            f"convolution and ReLU of {batch} x {channels} x {size} x {size}",
            without_gradient(lambda x=x, packed=packed: packed(x)),
            without_gradient(lambda x=x, conv=conv: F.relu_(conv(x))),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name contains this text")
    args = parser.parse_args()
    print("| operation | kernel, ms | plain, ms | speedup |", "|---|---|---|---|", sep="\n")
    for name, kernel, plain in cases():
        if args.only in name:
            times = time_interleaved({"kernel": kernel, "plain": plain}, args.rounds, WARMUPS)
            cells = [f"{1e3 * Quartiles.of(times[side].wall).median:.2f}" for side in ("kernel", "plain")]
            ratio = speedup(times["kernel"].wall, times["plain"].wall).median
            print("|", " | ".join([name, *cells, f"{ratio:.2f}×"]), "|", flush=True)


if __name__ == "__main__":
    main()
