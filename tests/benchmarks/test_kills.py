"""Killed runs: operations are counted, a kill strikes at the one chosen, and a difference is found."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest

if not hasattr(os, "pidfd_open"):
    pytest.skip("Linux only", allow_module_level=True)

import kills
import soak
import unetdiff.training.trainer  # noqa: F401  (imported before the forks)
from attacks import material
from attacks.operations import Operations
from attacks.process import run_forked


def writer(folder: Path) -> int:
    (folder / "run").mkdir()
    (folder / "run/a.txt").write_text("0123456789")
    os.replace(folder / "run/a.txt", folder / "run/b.txt")
    (folder / "elsewhere.txt").write_text("x")
    return 0


@pytest.mark.parametrize(
    "number, moment, left",
    [
        (1, "before", []),
        (1, "after", ["run"]),
        (2, "half", ["a.txt", "run"]),
        (3, "before", ["a.txt", "run"]),
        (3, "after", ["b.txt", "run"]),
        (4, "before", ["b.txt", "elsewhere.txt", "run"]),
    ],
)
def test_a_kill_strikes_at_its_operation(number: int, moment: kills.Moment, left: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()

    def run() -> int:
        Operations(folder / "run", number, moment).install()
        return writer(folder)

    result = run_forked(run, folder, tmp_path / "streams")
    assert result.signal == (9 if number < 4 else None)
    assert sorted(path.name for path in folder.rglob("*")) == left
    if moment == "half":
        assert (folder / "run/a.txt").read_text() == "01234"


def test_killed_runs_end_as_the_uninterrupted_one(tmp_path: Path) -> None:
    made = tmp_path / "material"
    material.make(made, [])
    variant = kills.prepare(made, tmp_path, "segmentation, 2 kept")
    assert variant.operations > 40
    count, wrong = kills.killed_and_resumed(variant, made, tmp_path / "killed", True, random.Random(2))
    assert count >= 1 and wrong == ""
    (tmp_path / "killed/run/.writing-latest").mkdir()
    assert kills.difference(variant.reference, tmp_path / "killed/run") == "leftovers: .writing-latest"
    (tmp_path / "killed/run/.writing-latest").rmdir()
    weights = next((tmp_path / "killed/run/latest/unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert kills.difference(variant.reference, tmp_path / "killed/run").startswith("differs: latest/unet/")


def test_times_are_not_compared(tmp_path: Path) -> None:
    for name, minutes, loss in (("a", 1.0, 0.5), ("b", 2.0, 0.5), ("c", 1.0, 0.6)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps({"step": 1, "minutes": minutes, "loss": loss}) + "\n")
    assert kills.difference(tmp_path / "a", tmp_path / "b") == ""
    assert "line 1, loss" in kills.difference(tmp_path / "a", tmp_path / "c")


@pytest.mark.parametrize("growth, files, flat", [(0.0, 0, True), (0.05, 0, False), (0.0, 3, False)])
def test_soak_tells_growth_from_flat(growth: float, files: int, flat: bool) -> None:
    place = np.linspace(0, 1, 100)
    memory = 500e6 * (1 + 2 * growth * place) + 1e6 * np.sin(50 * place)
    samples = np.stack([place * 60, memory, 20 + np.round(2 * files * place)], axis=1)
    assert soak.report(samples, 1000)[1] is flat
