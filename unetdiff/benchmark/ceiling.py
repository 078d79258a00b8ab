"""What the machine can do at most, measured: a wide 3x3 convolution, the work that a U-Net mostly is.

No network reaches it: its maps are joined, normalised and resized as well, and its finest levels are narrow.
"""

from __future__ import annotations

import torch
from torch import nn

from unetdiff.benchmark.timing import Round, synchronizer, time_interleaved
from unetdiff.training import runtime as machine

CHANNELS, SIDE = 256, 64
BATCH = {"cpu": 2, "cuda": 64}  # images that keep the device busy for much longer than a call takes
ROUNDS = 10
DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}


def precision_of(dtype: torch.dtype | None) -> str:
    """The name that a ceiling has, of an autocast type (None: float32)."""
    return "bf16" if dtype == torch.bfloat16 else "float32"


def ceilings(device: torch.device, channels: int = CHANNELS, side: int = SIDE) -> dict[str, float]:
    """Floating point operations a second (a multiply-add is two) of the fastest round, by precision.

    "float32" is the faster of the two memory formats; "bf16" is channels-last, and there where the machine has it.
    """
    cases = [("float32", torch.contiguous_format), ("float32", torch.channels_last)]
    if machine.precision("auto", device.type) == "bf16":
        cases.append(("bf16", torch.channels_last))
    batch = BATCH.get(device.type, 1)

    def convolution(precision: str, layout: torch.memory_format) -> Round:
        conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        conv = conv.to(device, DTYPES[precision]).to(memory_format=layout)  # type: ignore[call-overload]
        x = torch.randn(batch, channels, side, side).to(device, DTYPES[precision], memory_format=layout)

        def work() -> None:
            with torch.inference_mode():
                conv(x)

        return work

    work = {f"{name} {layout}": convolution(name, layout) for name, layout in cases}
    times = time_interleaved(work, ROUNDS, synchronize=synchronizer(device))
    flops = 2 * batch * side**2 * channels**2 * 9
    found: dict[str, float] = {}
    for (name, _), taken in zip(cases, times.values(), strict=True):
        found[name] = max(found.get(name, 0), flops / min(taken.wall))
    return found
