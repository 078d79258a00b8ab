"""Where the metrics of a run go next to metrics.jsonl: Accelerate's trackers by name, and CSV tables."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from PIL import Image

from unetdiff.errors import UserError, config_error
from unetdiff.files.records import read_json_lines
from unetdiff.files.tables import write_table
from unetdiff.files.writing import make_folder, named_errors

KEY = "training.log_with"
PROJECT = "unetdiff"
TENSORBOARD, CSV = "tensorboard", "csv"
FOLDERS = {"wandb": "wandb", "aim": ".aim", "mlflow": "mlruns", "dvclive": "dvclive", "swanlab": "swanlog"}
"""Tracker -> the folder of its files in the run directory."""


class Trackers:
    """The trackers of a run, on its main process.

    Args:
        names: `training.log_with`.
        run: the run directory.
        step: of the checkpoint that is resumed; what TensorBoard has of later steps is hidden.
        config: all keys of the run's config, for trackers that show them.

    Raises:
        UserError: a tracker that cannot start, e.g. without a login or a connection.
    """

    def __init__(self, names: Sequence[str], run: Path, step: int, config: Mapping[str, Any]) -> None:
        self.run, self.started = run, dict[str, GeneralTracker]()
        for name in names:
            tracker = _make(name, run, step)
            with named_errors(run / name):
                try:
                    tracker.start()
                    if name not in (TENSORBOARD, CSV):
                        tracker.store_init_configuration(dict(config))
                except OSError:
                    raise
                except Exception as error:
                    reason = " ".join(str(error).split()) or type(error).__name__
                    remedy = "Log in, use its offline mode (wandb: WANDB_MODE=offline), or leave it out."
                    raise config_error(KEY, name, f"able to start ({reason})", remedy) from None
            self.started[name] = tracker

    def log(self, numbers: Mapping[str, Any], step: int) -> None:
        """Log the finite numbers of a line of metrics.jsonl."""
        finite = {k: v for k, v in numbers.items() if isinstance(v, int | float) and math.isfinite(v)}
        for name, tracker in self.started.items():
            with named_errors(self.run / name):
                tracker.log(finite, step=step)

    def log_images(self, images: Mapping[str, Image.Image], step: int) -> None:
        """Log preview images, where a tracker shows images."""
        pixels = {name: np.asarray(image.convert("RGB"))[None] for name, image in images.items()}  # (1, H, W, 3)
        for name, tracker in self.started.items():
            if hasattr(tracker, "log_images"):
                with named_errors(self.run / name):
                    tracker.log_images(pixels, step=step, **({"dataformats": "NHWC"} if name == TENSORBOARD else {}))

    def finish(self) -> None:
        """Write what is left, and close the trackers."""
        for name, tracker in self.started.items():
            with named_errors(self.run / name):
                tracker.finish()


class CSVTracker(GeneralTracker):
    """csv/train.csv, csv/validation.csv, ...: the lines of metrics.jsonl of each kind, one column per metric.

    The tables are written at each validation and at the end.
    """

    name = CSV
    requires_logging_directory = True

    def __init__(self, run: Path, records: str = "metrics.jsonl") -> None:
        super().__init__()
        self.folder, self.records = run / CSV, run / records

    @property
    def tracker(self) -> Path:
        """The folder of the tables."""
        return self.folder

    def log(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        if not all(name.startswith("train/") for name in values):
            self.finish()

    def finish(self) -> None:
        lines = read_json_lines(self.records, torn=True)
        for kind in dict.fromkeys(line["kind"] for line in lines):
            rows = [line for line in lines if line["kind"] == kind]
            columns = list(dict.fromkeys(key for row in rows for key, value in row.items() if _is_cell(key, value)))
            table = [[row.get(column) for column in columns] for row in rows]
            write_table(make_folder(self.folder) / f"{kind}.csv", [columns, *table])


def _is_cell(key: str, value: Any) -> bool:
    return key != "kind" and isinstance(value, int | float | None)


def require_trackers(names: Sequence[str]) -> None:
    """Raises UserError for a tracker whose package is not installed."""
    for name in names:
        if name != CSV and find_spec(name) is None:
            remedy = f"Run `pip install {name.replace('_', '-')}`, or leave it out."
            raise config_error(KEY, name, "installed", remedy)


def _make(name: str, run: Path, step: int) -> GeneralTracker:
    """A tracker that is not started, whose files lie in the run directory."""
    if name == CSV:
        return CSVTracker(run)
    if name not in LOGGER_TYPE_TO_CLASS:
        raise UserError(f"{KEY}={name}: must be a tracker of this version of Accelerate. Update accelerate.")
    of: Any = LOGGER_TYPE_TO_CLASS[name]
    title, place = run.resolve().name, str(run)
    makers: dict[str, Any] = {
        TENSORBOARD: lambda: of(TENSORBOARD, run, purge_step=step + 1),
        "wandb": lambda: of(os.environ.get("WANDB_PROJECT", PROJECT), name=title, dir=place),
        "aim": lambda: of(title, logging_dir=place),
        "mlflow": lambda: of(PROJECT, logging_dir=str(run.resolve() / FOLDERS["mlflow"]), run_name=title),
        "comet_ml": lambda: of(PROJECT),
        "clearml": lambda: of(PROJECT, task_name=title),
        "dvclive": lambda: of(title, dir=str(run / FOLDERS["dvclive"]), resume=step > 0),
        "swanlab": lambda: of(PROJECT, experiment_name=title, logdir=str(run / FOLDERS["swanlab"])),
        "trackio": lambda: of(PROJECT, name=title, resume="allow"),
    }
    return makers[name]()
