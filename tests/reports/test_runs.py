"""A run directory is read as it is, and what is no run is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unetdiff.errors import UserError
from unetdiff.reports.runs import distinct_names, read_metrics, read_run, read_runs


def test_joint_run(make_run):
    path = make_run("both", task="joint", minutes=3.0)
    run = read_run(path)
    counts = json.loads((path / "summary.json").read_text())["parameters"]
    assert (run.name, run.task, run.heads, run.finished) == ("both", "joint", ["segmentation", "diffusion"], True)
    assert len(run.train) == 10 and len(run.validation) == 2
    assert run.model == path / "best"
    assert run.shared_parameters == sum(n for part, n in counts.items() if not part.startswith("head."))
    assert run.head_parameters("diffusion") == counts["head.diffusion"]


def test_a_head_that_was_not_trained_is_not_the_runs(make_run):
    path = make_run(task="joint")
    config = path / "config.yaml"
    config.write_text(config.read_text().replace("task: joint", "task: diffusion"))
    run = read_run(path)
    assert run.heads == ["diffusion"]
    assert run.head_parameters("segmentation") is None


def test_unfinished_run_without_weights(make_run):
    run = read_run(make_run(task="segmentation", weights=False, finished=False))
    assert run.model is None and not run.finished
    assert run.heads == ["segmentation"]
    assert run.shared_parameters is None


def test_metrics_cut_by_a_kill_and_written_twice(tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    lines = [{"kind": "train", "step": 2, "loss": 1.0}, {"kind": "train", "step": 1, "loss": 5.0}]
    again = {"kind": "train", "step": 2, "loss": 3.0}
    file.write_text("\n".join(json.dumps(line) for line in [*lines, again]) + '\n{"kind": "tra')
    assert [(entry["step"], entry["loss"]) for entry in read_metrics(file)] == [(1, 5.0), (2, 3.0)]


def test_broken_line_in_the_middle_is_named(tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"kind": "train", "step": 1}\n{oops\n{"kind": "train", "step": 2}\n')
    with pytest.raises(UserError, match="line 2"):
        read_metrics(file)


def test_what_is_no_run_is_refused(tmp_path: Path, make_run):
    with pytest.raises(UserError, match="config.yaml"):
        read_run(tmp_path)
    path = make_run()
    with pytest.raises(UserError, match="must be listed once"):
        read_runs([path, path])
    with pytest.raises(UserError, match="at least one"):
        read_runs([])


def test_names_tell_runs_apart():
    assert distinct_names([Path("/a/x/joint"), Path("/a/y/joint")]) == ["x", "y"]
    assert distinct_names([Path("/a/x/0"), Path("/a/y/0"), Path("/a/y/1")]) == ["x/0", "y/0", "y/1"]
    assert distinct_names([Path("/a/joint")] * 2) == ["/a/joint"] * 2 and distinct_names([Path("/a/seed-0")]) == [
        "seed-0"
    ]
    assert distinct_names([Path("/a/seg"), Path("/a/joint")]) == ["seg", "joint"]
