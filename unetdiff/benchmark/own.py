"""A model of one's own on this machine, by batch size: training step, masks, samples, memory, share of the ceiling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from unetdiff.benchmark.ceiling import precision_of
from unetdiff.benchmark.memory import peak_working_memory, release_memory, run_in_subprocess
from unetdiff.benchmark.multiply_adds import macs
from unetdiff.benchmark.rounds import prediction_workload, sampling_workload, training_workload
from unetdiff.benchmark.timing import Round, Spread, Times, synchronizer, time_interleaved
from unetdiff.config.parsing import load, parse, validate
from unetdiff.data.base import collate
from unetdiff.data.build import build_dataset
from unetdiff.data.sampling import StepSampler
from unetdiff.errors import UserError
from unetdiff.training import runtime as machine
from unetdiff.training.checkpoints import model_directory
from unetdiff.training.conditions import needs_layout
from unetdiff.training.rundir import CONFIG
from unetdiff.training.tasks import JointTask, Task, build_task, load_task
from unetdiff.training.tasks.base import Batch

Kind = Literal["training step", "masks", "samples"]


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn, as `unetdiff sample` has it."""

    steps: int = 50
    """Denoising steps."""
    guidance: float = 2.0
    """Scale; 1: none."""


class Subject:
    """What is measured: a config file's network with fresh weights, or a run directory's with its own.

    Args:
        path: the config file or the run directory.
        overrides: of the config's keys, as words of a command line.

    Raises:
        UserError: a config or a data set that cannot be trained, or a directory without a run.
    """

    def __init__(self, path: Path, overrides: Sequence[str] = ()) -> None:
        if path.is_dir() and not (path / CONFIG).is_file():
            raise UserError(f"{path}: no {CONFIG} in it; give a run directory, or a config file")
        self.path, self.overrides = path, tuple(overrides)
        if path.is_dir():
            self.config = parse(path / CONFIG, overrides)
            validate(self.config)
        else:
            self.config = load(path, overrides)
        config = self.config
        masks, layout = config.task != "diffusion", needs_layout(config)
        self.train, val = (build_dataset(config.data, split, masks, layout) for split in ("train", "val"))
        if isinstance(config.segmentation.class_weights, str):  # which numbers they come to changes no time
            config.segmentation.class_weights = [1.0] * len(self.train.classes)
        torch.manual_seed(config.training.seed)
        if path.is_dir():
            self.task: Task = load_task(config, model_directory(path), val)
        else:
            self.task = build_task(config, self.train, val)

    @property
    def kinds(self) -> list[Kind]:
        """What the network can do."""
        heads = self.task.unet.heads
        found: list[Kind] = ["training step"]
        return found + (["masks"] if "segmentation" in heads else []) + (["samples"] if "diffusion" in heads else [])

    def batch(self, size: int) -> Batch:
        """The first images of the training split, in training's order and augmentation."""
        sampler = StepSampler(len(self.train), size, self.config.training.seed, stop=1)
        return collate([self.train[key] for key in next(iter(sampler))])

    def precision(self, kind: Kind) -> str:
        """What a kind is computed in: bf16, fp16 or float32."""
        if kind != "training step":
            return precision_of(machine.autocast_dtype())
        return machine.spoken(machine.precision(self.config.training.mixed_precision))

    def start(self, kind: Kind, size: int, sampling: Sampling) -> Round:
        """One round of a kind with so many images. A training step leaves the task placed and its weights changed."""
        batch, unet = self.batch(size), self.task.unet
        if kind == "training step":
            return training_workload(self.task, batch, self.config.training)
        self.task.to(machine.build_accelerator(self.config.training).device)
        autocast = machine.autocast_dtype()
        unet.optimize_for_inference(autocast)  # as `predict` and `sample` do
        if kind == "masks":
            return prediction_workload(unet, batch["image"])
        task: Any = self.task.diffusion if isinstance(self.task, JointTask) else self.task
        conditions = task.conditions(batch, unet.device)
        pipeline = task.pipeline()
        shape = pipeline.noise_shape(*task.drawn_size())
        noise = torch.randn(len(batch["image"]), *shape, generator=torch.Generator().manual_seed(0))
        return sampling_workload(pipeline, conditions, noise, sampling.steps, sampling.guidance, autocast)


@dataclass(frozen=True)
class Measured:
    """What one kind of work costs at one batch size."""

    kind: Kind
    batch: int
    precision: str
    seconds: Spread
    """Of a round, on the wall."""
    cpu_seconds: Spread
    images_per_second: float
    """At the median."""
    macs: float
    """Multiply-adds of a round."""
    share: float | None
    """Of the machine's ceiling at this precision; None where that was not measured."""
    memory: int | None
    """Bytes at the peak beyond the network's own; None: not measured."""


def measure(
    subject: Subject,
    sizes: Sequence[int],
    ceilings: Mapping[str, float],
    device: torch.device,
    rounds: int,
    warmups: int,
    sampling: Sampling,
    memory: bool = True,
) -> Iterator[Measured]:
    """Measure every kind of work at every batch size; a size that does not fit the GPU ends its kind.

    Args:
        subject: what is measured; each kind but the first builds it anew.
        sizes: batch sizes, ascending.
        ceilings: of the machine, by precision.
        device: what it runs on.
        rounds: that are timed.
        warmups: rounds before them.
        sampling: how samples are drawn.
        memory: whether memory is measured, each in a process of its own.
    """
    path, overrides = subject.path, subject.overrides
    for number, kind in enumerate(subject.kinds):
        if number:
            subject = Subject(path, overrides)
        for size in sizes:
            try:
                count, times = _timed(subject, kind, size, sampling, device, rounds, warmups)
            except torch.OutOfMemoryError:
                break
            finally:
                release_memory(device)  # of what the round held, before another process asks for as much
            peak = None
            if memory:
                with suppress(torch.OutOfMemoryError):  # what is timed here was not all given back
                    peak = run_in_subprocess(_peak, path, overrides, kind, size, sampling, device)
            seconds, precision = Spread.of(times.wall), subject.precision(kind)
            share = 2 * count / seconds.median / ceilings[precision] if precision in ceilings else None
            speed = size / seconds.median
            yield Measured(kind, size, precision, seconds, Spread.of(times.cpu), speed, count, share, peak)


def _timed(
    subject: Subject, kind: Kind, size: int, sampling: Sampling, device: torch.device, rounds: int, warmups: int
) -> tuple[float, Times]:
    """Multiply-adds of a round, and the rounds' times."""
    work = subject.start(kind, size, sampling)
    return macs(work), time_interleaved({kind: work}, rounds, warmups, synchronizer(device))[kind]


def _peak(
    path: Path, overrides: Sequence[str], kind: Kind, size: int, sampling: Sampling, device: torch.device
) -> int | None:
    subject = Subject(path, overrides)
    subject.task.to(device)
    return peak_working_memory(lambda: subject.start(kind, size, sampling), device)
