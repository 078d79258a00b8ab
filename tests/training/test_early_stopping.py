"""A run ends when its best metric does not improve any more, and a resumed one at the same step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from unetdiff.config.reading import from_yaml
from unetdiff.config.schema import RunConfig
from unetdiff.errors import UserError
from unetdiff.training import checkpoints
from unetdiff.training.logger import read_lines
from unetdiff.training.tasks.segmentation import SegmentationTask
from unetdiff.training.trainer import train

Tiny = Callable[..., RunConfig]
STILL: dict[str, Any] = {  # weights that hardly move: the first validation stays the best
    "training__optimizer__lr": 1e-9,
    "training__steps": 40,
    "training__validate_every": 2,
    "training__checkpoint_every": 3,
    "training__early_stopping_patience": 2,
}


def state(run: Path) -> dict[str, Any]:
    newest = checkpoints.newest(run)
    assert newest is not None
    progress = json.loads((newest / checkpoints.STATE).read_text())
    return {key: value for key, value in progress.items() if "minutes" not in key}


def validations(run: Path) -> list[int]:
    return [line["step"] for line in read_lines(run / "metrics.jsonl") if line["kind"] == "validation"]


def test_a_run_stops_and_so_does_a_resumed_one(
    tiny: Tiny,
    cut_and_resumed: Callable[[RunConfig], dict[str, Tensor]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tiny("segmentation", **STILL)
    run = Path(config.training.output_dir)
    cut_and_resumed(config)  # trained, its last checkpoint deleted, resumed
    assert "stopped early at step 6 of 40: segmentation/mean_iou is not better than that of step 2" in (
        capsys.readouterr().err
    )
    assert validations(run) == [2, 4, 6]
    assert (state(run)["step"], state(run)["stale"], state(run)["best_step"]) == (6, 2, 2)
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["steps"], summary["stopped_early"]) == (6, True)
    train(config)  # finished: nothing is trained
    assert validations(run) == [2, 4, 6]


def test_more_patience_continues_as_if_it_had_always_been_so(tiny: Tiny) -> None:
    run = train(tiny("segmentation", **STILL | {"training__early_stopping_patience": 1}))
    assert state(run)["step"] == 4
    train(tiny("segmentation", training__resume=True, **STILL))
    whole = train(tiny("segmentation", "whole", **STILL))
    assert state(run) == state(whole) and state(run)["step"] == 6
    for name in (checkpoints.MODEL, checkpoints.EMA_WEIGHTS, checkpoints.OPTIMIZER):
        one, other = (load_file(checkpoints.newest(r) / name) for r in (run, whole))  # type: ignore[operator]
        assert all(torch.equal(one[key], other[key]) for key in other)
    assert from_yaml(run / "config.yaml").training.early_stopping_patience == 2


def test_the_best_weights_by_another_metric(tiny: Tiny) -> None:
    options: dict[str, Any] = {"training__steps": 9, "training__validate_every": 3}
    run = train(tiny("segmentation", training__best_metric="segmentation/loss", **options))
    lines = [line for line in read_lines(run / "metrics.jsonl") if line["kind"] == "validation"]
    losses = {line["step"]: line["segmentation/loss"] for line in lines}
    best = json.loads((run / "summary.json").read_text())["best"]
    assert best == {
        "metric": "segmentation/loss",
        "value": min(losses.values()),
        "step": min(losses, key=lambda step: losses[step]),
    }
    assert not json.loads((run / "summary.json").read_text())["stopped_early"]
    with pytest.raises(UserError, match=r"best_metric=segmentation/mean_dic: must be one of .*mean_dice\?"):
        train(tiny("segmentation", "x", training__best_metric="segmentation/mean_dic"))
    with pytest.raises(UserError, match="best_metric=segmentation/loss: must be one of diffusion/loss, or null"):
        train(tiny("diffusion", "x", training__best_metric="segmentation/loss"))


def test_a_run_whose_best_metric_was_never_a_number_says_so(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate = SegmentationTask.evaluate
    lost = {"segmentation/mean_iou": float("nan")}
    monkeypatch.setattr(SegmentationTask, "evaluate", lambda *args: evaluate(*args) | lost)
    train(tiny("segmentation", **STILL))
    assert "stopped early at step 4 of 40: segmentation/mean_iou was never a number\n" in capsys.readouterr().err
