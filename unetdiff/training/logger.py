"""Logging of a run: metrics.jsonl, trackers, images and progress."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from unetdiff.console import Console, progress_bar
from unetdiff.errors import FileError
from unetdiff.files.images import save_image
from unetdiff.files.records import jsonable, read_json_lines
from unetdiff.files.writing import append_text, make_folder, write_text
from unetdiff.training.agreement import require_metrics
from unetdiff.training.progress import Progress
from unetdiff.training.trackers import Trackers

CONFIG, METRICS, IMAGES, SUMMARY = "config.yaml", "metrics.jsonl", "images", "summary.json"


class RunLogger:
    """The log of a run. On resume, lines after the checkpoint are removed: those steps are repeated.

    Args:
        run: the run directory.
        progress: of the run.
        steps: of the whole run.
        trackers: `training.log_with`.
        config: all keys of the run's config, for the trackers.

    Raises:
        FileError: metrics.jsonl is damaged, or does not reach as far as the checkpoint says.
        UserError: a tracker cannot start.
        OSError: the run directory cannot be written.
    """

    def __init__(
        self,
        run: Path,
        progress: Progress,
        steps: int,
        trackers: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.run, self.progress = run, progress
        self.path = run / METRICS
        kept = kept_lines(read_lines(self.path), progress) if self.path.exists() else []
        require_metrics(self.path, max((line["step"] for line in kept), default=0), progress)
        if self.path.exists():
            write_text(self.path, "".join(json.dumps(jsonable(line), allow_nan=False) + "\n" for line in kept))
        self.trackers = Trackers(trackers, run, progress.step, config or {})
        self.console = Console()
        self.last: tuple[LossMeter, float] | None = None  # of the steps since the last line of metrics.jsonl
        self.postfix: dict[str, str] = {}
        self.bar = progress_bar(total=steps, initial=progress.step, status=self._status)

    def log_metrics(self, kind: str, step: int, metrics: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl; its finite numbers go to the trackers under `kind`/."""
        entry = {"kind": kind, "step": step, **{name: jsonable(value) for name, value in metrics.items()}}
        append_text(self.path, json.dumps(entry, allow_nan=False) + "\n")
        self.progress.logged = step
        self.trackers.log({f"{kind}/{name}": value for name, value in metrics.items()}, step)

    def save_images(self, step: int, images: dict[str, Image.Image]) -> None:
        """Write images/step-000500-NAME.png, and to the trackers."""
        folder = make_folder(self.run / IMAGES)
        for name, image in images.items():
            save_image(image, folder / f"step-{step:06d}-{name}.png")
        self.trackers.log_images(images, step)

    def show_step(self, step: int, meter: LossMeter, lr: float) -> None:
        """Move the progress bar to a step; every 30 seconds a line, outside of a terminal."""
        self.last = (meter, lr)
        self.bar.update(step - self.bar.n)

    def show_losses(self, losses: Mapping[str, float], meter: LossMeter, lr: float) -> None:
        """Set what is shown next to the progress: loss, learning rate and speed."""
        speed = meter.images_per_second()
        self.postfix = {"loss": f"{losses.get('loss', math.nan):.4f}", "lr": f"{lr:.2e}", "img/s": f"{speed:.3g}"}
        self.bar.set_postfix(self.postfix | {"wait": f"{meter.data_wait():.0%}"}, refresh=False)

    def _status(self) -> str:
        """ "loss 0.4321, lr 9.80e-04, 35 images/s" of the last steps."""
        if self.last is not None and self.last[0].images:
            meter, lr = self.last
            self.show_losses({name: float(value) / meter.counts[name] for name, value in meter.sums.items()}, meter, lr)
        names = {"img/s": "images/s"}
        return ", ".join(
            f"{value} {names[name]}" if name in names else f"{name} {value}" for name, value in self.postfix.items()
        )

    def info(self, text: str) -> None:
        """Print a line above the progress bar."""
        tqdm.write(text, file=self.console)  # type: ignore[arg-type]

    def close(self) -> None:
        """Close the progress bar and the trackers."""
        self.bar.close()
        self.trackers.finish()


class LossMeter:
    """Mean losses and throughput since the last log line; losses stay on the device until `means`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.images, self.seconds, self.waited = 0, 0.0, 0.0

    def state(self) -> dict[str, Any]:
        """The losses so far as JSON, for a checkpoint; times are of one session only."""
        return {"sums": {name: float(value) for name, value in self.sums.items()}, "counts": dict(self.counts)}

    def load_state(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Continue from `state`; a sum that is null in JSON was not finite."""
        for name, value in state.get("sums", {}).items():
            self.sums[name] = torch.tensor(math.nan if value is None else value, device=device)
            self.counts[name] = state["counts"][name]

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


def log_losses(logger: RunLogger | None, meter: LossMeter, lr: float, accelerator: Accelerator) -> None:
    """A "train" line with the means since the last one; the main process has a logger. Collective."""
    losses = meter.means(accelerator)
    if logger is None:
        return
    progress, speed, wait = logger.progress, meter.images_per_second(), meter.data_wait()
    metrics = {"images": progress.images, "minutes": progress.minutes, **losses, "lr": lr}
    metrics |= {"images_per_second": speed, "data_wait": wait}
    logger.log_metrics("train", progress.step, metrics)
    logger.show_losses(losses, meter, lr)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The entries of a metrics.jsonl; an incomplete last line (the run was killed) is ignored.

    Raises:
        FileError: an invalid line, or one without "kind" and "step".
    """
    lines = read_json_lines(path, torn=True)
    for number, line in enumerate(lines, start=1):
        step = line.get("step")
        if not isinstance(line.get("kind"), str) or not isinstance(step, int) or isinstance(step, bool) or step < 0:
            raise FileError.of(f"{path}, entry {number}", "must have a 'kind' and a 'step' of at least 0", "Remove it.")
    return lines


def kept_lines(lines: list[dict[str, Any]], progress: Progress) -> list[dict[str, Any]]:
    """The lines that a checkpoint stands for: up to its step, and validations up to the last completed one."""
    return [
        line
        for line in lines
        if line["step"] <= (progress.validated if line["kind"] == "validation" else progress.step)
    ]
