"""Images drawn by every run from the same noise, judged by a classifier that has seen only real ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers.utils import logging
from torch import Tensor

from unetdiff.data.base import ImageDataset
from unetdiff.diffusion.noise import generators_for
from unetdiff.diffusion.pipeline import GenerationOutput, GenerationPipeline
from unetdiff.diffusion.trajectory import TrajectoryRecorder
from unetdiff.errors import UserError
from unetdiff.reports.dataset_groups import by_set, choose, open_set, set_key, size_text, sized_key
from unetdiff.reports.embed import data_uri, is_small
from unetdiff.reports.evaluation import Judging, judge_of
from unetdiff.reports.runs import Run
from unetdiff.training.runtime import autocast_dtype

SHOWN_CLASSES = 12
SHOWN_PER_CLASS = 5
STRIP_MOMENTS = 8
DEFAULT_SIZE = 32  # height and width in pixels where the model's config has no sample_size


@dataclass(frozen=True)
class Budget:
    """How much is sampled and judged for the page."""

    images: int = 300
    """Images drawn by each run, spread evenly over the classes."""
    steps: int = 25
    """Denoising steps of each."""
    batch_size: int = 100
    """Images drawn at once."""
    judge_steps: int = 500
    """Optimizer steps of the judge's training on each set."""
    rows: int = 6
    """Validation images that the segmentation heads are shown on."""


@dataclass
class Cell:
    """One sample on the page."""

    uri: str
    asked: str
    seen: str = ""
    """What the judge saw; "" where nobody judged."""

    @property
    def wrong(self) -> bool:
        return bool(self.seen) and self.seen != self.asked


@dataclass
class SampleGrid:
    """One run's samples (or the real images), a row for each class."""

    run: int | None
    """Index into the report's runs; None: real images."""
    title: str
    rows: list[tuple[str, list[Cell]]]
    guidance: float | None = None

    @property
    def columns(self) -> int:
        """Images in the longest row."""
        return max(len(cells) for _, cells in self.rows)


@dataclass
class Strip:
    """From noise to image: what the network was given, and what it took the image to be."""

    run: int
    asked: str
    timesteps: list[int]
    noisy: list[str]
    predicted: list[str]


@dataclass
class Consistency:
    """Share of a run's samples in which the judge sees the class that was asked for."""

    value: float
    n: int
    low: float
    high: float
    per_class: dict[str, float]


@dataclass
class SampleBlock:
    """The runs that share a set and draw images of one size: their grids, strips and scores."""

    set_name: str
    """With the size, where there is a block for each of several."""
    runs: list[int]
    grids: list[SampleGrid]
    strips: list[Strip]
    scores: dict[int, Consistency] = field(default_factory=dict)
    judge: Judging | None = None
    steps: int = 0
    pixelated: bool = True


def sample_blocks(
    runs: Sequence[Run], budget: Budget, seed: int = 0, cache: Path | None = None
) -> tuple[list[SampleBlock], list[str]]:
    """A block for each set and size that runs with a diffusion head share, and what could not be shown, in words.

    Of another size are the noise, the real images, and what a judge has learnt: it knows images of one size only.

    cache: folder where trained judges are kept; None: nowhere.
    """
    order = {id(run): index for index, run in enumerate(runs)}
    blocks, problems = [], []
    groups = by_set([run for run in runs if "diffusion" in run.heads and run.model is not None], sized_key)
    sets = [set_key(group[0]) for group in groups]
    for group in groups:
        name = group[0].data_name
        if sets.count(set_key(group[0])) > 1:
            name += f", {size_text(group[0])}"
        try:
            dataset: ImageDataset | None = open_set(group[0], segmentation=False)
        except UserError as error:
            dataset = None
            problems.append(f"{name}: no real images to compare with: {error}")
        judge = None
        if dataset is not None and dataset.labels and any(conditional(run) for run in group):
            try:
                judge = judge_of(group[0], dataset, budget.judge_steps, cache)
            except UserError as error:
                problems.append(f"{name}: the samples are not judged: {error}")
        block = SampleBlock(name, [order[id(run)] for run in group], [], [], judge=judge, steps=budget.steps)
        if dataset is not None:
            block.grids.append(_real(dataset, seed))
        for run in group:
            _draw(block, run, order[id(run)], judge, budget, seed)
        blocks.append(block)
    return blocks, problems


def conditional(run: Run) -> bool:
    """True for a denoiser that is told the class of an image."""
    return (run.config.get("diffusion") or {}).get("condition", "class") == "class" and (
        ((run.model_config.get("conditioning") or {}).get("cross_attention_dim")) is not None
    )


def load_generator(directory: Path) -> GenerationPipeline:
    """The pipeline of a model directory, without progress bars."""
    logging.disable_progress_bar()
    try:
        pipeline = GenerationPipeline.from_pretrained(directory)
    finally:
        logging.enable_progress_bar()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def wilson(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Ends of the 95 % interval of a share (Wilson 1927): right when the share is near 0 or 1, too."""
    if n == 0:
        return 0.0, 1.0
    share = right / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # rounding must not put the end of the interval on the wrong side of the share
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))


def consistency(asked: Tensor, seen: Tensor, labels: Sequence[str]) -> Consistency:
    """Agreement of the judge's classes (n,) with those asked for (n,)."""
    right = asked == seen
    low, high = wilson(int(right.sum()), len(right))
    per_class = {labels[label]: float(right[asked == label].float().mean()) for label in asked.unique().tolist()}
    return Consistency(float(right.float().mean()), len(right), low, high, per_class)


def _draw(block: SampleBlock, run: Run, index: int, judge: Judging | None, budget: Budget, seed: int) -> None:
    assert run.model is not None
    pipeline = load_generator(run.model)
    scale = float((run.config.get("diffusion") or {}).get("guidance_scale", 2.0))
    told = pipeline.conditioner is not None and conditional(run)
    labels: list[str] = list(pipeline.conditioner.labels) if told else [""]
    per_class = max(1, budget.images // len(labels))
    asked = torch.arange(len(labels)).repeat(per_class)  # one of each class, again and again
    side = DEFAULT_SIZE if pipeline.unet.config.sample_size is None else None
    # the precision that the weights were validated in
    pipeline.autocast_dtype = autocast_dtype(run.summary.get("precision", "float32"))

    def draw(first: int, last: int, recorder: TrajectoryRecorder | None = None) -> Tensor:
        output = pipeline(
            class_labels=asked[first:last] if told else None,
            num_inference_steps=budget.steps,
            guidance_scale=scale if told else 1.0,
            height=side,
            width=side,
            batch_size=last - first,
            generator=generators_for(seed, range(first, last)),
            output_type="pt",
            callback_on_step_end=recorder,
        )
        assert isinstance(output, GenerationOutput)
        return output.pixels()

    parts = [draw(at, min(at + budget.batch_size, len(asked))) for at in range(0, len(asked), budget.batch_size)]
    images = torch.cat(parts)  # (B, C, H, W) in [0, 1]
    block.pixelated = is_small(images[0])
    seen = judge.classify(images) if judge is not None and told and judge.labels == labels else None
    if seen is not None:
        block.scores[index] = consistency(asked, seen, labels)

    def cell(number: int) -> Cell:
        saw = labels[int(seen[number])] if seen is not None else ""
        return Cell(data_uri(images[number]), labels[int(asked[number])], saw)

    if told:
        columns = min(SHOWN_PER_CLASS, per_class)
        rows = [
            (labels[label], [cell(label + column * len(labels)) for column in range(columns)])
            for label in range(min(SHOWN_CLASSES, len(labels)))
        ]
    else:
        shown = min(len(asked), SHOWN_PER_CLASS * 6)
        rows = [
            ("", [cell(number) for number in range(at, min(at + SHOWN_PER_CLASS, shown))])
            for at in range(0, shown, SHOWN_PER_CLASS)
        ]
    block.grids.append(SampleGrid(index, run.name, rows, scale if told else None))

    chosen = seed % len(labels)
    recorder = TrajectoryRecorder(STRIP_MOMENTS)
    draw(chosen, chosen + 1, recorder)
    trajectory = recorder.trajectory
    block.strips.append(
        Strip(
            index,
            labels[chosen],
            trajectory.timesteps,
            [data_uri(image[0]) for image in trajectory.noisy],
            [data_uri(image[0]) for image in trajectory.predicted],
        )
    )


def _real(dataset: ImageDataset, seed: int) -> SampleGrid:
    """Validation images of each class, for the eye to compare with."""
    if not dataset.labels:
        items = [dataset[index] for index in choose(dataset, SHOWN_PER_CLASS * 6, seed)]
        cells = [Cell(data_uri(item["image"]), "") for item in items]
        rows = [("", cells[at : at + SHOWN_PER_CLASS]) for at in range(0, len(cells), SHOWN_PER_CLASS)]
        return SampleGrid(None, "real images", rows)
    found: dict[int, list[Cell]] = {label: [] for label in range(min(SHOWN_CLASSES, len(dataset.labels)))}
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).tolist()
    for index in order[:2000]:
        item = dataset[index]
        cells_of = found.get(item["label"])
        if cells_of is not None and len(cells_of) < SHOWN_PER_CLASS:
            cells_of.append(Cell(data_uri(item["image"]), dataset.labels[item["label"]]))
        if all(len(cells) == SHOWN_PER_CLASS for cells in found.values()):
            break
    return SampleGrid(None, "real images", [(dataset.labels[label], cells) for label, cells in found.items()])
