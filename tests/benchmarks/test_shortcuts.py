"""The table of shortcuts, in small."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parents[2] / "benchmarks" / "shortcuts.py"


def test_a_row_for_each_that_was_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [str(RUN), "--rounds", "2", "--only", "ReLU of 1 x"])
    runpy.run_path(str(RUN), run_name="__main__")
    head, _, row = capsys.readouterr().out.splitlines()
    assert head.count("|") == row.count("|") == 5 and "512 x 8 x 8" in row
    *_, mine, theirs, ratio, _ = (cell.strip() for cell in row.split("|"))
    assert min(float(mine), float(theirs), float(ratio)) > 0
