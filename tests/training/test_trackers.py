"""Trackers by Accelerate's names, and tables of our own records."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from unetdiff.config.command_line import apply
from unetdiff.config.schema import RunConfig
from unetdiff.config.training import Tracker
from unetdiff.errors import UserError
from unetdiff.training import trackers
from unetdiff.training.logger import read_lines
from unetdiff.training.trainer import train

Tiny = Callable[..., RunConfig]


def test_the_names_are_accelerates_and_csv() -> None:
    assert set(get_args(Tracker)) == {*LOGGER_TYPE_TO_CLASS, "csv"}
    words = {"wandb": ["wandb"], "[csv, tensorboard]": ["csv", "tensorboard"], "[]": []}
    for word, value in words.items():
        assert apply(RunConfig(), ["--training.log_with", word]).training.log_with == value
    with pytest.raises(UserError, match=r"log_with=wandbb: must be a list of tensorboard, csv.* Did you mean wandb\?"):
        apply(RunConfig(), ["--training.log_with", "wandbb"])


class Recorder(GeneralTracker):
    """In the place of wandb: what it was given."""

    name = "wandb"
    requires_logging_directory = False
    calls: list[Any]

    def __init__(self, project: str, **options: Any) -> None:
        super().__init__()
        Recorder.calls = [("init", project, options)]

    @property
    def tracker(self) -> None:
        return None

    def start(self) -> None:
        self.calls.append("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.calls.append(values)

    def log(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        self.calls.append((step, values, options))

    def log_images(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        self.calls.append((step, {name: image.shape for name, image in values.items()}, options))

    def finish(self) -> None:
        self.calls.append("finish")


def test_every_tracker_sees_what_metrics_jsonl_says(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Recorder)
    monkeypatch.setattr(trackers, "find_spec", lambda name: True)
    config = tiny("segmentation", training__log_with=["csv", "wandb", "tensorboard"])
    run = train(config)
    lines = read_lines(run / "metrics.jsonl")

    (_, project, options), started, keys, *logged, finished = Recorder.calls
    assert (project, options) == ("unetdiff", {"name": "run", "dir": str(run)})
    assert (started, finished) == ("start", "finish")
    assert keys["training.optimizer.lr"] == config.training.optimizer.lr
    numbers = [entry for entry in logged if any(name.startswith(("train/", "validation/")) for name in entry[1])]
    assert [(step, values.get("train/loss")) for step, values, _ in numbers] == [
        (line["step"], line.get("loss")) for line in lines
    ]
    assert len(logged) - len(numbers) == 2  # previews

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    scalars = [(event.step, pytest.approx(event.value, rel=1e-6)) for event in events.Scalars("train/loss")]
    assert [(line["step"], line["loss"]) for line in lines if line["kind"] == "train"] == scalars

    for kind in ("train", "validation"):
        rows = list(csv.DictReader((run / "csv" / f"{kind}.csv").open()))
        own = [line for line in lines if line["kind"] == kind]
        name = "loss" if kind == "train" else "segmentation/mean_iou"
        assert [(int(row["step"]), float(row[name])) for row in rows] == [(line["step"], line[name]) for line in own]
        assert "segmentation/iou_per_class" not in rows[0]


def test_what_cannot_track_is_refused(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"log_with=comet_ml: must be installed. Run `pip install comet-ml`"):
        train(tiny("segmentation", training__log_with=["comet_ml"]))
    assert not (tmp_path / "run").exists()

    class Offline(Recorder):
        def start(self) -> None:
            raise RuntimeError("no API key\nconfigured")

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Offline)
    monkeypatch.setattr(trackers, "find_spec", lambda name: True)
    with pytest.raises(UserError, match=r"wandb: must be able to start .no API key configured.. .*WANDB_MODE=offline"):
        train(tiny("segmentation", training__log_with=["wandb"]))
    train(tiny("segmentation", training__steps=2, training__log_with=[]))  # not started: the directory is free
    assert not (tmp_path / "run" / "tensorboard").exists()
