"""Multiply-adds against closed forms, and peak throughput from fixed times."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unetdiff.benchmark import peak_throughput
from unetdiff.benchmark.multiply_adds import count_macs, count_parameters
from unetdiff.benchmark.timing import Times
from unetdiff.training import runtime


def test_multiply_adds_of_a_convolution() -> None:
    conv, x = nn.Conv2d(3, 4, 3, padding=1), torch.randn(2, 3, 8, 10)
    forward = 2 * 8 * 10 * 4 * 3 * 9
    assert count_parameters(conv) == 4 * 3 * 9 + 4
    assert count_macs(lambda: conv(x)) == forward
    assert count_macs(lambda: conv(x).sum().backward()) == 2 * forward  # the input takes no gradient


def test_peak_is_the_fastest_round_of_the_better_memory_format(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(work, *_, **__):
        for run in work.values():
            run()
        return dict(zip(work, (Times([0.5, 0.4]), Times([0.2, 0.3]), Times([0.1, 0.2])), strict=False))

    monkeypatch.setattr(peak_throughput, "time_interleaved", timed)
    flops = 2 * peak_throughput.BATCH["cpu"] * 8**2 * 4**2 * 9
    monkeypatch.setattr(runtime, "precision", lambda requested, device: "bf16")
    assert peak_throughput.measure_peak_flops(torch.device("cpu"), 4, 8) == pytest.approx(
        {"float32": flops / 0.2, "bf16": flops / 0.1}
    )
    monkeypatch.setattr(runtime, "precision", lambda requested, device: "no")
    assert peak_throughput.measure_peak_flops(torch.device("cpu"), 4, 8) == pytest.approx({"float32": flops / 0.2})
