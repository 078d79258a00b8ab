"""Accuracy of a segmenter on the conditional samples of a denoiser.

Samples conditioned on a class, a text or a layout are segmented. A sample counts as correct if its condition's class is
the foreground class with the most pixels; for layout-conditioned denoisers, we also report the mIoU between
segmentation and layout. The same metrics on real images give the upper bound set by the segmenter itself. These metrics
are specific to this project and measure neither realism nor diversity; they are not FID.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unetdiff.config.model_directory import model_directory
from unetdiff.config.reading import to_yaml
from unetdiff.config.validation.checks import require_at_least
from unetdiff.data.base import ImageDataset
from unetdiff.data.sampling import evenly_spaced_indices
from unetdiff.diffusion.conditioning.layouts import LayoutConditioner
from unetdiff.errors import UserError, config_error
from unetdiff.evaluation.distances import Gaussian
from unetdiff.evaluation.layout_consistency import BATCH, background_of, class_consistency
from unetdiff.evaluation.load_run import load_run, run_config
from unetdiff.evaluation.reference import image_batches
from unetdiff.evaluation.sampling import sample
from unetdiff.evaluation.types import SamplingConfig
from unetdiff.experiments.agreement_report import AgreementResults, SegmentedImages, agreement_record
from unetdiff.experiments.filtering import condition_scores, kept_samples
from unetdiff.experiments.run_inputs import diffusion_task, open_segmenter, refuse_overrides
from unetdiff.reports.consistency import SampleClassifier, train_sample_classifier
from unetdiff.reports.dataset_groups import open_dataset
from unetdiff.reports.record import Record
from unetdiff.reports.runs import data_name, read_run
from unetdiff.reports.samples import Budget, conditional
from unetdiff.segmentation.inference import predict_masks
from unetdiff.segmentation.metrics import ConfusionMatrix
from unetdiff.training import runtime as machine

CLASSIFIER_STEPS = Budget.classifier_steps
"""Optimizer steps of the independent classifier."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `unetdiff experiment agreement`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run with a diffusion head")
    parser.add_argument("--segmenter", type=Path, metavar="RUN", help="run of the segmenter (default: RUN's own head)")
    parser.add_argument("--guidance_scales", type=float, nargs="+", default=[1.0, 2.0, 4.0], help="guidance scales")
    parser.add_argument("--num_images", type=int, default=200, help="samples per guidance scale")
    parser.add_argument("--num_inference_steps", type=int, default=25, help="denoising steps per sample")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise, which all guidance scales share")
    parser.add_argument(
        "--filter_thresholds",
        type=float,
        nargs="+",
        default=[],
        metavar="SCORE",
        help="keep samples whose foreground is the condition's class to at least this fraction, and report the class "
        "consistency of what is left by an independent classifier",
    )
    parser.add_argument("--num_rows", type=int, default=6, help="samples in the gallery")


def run(args: argparse.Namespace, overrides: Sequence[str], output: Path, command: str) -> Record:
    """Sample, segment and report.

    Raises:
        UserError: a run without a diffusion head or condition, or a segmenter of other classes.
    """
    start = time.perf_counter()
    refuse_overrides(overrides)
    if any(not 0 < threshold <= 1 for threshold in args.filter_thresholds):
        raise config_error("--filter_thresholds", args.filter_thresholds, "in (0, 1]")
    for name in ("num_images", "num_inference_steps", "num_rows"):
        require_at_least(f"--{name}", getattr(args, name), 1)
    loaded = load_run(args.run, layouts=True)
    task, images = diffusion_task(loaded, args.run), loaded.images
    if task.conditioner is None:
        raise UserError(f"RUN={args.run}: must be conditional (got diffusion.condition=none). Give a conditional run.")
    segmenter_path = args.segmenter or args.run
    segmenter = open_segmenter(segmenter_path, images.classes, loaded)
    has_layouts = isinstance(task.conditioner, LayoutConditioner)
    background = background_of(segmenter.classes)

    def segment(pixels: Tensor, classes: list[set[int]], indices: list[int]) -> SegmentedImages:
        masks = predict_masks(segmenter.segmenter, pixels, segmenter.size, BATCH, options=segmenter.inference)
        scores = class_consistency(masks, classes, background)
        if not has_layouts:
            return SegmentedImages(pixels, masks, scores, None)
        matrix = ConfusionMatrix(len(segmenter.classes), segmenter.ignore_index)
        for mask, index in zip(masks, indices, strict=True):
            matrix.update(torch.as_tensor(mask).long(), images[index]["mask"])
        return SegmentedImages(pixels, masks, scores, matrix.compute()["mean_iou"])

    indices = [number % len(images) for number in range(args.num_images)]  # images whose condition each sample has
    real_indices = indices[: len(images)] if has_layouts else evenly_spaced_indices(len(images), args.num_images)
    real = segment(
        torch.stack([images[index]["image"] for index in real_indices]),
        [foreground_classes(images, index) for index in real_indices],
        real_indices,
    )
    samples: dict[float, SegmentedImages] = {}
    classes: list[set[int]] = []  # the condition of each sample, the same at every guidance scale
    for scale in args.guidance_scales:
        pixels, labels = sample(task, args.num_images, SamplingConfig(args.num_inference_steps, scale, args.seed))
        if labels is not None:
            names = task.conditioner.labels  # type: ignore[union-attr]
            classes = [{class_index(images.classes, names[label])} for label in labels.tolist()]
        elif not classes:
            classes = [foreground_classes(images, index) for index in indices]
        samples[scale] = segment(pixels, classes, indices)
    kept, classifier = [], None
    if args.filter_thresholds:
        classifier = _classifier(args.run, images, output)
        network = classifier.classifier
        batches = image_batches(images, "real images")
        reference = Gaussian.fit(torch.cat([network.features(batch["image"]) for batch in batches]))
        for scale, one in samples.items():
            wanted = [next(iter(condition)) for condition in classes]
            scores = condition_scores(one.masks, wanted, background)
            predicted = [classifier.labels[label] for label in classifier.classify(one.images / 255).tolist()]
            is_correct = np.array([images.classes[c] == name for c, name in zip(wanted, predicted, strict=True)])
            features = network.features(one.images)
            kept += kept_samples(scale, scores, is_correct, args.filter_thresholds, features, reference)
    results = AgreementResults(
        real,
        samples,
        classes,
        has_layouts=has_layouts,
        has_classes=not has_layouts or background is not None,
        shared_backbone=model_directory(segmenter_path) == loaded.directory,
        kept=kept,
        classifier_accuracy=None if classifier is None else classifier.accuracy,
    )
    return agreement_record(
        results,
        images,
        args,
        output,
        command=command,
        dataset_name=data_name(asdict(loaded.config.data)),
        configs={"denoiser": to_yaml(loaded.config), "segmenter": to_yaml(run_config(Path(segmenter_path)))},
        machine=machine.facts(loaded.accelerator),
        minutes=(time.perf_counter() - start) / 60,
    )


def _classifier(run: Path, images: ImageDataset, output: Path) -> SampleClassifier:
    """The independent classifier of the run's dataset, trained once."""
    one = read_run(run)
    validation = open_dataset(one, segmentation=False)
    if not validation.labels or not set(validation.labels) <= set(images.classes) or not conditional(one):
        constraint = "left out unless each image has one class and the denoiser is conditioned on it"
        raise UserError(f"--filter_thresholds: must be {constraint} ({run}).")
    return train_sample_classifier(one, validation, CLASSIFIER_STEPS, output / ".classifiers")


def foreground_classes(images: ImageDataset, index: int) -> set[int]:
    """The foreground classes of a real image, as indices of the mask's classes."""
    item = images[index]
    return {class_index(images.classes, images.labels[label]) for label in item["labels"]}


def class_index(classes: Sequence[str], name: str) -> int:
    """Index of the mask class with the denoiser's class name; UserError if there is none."""
    if name not in classes:
        raise UserError(f"--segmenter: must have the denoiser's class {name!r}. Give a run of the same dataset.")
    return list(classes).index(name)
