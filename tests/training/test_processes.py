"""Two processes (gloo, CPU): same training as one, each sample evaluated once, one set of files."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from unetdiff.config.reading import to_yaml
from unetdiff.config.schema import RunConfig
from unetdiff.training import checkpoints
from unetdiff.training.logger import read_lines
from unetdiff.training.trainer import train

# what makes a step of two half batches equal to one of a whole batch: float32, no dropout, a loss that is a mean
SAME = {
    "training__mixed_precision": "no",
    "model__residual__dropout": 0.0,
    "segmentation__losses": {"cross_entropy": 1.0},
    "data__scenes__val_images": 7,  # odd: a sampler that pads would count an image twice
}


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _on_two(config: RunConfig, tmp_path: Path) -> Path:
    """Train a config on two processes, as a person starts them."""
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--num_processes",
        "2",
        "--cpu",
        "--main_process_port",
        _free_port(),
    ]
    command += ["-m", "unetdiff", "train", config.task, str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return Path(config.training.output_dir)


def test_two_processes_learn_what_one_learns(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    one, two = train(tiny("segmentation", "one", **SAME)), _on_two(tiny("segmentation", "two", **SAME), tmp_path)
    summary = json.loads((two / "summary.json").read_text())
    assert summary["processes"] == 2 and summary["images"] == 24
    lines = {run: read_lines(run / "metrics.jsonl") for run in (one, two)}
    assert [(line["kind"], line["step"]) for line in lines[two]] == [
        (line["kind"], line["step"]) for line in lines[one]
    ]
    for ours, theirs in zip(lines[two], lines[one], strict=True):
        for key in ("lr", "loss", "segmentation/mean_iou", "segmentation/loss", "segmentation/images"):
            assert (key in ours) == (key in theirs)
            if key in theirs:
                assert ours[key] == pytest.approx(theirs[key], rel=1e-3)
    assert lines[two][-1]["segmentation/images"] == 7
    a, b = (load_file(checkpoints.newest(run) / checkpoints.MODEL) for run in (one, two))  # type: ignore[operator]
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=1e-3, atol=5e-5)
    assert sorted(p.relative_to(two) for p in two.rglob("*.png")) == sorted(
        p.relative_to(one) for p in one.rglob("*.png")
    )


def test_two_processes_weigh_and_compare_the_gradients_of_the_whole_batch(
    tiny: Callable[..., RunConfig], tmp_path: Path
) -> None:
    options: dict[str, Any] = {**SAME, "joint__weighting": "gradient_norm", "joint__log_gradients": 1}
    options |= {"training__steps": 1, "training__log_every": 1}
    one, two = train(tiny("joint", "one", **options)), _on_two(tiny("joint", "two", **options), tmp_path)
    lines = [read_lines(run / "metrics.jsonl") for run in (one, two)]
    assert [line["kind"] for line in lines[1]] == [line["kind"] for line in lines[0]]
    a, b = (next(line for line in those if line["kind"] == "gradients") for those in lines)
    assert a.keys() == b.keys()
    for group in ("decoder.0", "encoder.0", "all"):
        for head in ("segmentation", "diffusion"):
            assert b[f"{group}/{head}_norm"] == pytest.approx(a[f"{group}/{head}_norm"], rel=1e-3)
    files = (checkpoints.newest(run) / checkpoints.MODEL for run in (one, two))  # type: ignore[operator]
    a, b = (load_file(file)["weighting.norms"].tolist() for file in files)
    assert b == pytest.approx(a, rel=1e-3) and min(a) > 0
