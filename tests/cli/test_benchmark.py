"""`unetdiff benchmark`: a table by kind of work and batch size, the figures behind it, and refusals."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from unetdiff.benchmark import peak_throughput, run_benchmark
from unetdiff.cli.benchmark import batch_sizes_up_to
from unetdiff.cli.main import main

QUICK = ["--rounds", "2", "--warmups", "0", "--num_inference_steps", "2"]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fixed peak throughput, and no process for each peak (what it would be given must go there, though)."""

    def instead(*given: object) -> int:
        pickle.dumps(given)
        return 12_345_678

    monkeypatch.setattr(run_benchmark, "run_in_subprocess", instead)
    monkeypatch.setattr(peak_throughput, "measure_peak_flops", lambda device: {"float32": 4e9, "bf16": 4e9})


def test_a_run_by_batch_size(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    assert main(["benchmark", str(run), "--batch_sizes", "2", "1", *QUICK, "--output", str(file)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"{run}: 0.06 M parameters, ") and "4.0 GFLOP/s in bf16" in out[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out[2:]]
    assert rows[0][:3] == ["work", "batch", "images/s"]
    figures = json.loads(file.read_text())
    kinds = [(one["kind"], one["batch_size"]) for one in figures["measured"]]
    assert kinds == [(kind, size) for kind in ("training step", "masks", "samples") for size in (1, 2)]
    for row, one in zip(rows[2:], figures["measured"], strict=True):
        seconds = one["seconds"]["median"]
        assert row[:2] == [f"{one['kind']}, {one['precision']}", str(one["batch_size"])]
        assert one["images_per_second"] == pytest.approx(one["batch_size"] / seconds)
        assert one["utilization"] == pytest.approx(2 * one["macs"] / seconds / 4e9)
        assert (row[-1], one["memory"]) == ("12", 12_345_678)


def test_a_config_with_overrides(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--no_memory", "--training.batch_size", "1", "--training.mixed_precision=no"]
    assert main(["benchmark", str(config), *QUICK, *words]) == 0
    last = capsys.readouterr().out.splitlines()[-3:]
    assert [line.split(" | ")[0].strip("| ") for line in last][0] == "training step, float32"
    assert all(line.endswith("| – |") for line in last)


def test_batch_sizes_unless_they_are_given() -> None:
    assert [batch_sizes_up_to(most) for most in (1, 4, 5, 32)] == [[1], [1, 4], [1, 4, 5], [1, 4, 16, 32]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "config nowhere: must be a file or the name of a config."),
        (["EMPTY"], "empty: contains no model"),
        (["CONFIG", "--rounds", "0"], "--rounds=0: must be at least 1."),
        (["CONFIG", "--warmups", "-1"], "--warmups=-1: must be at least 0."),
        (["CONFIG", "--batch_sizes", "4", "0"], "--batch_sizes=0: must be at least 1."),
        (["CONFIG", "--batchsize", "4"], "unknown argument '--batchsize'. Did you mean --batch_sizes?"),
        (["CONFIG", "--training.batchsize", "4"], "unknown option --training.batchsize. Did you mean"),
    ],
)
def test_refusals(
    words: list[str], message: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    names = {"CONFIG": str(config), "EMPTY": str(tmp_path / "empty")}
    assert main(["benchmark", *(names.get(word, word) for word in words)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""
