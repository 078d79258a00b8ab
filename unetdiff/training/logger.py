"""Logging of a run: metrics.jsonl, TensorBoard, images and the progress bar."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from unetdiff.errors import UserError
from unetdiff.files.records import jsonable
from unetdiff.files.writing import write_text

METRICS = "metrics.jsonl"


class RunLogger:
    """The log of a run. On resume, lines after the checkpoint's step are removed: those steps are repeated."""

    def __init__(self, run: Path, step: int, steps: int) -> None:
        self.run = run
        self.path = run / METRICS
        if self.path.is_file():
            kept = [line for line in read_lines(self.path) if line["step"] <= step]
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self.tracker = TensorBoardTracker("tensorboard", run, purge_step=step + 1)
        self.tracker.start()
        self.bar = tqdm(
            total=steps,
            initial=step,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
            disable=None if os.environ.get("UNETDIFF_NO_BAR") is None else True,
        )

    def log_metrics(self, kind: str, step: int, metrics: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl; its finite numbers go to TensorBoard under `kind`/."""
        entry = {"kind": kind, "step": step, **{name: jsonable(value) for name, value in metrics.items()}}
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        numbers = {f"{kind}/{k}": v for k, v in metrics.items() if isinstance(v, int | float) and math.isfinite(v)}
        self.tracker.log(numbers, step=step)

    def save_images(self, step: int, images: dict[str, Image.Image]) -> None:
        """Write images/step-000500-NAME.png, and to TensorBoard."""
        folder = self.run / "images"
        folder.mkdir(exist_ok=True)
        for name, image in images.items():
            image.save(folder / f"step-{step:06d}-{name}.png")
            pixels = np.asarray(image.convert("RGB"))[None]
            self.tracker.log_images({name: pixels}, step=step, dataformats="NHWC")

    def update_bar(self, step: int, postfix: dict[str, str]) -> None:
        """Move the progress bar to a step; `postfix` is displayed after it."""
        self.bar.set_postfix(postfix, refresh=False)
        self.bar.update(step - self.bar.n)

    def info(self, text: str) -> None:
        """Print a line above the progress bar."""
        tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """Close the progress bar and the TensorBoard writer."""
        self.bar.close()
        self.tracker.finish()


class LossMeter:
    """Mean losses and throughput since the last log line; losses stay on the device until `means`."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.images, self.seconds, self.waited = 0, 0.0, 0.0

    def add(self, losses: dict[str, Tensor], images: int) -> None:
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + value
            self.counts[name] = self.counts.get(name, 0) + 1
        self.images += images

    def add_time(self, seconds: float, waited: float) -> None:
        self.seconds += seconds
        self.waited += waited

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Mean of each loss over the steps and processes. Collective."""
        means = {name: float(value) / self.counts[name] for name, value in sorted(self.sums.items())}
        if accelerator.num_processes > 1 and means:
            values = torch.tensor(list(means.values()), device=accelerator.device)
            values = accelerator.reduce(values, reduction="mean")  # type: ignore[assignment]
            means = dict(zip(means, values.tolist(), strict=True))
        return means

    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0

    def data_wait(self) -> float:
        """Fraction of the time spent waiting for the data loader, 0 to 1."""
        return self.waited / self.seconds if self.seconds else 0.0


def read_lines(path: Path, strict: bool = False) -> list[dict[str, Any]]:
    """The entries of a metrics.jsonl; a truncated last line (the run was killed) is ignored.

    Args:
        path: the file.
        strict: skip blank lines, and raise for an invalid line before the last; otherwise reading stops at either.

    Raises:
        UserError: strict, and a line before the last is not valid JSON.
    """
    lines: list[dict[str, Any]] = []
    texts = path.read_text().splitlines()
    for number, text in enumerate(texts, start=1):
        if strict and not text.strip():
            continue
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError as error:
            if strict and number < len(texts):
                raise UserError(f"{path}, line {number}: not valid JSON ({error}). Remove the line.") from error
            break
    return lines
