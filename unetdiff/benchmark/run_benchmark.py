"""Benchmark of a run or a config by batch size: time, memory and utilization of training step, masks and samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from unetdiff.benchmark.memory import peak_working_memory, release_memory, run_in_subprocess
from unetdiff.benchmark.multiply_adds import count_macs
from unetdiff.benchmark.peak_throughput import precision_name
from unetdiff.benchmark.timing import Quartiles, Times, Workload, synchronizer, time_interleaved
from unetdiff.benchmark.workloads import prediction_workload, sampling_workload, training_workload
from unetdiff.config.model_directory import model_directory
from unetdiff.config.reading import load, override
from unetdiff.config.validation.data import needs_layout
from unetdiff.config.validation.run import validate
from unetdiff.data.base import collate
from unetdiff.data.build import build_dataset
from unetdiff.data.sampling import StepSampler
from unetdiff.errors import UserError
from unetdiff.evaluation.load_run import is_pretrained, run_config, trained_size
from unetdiff.evaluation.types import SamplingConfig
from unetdiff.kernels.accelerate import accelerate_inference_
from unetdiff.training import runtime
from unetdiff.training.rundir import CONFIG
from unetdiff.training.tasks.base import Batch, Task
from unetdiff.training.tasks.build import build_task, denoiser_of, load_task, segmentation_of
from unetdiff.training.tasks.joint import JointTask

Kind = Literal["training step", "masks", "samples"]


class BenchmarkTarget:
    """The benchmarked network: of a config file, with random weights, or of a run directory, with its weights.

    Args:
        path: the config file or the run directory.
        overrides: of config keys, as on the command line.

    Raises:
        UserError: an invalid config or dataset, or a directory without a run.
    """

    def __init__(self, path: Path, overrides: Sequence[str] = ()) -> None:
        if path.is_dir() and not (path / CONFIG).is_file() and not is_pretrained(path):
            raise UserError(f"{path}: must contain {CONFIG}. Use a run directory or a config file.")
        self.path, self.overrides = path, tuple(overrides)
        if path.is_dir():
            self.config = override(run_config(path), overrides)
            if is_pretrained(path):
                self.config.task, self.config.data.size = "diffusion", self.config.data.size or trained_size(path)
                self.config.training.steps = 1  # of a benchmark's own
            validate(self.config)
        else:
            self.config = load(path, overrides)
        config = self.config
        masks, layout = config.task != "diffusion", needs_layout(config)
        self.train, val = (build_dataset(config.data, split, masks, layout) for split in ("train", "val"))
        if isinstance(config.segmentation.class_weights, str):  # their values do not affect the time
            config.segmentation.class_weights = [1.0] * len(self.train.classes)
        torch.manual_seed(config.training.seed)
        if path.is_dir():
            self.task: Task = load_task(config, model_directory(path), val)
        else:
            self.task = build_task(config, self.train, val)

    @property
    def kinds(self) -> list[Kind]:
        """The workloads of the heads that the run trains."""
        kinds: list[Kind] = ["training step"]
        kinds += ["masks"] if segmentation_of(self.task) is not None else []
        return kinds + (["samples"] if denoiser_of(self.task) is not None else [])

    def batch(self, batch_size: int) -> Batch:
        """The first batch of training, with its augmentation."""
        sampler = StepSampler(len(self.train), batch_size, self.config.training.seed, stop=1)
        return collate([self.train[key] for key in next(iter(sampler))])

    def precision(self, kind: Kind) -> str:
        """The compute precision of a workload: bf16, fp16 or float32."""
        if kind != "training step":
            return precision_name(runtime.autocast_dtype())
        return runtime.precision_name(runtime.precision(self.config.training.mixed_precision))

    def start(self, kind: Kind, batch_size: int, sampling: SamplingConfig) -> Workload:
        """The workload of a kind. A training step moves the task to the device and changes its weights."""
        batch, unet = self.batch(batch_size), self.task.unet
        if kind == "training step":
            return training_workload(self.task, batch, self.config.training)
        self.task.to(runtime.build_accelerator(self.config.training).device)
        autocast = runtime.autocast_dtype()
        accelerate_inference_(unet, autocast)  # as `predict` and `sample` do
        if kind == "masks":
            segmentation = segmentation_of(self.task)
            assert segmentation is not None
            return prediction_workload(segmentation.segmenter, batch["image"])
        task: Any = self.task.diffusion if isinstance(self.task, JointTask) else self.task
        conditions = task.conditions(batch, unet.device)
        pipeline = task.pipeline()
        shape = pipeline.noise_shape(*task.image_size())
        noise = torch.randn(len(batch["image"]), *shape, generator=torch.Generator().manual_seed(0))
        return sampling_workload(
            pipeline, conditions, noise, sampling.num_inference_steps, sampling.guidance_scale, autocast
        )


@dataclass(frozen=True)
class Measurement:
    """The cost of one workload at one batch size."""

    kind: Kind
    batch_size: int
    precision: str
    seconds: Quartiles
    """Wall-clock time of a round."""
    cpu_seconds: Quartiles
    images_per_second: float
    """At the median."""
    macs: float
    """Multiply-adds of a round."""
    utilization: float | None
    """Fraction of the machine's peak throughput at this precision; None if that was not measured."""
    memory: int | None
    """Peak memory in bytes beyond that of the network; None if it was not measured."""


def run_benchmark(
    target: BenchmarkTarget,
    batch_sizes: Sequence[int],
    peak_flops: Mapping[str, float],
    device: torch.device,
    rounds: int,
    warmups: int,
    sampling: SamplingConfig,
    memory: bool = True,
) -> Iterator[Measurement]:
    """Measure every workload at every batch size, up to the first that does not fit the GPU.

    Args:
        target: the network; rebuilt for each workload but the first.
        batch_sizes: in ascending order.
        peak_flops: the machine's peak throughput by precision (`measure_peak_flops`).
        device: device of the benchmark.
        rounds: timed rounds.
        warmups: untimed rounds before them.
        sampling: settings of the sampler.
        memory: whether to measure memory, each time in a subprocess.
    """
    path, overrides = target.path, target.overrides
    for number, kind in enumerate(target.kinds):
        if number:
            target = BenchmarkTarget(path, overrides)
        for batch_size in batch_sizes:
            try:
                macs, times = _time(target, kind, batch_size, sampling, device, rounds, warmups)
            except torch.OutOfMemoryError:
                break
            finally:
                release_memory(device)  # before the subprocess allocates as much
            peak = None
            if memory:
                with suppress(torch.OutOfMemoryError):  # this process still holds some memory
                    peak = run_in_subprocess(_peak_memory, path, overrides, kind, batch_size, sampling, device)
            seconds, precision = Quartiles.of(times.wall), target.precision(kind)
            utilization = 2 * macs / seconds.median / peak_flops[precision] if precision in peak_flops else None
            speed = batch_size / seconds.median
            cpu_seconds = Quartiles.of(times.cpu)
            yield Measurement(kind, batch_size, precision, seconds, cpu_seconds, speed, macs, utilization, peak)


def _time(
    target: BenchmarkTarget,
    kind: Kind,
    batch_size: int,
    sampling: SamplingConfig,
    device: torch.device,
    rounds: int,
    warmups: int,
) -> tuple[float, Times]:
    """Multiply-adds of a round, and the times of the rounds."""
    work = target.start(kind, batch_size, sampling)
    return count_macs(work), time_interleaved({kind: work}, rounds, warmups, synchronizer(device))[kind]


def _peak_memory(
    path: Path, overrides: Sequence[str], kind: Kind, batch_size: int, sampling: SamplingConfig, device: torch.device
) -> int | None:
    target = BenchmarkTarget(path, overrides)
    target.task.to(device)
    return peak_working_memory(lambda: target.start(kind, batch_size, sampling), device)
