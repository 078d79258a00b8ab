"""The machine's peak throughput, the roofline of a U-Net: measured on a wide 3 × 3 convolution.

No network reaches it, because concatenation, normalization and resizing are bound by memory bandwidth, and the
convolutions at fine levels are narrow.
"""

from __future__ import annotations

import torch
from torch import nn

from unetdiff.benchmark.timing import Workload, synchronizer, time_interleaved
from unetdiff.training import runtime

CHANNELS, SIZE = 256, 64
BATCH = {"cpu": 2, "cuda": 64}  # images, so that a call takes much longer than its launch
ROUNDS = 10
DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}


def precision_name(dtype: torch.dtype | None) -> str:
    """Name of an autocast dtype in `measure_peak_flops`; None is float32."""
    return "bf16" if dtype == torch.bfloat16 else "float32"


def measure_peak_flops(device: torch.device, channels: int = CHANNELS, size: int = SIZE) -> dict[str, float]:
    """FLOP/s (two for a multiply-add) of the fastest round, by precision.

    "float32" is the faster of contiguous and channels-last; "bf16" is channels-last, and only present where the machine
    computes it natively.
    """
    cases = [("float32", torch.contiguous_format), ("float32", torch.channels_last)]
    if runtime.precision("auto", device.type) == "bf16":
        cases.append(("bf16", torch.channels_last))
    batch = BATCH.get(device.type, 1)

    def convolution(precision: str, memory_format: torch.memory_format) -> Workload:
        conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        conv = conv.to(device, DTYPES[precision]).to(memory_format=memory_format)  # type: ignore[call-overload]
        x = torch.randn(batch, channels, size, size).to(device, DTYPES[precision], memory_format=memory_format)

        def work() -> None:
            with torch.inference_mode():
                conv(x)

        return work

    work = {f"{name} {memory_format}": convolution(name, memory_format) for name, memory_format in cases}
    times = time_interleaved(work, ROUNDS, synchronize=synchronizer(device))
    flops = 2 * batch * size**2 * channels**2 * 9
    peaks: dict[str, float] = {}
    for (name, _), seconds in zip(cases, times.values(), strict=True):
        peaks[name] = max(peaks.get(name, 0), flops / min(seconds.wall))
    return peaks
