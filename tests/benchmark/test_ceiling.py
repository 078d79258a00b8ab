"""Counts against sums by hand, and the ceiling from times that are known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unetdiff.benchmark import ceiling
from unetdiff.benchmark.multiply_adds import macs, parameters
from unetdiff.benchmark.timing import Times
from unetdiff.training import runtime as machine


def test_multiply_adds_of_a_convolution_there_and_back() -> None:
    conv, x = nn.Conv2d(3, 4, 3, padding=1), torch.randn(2, 3, 8, 10)
    forward = 2 * 8 * 10 * 4 * 3 * 9
    assert parameters(conv) == 4 * 3 * 9 + 4
    assert macs(lambda: conv(x)) == forward
    assert macs(lambda: conv(x).sum().backward()) == 2 * forward  # the input takes no gradient


def test_ceiling_is_the_fastest_round_of_the_better_memory_format(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(work, *_, **__):
        for run in work.values():
            run()
        return dict(zip(work, (Times([0.5, 0.4]), Times([0.2, 0.3]), Times([0.1, 0.2])), strict=False))

    monkeypatch.setattr(ceiling, "time_interleaved", timed)
    flops = 2 * ceiling.BATCH["cpu"] * 8**2 * 4**2 * 9
    monkeypatch.setattr(machine, "precision", lambda asked, device: "bf16")
    assert ceiling.ceilings(torch.device("cpu"), 4, 8) == pytest.approx({"float32": flops / 0.2, "bf16": flops / 0.1})
    monkeypatch.setattr(machine, "precision", lambda asked, device: "no")
    assert ceiling.ceilings(torch.device("cpu"), 4, 8) == pytest.approx({"float32": flops / 0.2})
