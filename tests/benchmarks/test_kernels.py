"""The table of kernels, for one case."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kernels.py"


def test_a_row_for_each_selected_case(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--rounds", "2", "--only", "ReLU of 1 x"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    header, _, row = capsys.readouterr().out.splitlines()
    assert header.count("|") == row.count("|") == 5 and "512 x 8 x 8" in row
    *_, kernel, plain, ratio, _ = (cell.strip() for cell in row.split("|"))
    assert min(float(kernel), float(plain), float(ratio.removesuffix("×"))) > 0
