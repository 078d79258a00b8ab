"""Samples of every run from the same initial noise, and their class consistency."""

from __future__ import annotations

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
from unetdiff.evaluation.class_names import require_same_classes
from unetdiff.reports.consistency import Consistency, SampleClassifier, consistency, train_sample_classifier
from unetdiff.reports.dataset_groups import (
    choose,
    dataset_key,
    group_by_dataset,
    open_dataset,
    size_key,
    size_text,
)
from unetdiff.reports.embed import data_uri, is_small
from unetdiff.reports.runs import Run
from unetdiff.training.runtime import autocast_dtype

MAX_CLASSES = 12
MAX_PER_CLASS = 5
STRIP_TIMESTEPS = 8
DEFAULT_SIZE = 32  # pixels of a side, for a network whose config has no sample_size


@dataclass(frozen=True)
class Budget:
    """How much is sampled and evaluated for the page."""

    images: int = 300
    """Samples of each run, spread evenly over the classes."""
    steps: int = 25
    """Denoising steps of each sample."""
    batch_size: int = 100
    """Samples generated at once."""
    classifier_steps: int = 500
    """Optimizer steps of the classifier on each dataset."""
    rows: int = 6
    """Validation images shown with the segmentation of every run."""


@dataclass
class Cell:
    """One sample on the page."""

    uri: str
    target: str
    """The class it was conditioned on; "" without a class."""
    predicted: str = ""
    """The class that the classifier predicts; "" without a classifier."""

    @property
    def wrong(self) -> bool:
        return bool(self.predicted) and self.predicted != self.target


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
    """A sampling trajectory: the network's input x_t and its predicted x_0 at some timesteps."""

    run: int
    target: str
    """The class it is conditioned on; "" without a class."""
    timesteps: list[float]
    noisy: list[str]
    predicted: list[str]


@dataclass
class SampleBlock:
    """The runs that share a dataset and an image size: their grids, strips and scores."""

    dataset_name: str
    """With the image size where there are blocks of several sizes."""
    runs: list[int]
    grids: list[SampleGrid]
    strips: list[Strip]
    scores: dict[int, Consistency] = field(default_factory=dict)
    classifier: SampleClassifier | None = None
    steps: int = 0
    pixelated: bool = True


def sample_blocks(
    runs: Sequence[Run], budget: Budget, seed: int = 0, cache: Path | None = None
) -> tuple[list[SampleBlock], list[str]]:
    """A block for each dataset and image size of the runs with a diffusion head, and messages about missing parts.

    Noise, real images and the classifier are per size: the classifier is trained on images of one size.

    cache: folder that keeps trained classifiers; None: they are not kept.
    """
    order = {id(run): index for index, run in enumerate(runs)}
    blocks, problems = [], []
    groups = group_by_dataset([run for run in runs if "diffusion" in run.heads and run.model is not None], size_key)
    datasets = [dataset_key(group[0]) for group in groups]
    for group in groups:
        name = group[0].data_name
        if datasets.count(dataset_key(group[0])) > 1:
            name += f", {size_text(group[0])}"
        try:
            dataset: ImageDataset | None = open_dataset(group[0], segmentation=False)
        except UserError as error:
            dataset = None
            problems.append(f"{name}: real images are not available: {error}")
        classifier = None
        if dataset is not None and dataset.labels and any(conditional(run) for run in group):
            try:
                classifier = train_sample_classifier(group[0], dataset, budget.classifier_steps, cache)
            except UserError as error:
                problems.append(f"{name}: class consistency is not available: {error}")
        block = SampleBlock(name, [], [], [], classifier=classifier, steps=budget.steps)
        if dataset is not None:
            block.grids.append(_real(dataset, seed))
        for run in group:
            try:
                _sample(block, run, order[id(run)], budget, seed)
            except UserError as error:
                problems.append(f"“{run.name}”: its samples are missing: {error}")
        block.runs = [grid.run for grid in block.grids if grid.run is not None]
        if block.runs:
            blocks.append(block)
    return blocks, problems


def conditional(run: Run) -> bool:
    """True for a class-conditional denoiser."""
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


def _sample(block: SampleBlock, run: Run, index: int, budget: Budget, seed: int) -> None:
    """Add a run's grid, strip and class consistency to its block."""
    assert run.model is not None
    pipeline = load_generator(run.model)
    scale = float((run.config.get("diffusion") or {}).get("guidance_scale", 2.0))
    by_class = pipeline.conditioner is not None and conditional(run)
    labels: list[str] = list(pipeline.conditioner.labels) if by_class else [""]
    if block.classifier is not None and by_class:
        require_same_classes(labels, block.classifier.labels, str(run.model))
    per_class = max(1, budget.images // len(labels))
    targets = torch.arange(len(labels)).repeat(per_class)  # 0, 1, ..., 0, 1, ...
    side = DEFAULT_SIZE if pipeline.unet.config.sample_size is None else None
    # the precision of the run's validation
    pipeline.autocast_dtype = autocast_dtype(run.summary.get("precision", "float32"))

    def generate(first: int, last: int, recorder: TrajectoryRecorder | None = None) -> Tensor:
        output = pipeline(
            class_labels=targets[first:last] if by_class else None,
            num_inference_steps=budget.steps,
            guidance_scale=scale if by_class else 1.0,
            height=side,
            width=side,
            batch_size=last - first,
            generator=generators_for(seed, range(first, last)),
            output_type="pt",
            callback_on_step_end=recorder,
        )
        assert isinstance(output, GenerationOutput)
        return output.pixels()

    starts = range(0, len(targets), budget.batch_size)
    parts = [generate(start, min(start + budget.batch_size, len(targets))) for start in starts]
    images = torch.cat(parts)  # (B, C, H, W) in [0, 1]
    block.pixelated = is_small(images[0])
    predicted = None
    if block.classifier is not None and by_class:
        predicted = block.classifier.classify(images)
        block.scores[index] = consistency(targets, predicted, labels)

    def cell(number: int) -> Cell:
        label = labels[int(predicted[number])] if predicted is not None else ""
        return Cell(data_uri(images[number]), labels[int(targets[number])], label)

    if by_class:
        columns = min(MAX_PER_CLASS, per_class)
        rows = [
            (labels[label], [cell(label + column * len(labels)) for column in range(columns)])
            for label in range(min(MAX_CLASSES, len(labels)))
        ]
    else:
        shown = min(len(targets), MAX_PER_CLASS * 6)
        rows = [
            ("", [cell(number) for number in range(at, min(at + MAX_PER_CLASS, shown))])
            for at in range(0, shown, MAX_PER_CLASS)
        ]
    block.grids.append(SampleGrid(index, run.name, rows, scale if by_class else None))

    chosen = seed % len(labels)
    recorder = TrajectoryRecorder(STRIP_TIMESTEPS)
    generate(chosen, chosen + 1, recorder)
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
    """Validation images of each class, to compare the samples with."""
    if not dataset.labels:
        items = [dataset[index] for index in choose(dataset, MAX_PER_CLASS * 6, seed)]
        cells = [Cell(data_uri(item["image"]), "") for item in items]
        rows = [("", cells[at : at + MAX_PER_CLASS]) for at in range(0, len(cells), MAX_PER_CLASS)]
        return SampleGrid(None, "real images", rows)
    cells_by_class: dict[int, list[Cell]] = {label: [] for label in range(min(MAX_CLASSES, len(dataset.labels)))}
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).tolist()
    for index in order[:2000]:
        item = dataset[index]
        cells_of = cells_by_class.get(item["label"])
        if cells_of is not None and len(cells_of) < MAX_PER_CLASS:
            cells_of.append(Cell(data_uri(item["image"]), dataset.labels[item["label"]]))
        if all(len(cells) == MAX_PER_CLASS for cells in cells_by_class.values()):
            break
    return SampleGrid(None, "real images", [(dataset.labels[label], cells) for label, cells in cells_by_class.items()])
