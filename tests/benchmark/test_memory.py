"""Peak memory of allocations of known size, and subprocesses."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from unetdiff.benchmark.memory import peak_working_memory, run_in_subprocess

PROGRAM = """
import numpy as np, torch
from unetdiff.benchmark.memory import peak_working_memory
before = np.ones(128 << 20, np.uint8)
del before  # an earlier peak does not count
def start():
    kept = np.ones(48 << 20, np.uint8)  # an optimizer's state
    def work():
        kept[0] = np.ones(32 << 20, np.uint8)[0]
    return work
print(peak_working_memory(start, torch.device("cpu"), rounds=2))
"""


def test_peak_is_what_the_rounds_hold_at_once() -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert 78 << 20 < int(ran.stdout) < 84 << 20


def test_gpu_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: calls.append("forgotten"))
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: calls.append("waited"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 350)
    assert peak_working_memory(lambda: lambda: calls.append("round"), torch.device("cuda"), rounds=2) == 250
    assert calls == ["forgotten", "round", "round", "waited"]


def test_subprocess_and_its_errors() -> None:
    assert run_in_subprocess(os.getpid) != os.getpid()
    with pytest.raises(ValueError, match="invalid literal"):
        run_in_subprocess(int, "x")
