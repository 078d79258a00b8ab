"""The highest memory, against allocations of known size."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch

from unetdiff.config import RunConfig
from unetdiff.training.peak import STATUS, forget_peak, peak_bytes
from unetdiff.training.trainer import train

MIB = 1 << 20


@pytest.mark.skipif(not STATUS.is_file(), reason="the system does not say")
def test_an_earlier_peak_is_forgotten() -> None:
    device = torch.device("cpu")
    before = np.ones(128 * MIB, np.uint8)
    high = peak_bytes(device)
    del before
    forget_peak(device)
    start = peak_bytes(device)
    now = np.ones(64 * MIB, np.uint8)
    found = peak_bytes(device)
    del now
    assert high is not None and start is not None and found is not None
    assert high - start > 120 * MIB and 60 * MIB < found - start < 70 * MIB


def test_a_gpu_is_asked_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", asked.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 350)
    device = torch.device("cuda", 1)
    forget_peak(device)
    assert peak_bytes(device) == 350 and asked == [device]


def test_a_run_says_its_peak(tiny: Callable[..., RunConfig]) -> None:
    run = train(tiny("segmentation", training__steps=1))
    peak = json.loads((run / "summary.json").read_text())["peak_memory"]
    assert peak is None or 50 * MIB < peak < 1 << 36
