"""What each of the ways that a CPU takes instead of the written one saves by itself, in turns with it.

    OMP_NUM_THREADS=2 python benchmarks/shortcuts.py [--rounds 20] [--only upsampling]

Maps are bfloat16 where the machine is fast at it, and lie channels-last. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unetdiff.benchmark.timing import Quartiles, speedup, time_interleaved
from unetdiff.kernels.conditions import reference_kernels
from unetdiff.kernels.norm_silu_conv import gated, group_norm, norm_silu_conv
from unetdiff.kernels.packing import PackedConv
from unetdiff.kernels.upsample_conv import grown_conv
from unetdiff.models.attention import attend
from unetdiff.models.products import ProductConv
from unetdiff.training import runtime as machine
from unetdiff.training.optimizer import AdamW

Work = Callable[[], object]
WARMUPS = 3


def drawn(*shape: int) -> Tensor:
    """Noise in the machine's fast precision; a map of four dimensions lies channels-last."""
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    tensor = tensor.to(machine.autocast_dtype(device="cpu") or torch.float32)
    return tensor.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else tensor


def conv(channels: int, width: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution of these maps."""
    made = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2)
    return made.to(drawn(1).dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]


def trained(work: Callable[[], Tensor]) -> Work:
    """The work and its gradient."""
    towards = torch.ones_like(work())
    return lambda: work().backward(towards)


def predicted(work: Work) -> Work:
    """The work without gradients."""
    return torch.inference_mode()(work)


def stepping(kind: type[torch.optim.AdamW]) -> Work:
    """A fused step of weights that lie channels-last, as their gradient does."""
    weights = torch.zeros(256, 3072, 3, 3).contiguous(memory_format=torch.channels_last)
    weights.grad = torch.ones_like(weights)
    return kind([weights], fused=True).step


@contextmanager
def norms() -> Iterator[tuple[nn.GroupNorm, nn.GroupNorm]]:
    """A GroupNorm that is taken by hand, and one that is not, for somebody listens to it."""
    mine, theirs = (nn.GroupNorm(32, 128).to(drawn(1).dtype) for _ in "ab")
    handle = theirs.register_forward_hook(lambda *_: None)
    yield mine, theirs
    handle.remove()


def cases() -> Iterator[tuple[str, Work, Work]]:
    """What it is, the shortcut, and the written way."""
    for label, batch, channels, width, side in (
        ("a denoiser's upsampling, 32 x 128 x 16 x 16, 3 x 3 convolution to 128", 32, 128, 128, 16),
        ("a decoder's, 4 x 32 x 128 x 128 to 16", 4, 32, 16, 128),
        ("its deepest, 4 x 2048 x 8 x 8 to 256", 4, 2048, 256, 8),
    ):
        h, layer = drawn(batch, channels, side, side).requires_grad_(), conv(channels, width)

        def shortcut(h: Tensor = h, layer: nn.Conv2d = layer) -> Tensor:
            return grown_conv(layer, h)

        def written(h: Tensor = h, layer: nn.Conv2d = layer) -> Tensor:
            with reference_kernels():
                return grown_conv(layer, h)

        yield f"{label}, and gradient", trained(shortcut), trained(written)
        yield label, predicted(shortcut), predicted(written)
    for kernel, channels, width, side, stride in ((1, 2048, 512, 8, 1), (3, 512, 512, 16, 2)):
        h, layer = drawn(4, channels, side, side).requires_grad_(), conv(channels, width, kernel, stride)
        product = ProductConv(channels, width, kernel, stride, padding=kernel // 2)
        product = product.to(h.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        size = f"4 x {channels} x {side} x {side} to {width}, stride {stride}"
        yield (
            f"{kernel} x {kernel} convolution of {size}, and gradient",
            trained(lambda h=h, product=product: product(h)),
            trained(lambda h=h, layer=layer: layer(h)),
        )
    yield "AdamW of 256 x 3072 x 3 x 3 in channels-last", *(stepping(kind) for kind in (AdamW, torch.optim.AdamW))
    with norms() as (mine, theirs):
        for side in (16, 32):
            x, layer = drawn(32, 128, side, side).requires_grad_(), conv(128, 128)
            name = f"of 32 x 128 x {side} x {side}"
            yield (
                f"GroupNorm, SiLU and convolution {name}, and gradient",
                trained(lambda x=x, layer=layer: norm_silu_conv(mine, layer, x)),
                trained(lambda x=x, layer=layer: norm_silu_conv(theirs, layer, x)),
            )
            yield f"GroupNorm {name}", predicted(lambda x=x: group_norm(mine, x)), predicted(lambda x=x: theirs(x))
    q, k, v = (drawn(32 * 4 * 256 * 32).view(32, 4, 256, 32).requires_grad_() for _ in "qkv")
    shortcut, written = (lambda: attend(q, k, v)), (lambda: F.scaled_dot_product_attention(q, k, v))
    yield "attention, 32 x 4 heads x 256 tokens of 32, and gradient", trained(shortcut), trained(written)
    yield "attention, 32 x 4 heads x 256 tokens of 32", predicted(shortcut), predicted(written)
    both = drawn(32, 256, 1024).requires_grad_()
    yield (
        "gated GELU of 32 x 256 x 1024, and gradient (for memory, not time)",
        trained(lambda: gated(both)),
        trained(lambda: (lambda value, gate: value * F.gelu(gate))(*both.chunk(2, dim=-1))),
    )
    for batch, channels, width, side in ((1, 512, 512, 8), (8, 64, 64, 64)):
        x, layer = drawn(batch, channels, side, side), conv(channels, width)
        packed = PackedConv.of(layer, [], relu=True)
        yield (
            f"3 x 3 convolution and ReLU of {batch} x {channels} x {side} x {side}",
            predicted(lambda x=x, packed=packed: packed(x)),
            predicted(lambda x=x, layer=layer: F.relu_(layer(x))),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", default="", metavar="WORD", help="those whose name has this word")
    given = parser.parse_args()
    print("| what | shortcut, ms | as written, ms | times as fast |", "|---|---|---|---|", sep="\n")
    for name, shortcut, written in cases():
        if given.only in name:
            times = time_interleaved({"shortcut": shortcut, "written": written}, given.rounds, WARMUPS)
            mine, theirs = (times[way].wall for way in ("shortcut", "written"))
            cells = [f"{1e3 * Quartiles.of(wall).median:.2f}" for wall in (mine, theirs)]
            print("|", " | ".join([name, *cells, f"{speedup(mine, theirs).median:.2f}"]), "|", flush=True)


if __name__ == "__main__":
    main()
