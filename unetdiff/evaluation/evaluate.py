"""Evaluation of a trained model on a split of a dataset: the metrics of its heads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unetdiff.config.model_directory import model_directory
from unetdiff.config.schema import RunConfig
from unetdiff.console import progress_bar
from unetdiff.data.base import ImageDataset
from unetdiff.data.config import DataConfig
from unetdiff.data.loaders import eval_loader
from unetdiff.diffusion.conditioning.layouts import LayoutConditioner
from unetdiff.diffusion.mask_codec import MaskCodec
from unetdiff.diffusion.mask_sampling import MaskSampler, MaskSamplingConfig, is_mask_denoiser
from unetdiff.errors import UserError
from unetdiff.evaluation.class_names import require_same_classes
from unetdiff.evaluation.config import EvaluationConfig, validate_evaluation
from unetdiff.evaluation.denoiser import evaluate_denoiser
from unetdiff.evaluation.layout_consistency import layout_consistency
from unetdiff.evaluation.load_run import LoadedRun, load_run, split_of
from unetdiff.evaluation.sampling import as_denoiser, sample_batches
from unetdiff.evaluation.types import EvalSplits, SamplingConfig
from unetdiff.files.records import write_json
from unetdiff.files.writing import file_errors, make_folder, require_writable
from unetdiff.segmentation.config import InferenceConfig
from unetdiff.segmentation.evaluation import Logits, SegmentationEvaluation, evaluate_segmenter, network_logits
from unetdiff.segmentation.instances import InstanceScores
from unetdiff.segmentation.pipeline import SegmentationPipeline, saved_inference
from unetdiff.training.tasks.diffusion import DiffusionTask
from unetdiff.training.tasks.segmentation import SegmentationTask

METRICS = "metrics.json"
MAX_LAYOUTS = 500  # samples for layout consistency
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class SegmentationResult:
    """Result of the segmentation head, for `unetdiff.reports.segmenter`."""

    evaluation: SegmentationEvaluation
    images: ImageDataset
    """The images at their original size."""
    conditions: dict[str, str]
    """Model, dataset, split and inference mode, as text."""


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`."""

    output: Path
    """Folder of metrics.json and the images and tables."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """By "TASK/NAME"; metrics of each class are {class: value} under "TASK/NAME_per_class"."""
    segmentation: SegmentationResult | None = None
    """None without a segmentation head."""


def evaluate(
    path: str | Path,
    data: DataConfig | None = None,
    split: str = "val",
    output: str | Path | None = None,
    config: EvaluationConfig | None = None,
    inference: InferenceConfig | None = None,
    num_worst: int = 20,
    instances: bool = False,
) -> Evaluation:
    """Evaluate a run's best weights, or a model directory, and write metrics.json.

    Segmentation head: the metrics of `unetdiff.segmentation.evaluation` at the original size of the masks. Diffusion
    head: the loss by quartile of the timestep, and the metrics of `unetdiff.evaluation.denoiser`, with its images and
    tables. The classifier and the features of the real images are cached in `path`.

    Args:
        path: a run directory or a model directory.
        data: another dataset; None: that of the run.
        split: "val" or "train".
        output: folder of the written files; None: evaluation-SPLIT/ in `path`.
        config: evaluation of the diffusion head.
        inference: inference of the segmentation head; None: that of its pipeline.
        num_worst: worst images kept for the report of a segmenter.
        instances: also measure how well a segmenter keeps separate objects apart (`segmentation.instances`).

    Returns:
        The metrics, and what a report of the segmentation head needs. In metrics.json nan is null.

    Raises:
        UserError: no model in `path`, an unknown split, no dataset configured, or unavailable feature networks.
    """
    path, config = Path(path), config or EvaluationConfig()
    validate_evaluation(config)
    model_directory(path)  # a missing model is the first thing to say
    output = Path(output) if output is not None else path / f"evaluation-{split}"
    require_writable("--output", output, folder=True)
    run = load_run(path, data, split)
    segmenter = None
    if run.diffusion is not None and config.segmenter is not None:
        segmenter = load_layout_segmenter(run.diffusion, config.segmenter)
    metrics: dict[str, Any] = {"model": str(run.directory), "data": run.config.data.name, "split": split}
    segmentation = None
    if run.segmentation is not None:
        options = inference or saved_inference(run.directory)
        scores = InstanceScores(ignore_index=run.config.segmentation.ignore_index) if instances else None
        segmentation = _evaluate_segmentation(run, run.segmentation, split, options, num_worst, scores)
        metrics |= {f"segmentation/{name}": value for name, value in segmentation.evaluation.metrics().items()}
        if not options.is_whole_image:
            metrics["segmentation/inference"] = asdict(options)
    elif inference is not None and not inference.is_whole_image:
        raise UserError(f"{run.directory}: tiles, flips and scales require a segmentation head. Omit them.")
    with file_errors(output, "Give another --output, or make room."):
        if run.diffusion is not None:
            metrics |= _evaluate_diffusion(run, run.diffusion, split, config, segmenter, output, path)
        make_folder(output)
        write_json(output / METRICS, metrics)
    return Evaluation(output, metrics, segmentation)


def _evaluate_segmentation(
    run: LoadedRun,
    task: SegmentationTask,
    split: str,
    inference: InferenceConfig,
    num_worst: int,
    instances: InstanceScores | None,
) -> SegmentationResult:
    original_data = replace(run.config.data, size=None, longest_side=None)
    images = run.images if original_data == run.config.data else split_of(original_data, split, run.masks)
    precision = run.accelerator.mixed_precision
    evaluation = segmentation_metrics(task, images, run.config, inference, precision, num_worst, instances)
    conditions = {"model": str(run.directory), "dataset": run.config.data.name, "split": split}
    if not inference.is_whole_image:
        views = len(inference.views)
        mode = "tiles" if inference.tile else "whole images"
        conditions["inference"] = f"{mode}, {views} view{'s' if views > 1 else ''}"
    return SegmentationResult(evaluation, images, conditions)


def _evaluate_diffusion(
    run: LoadedRun,
    task: DiffusionTask,
    split: str,
    config: EvaluationConfig,
    segmenter: SegmentationPipeline | None,
    output: Path,
    cache: Path,
) -> dict[str, Any]:
    loader = eval_loader(run.images, run.config.training.eval_batch_size)
    metrics = dict(task.evaluate(progress_bar(loader, desc="evaluating", unit="batch"), run.accelerator))
    if isinstance(task.codec, MaskCodec):
        return metrics | evaluate_masks(task, run.images, config, run.accelerator.mixed_precision, run.config)
    if not config.enabled:
        return metrics
    guidance = run.config.diffusion.guidance_scale if config.guidance_scale is None else config.guidance_scale
    setting = SamplingConfig(config.num_inference_steps, guidance, config.seed)
    other = run.split("val" if split == "train" else "train")
    train, val = (run.images, other) if split == "train" else (other, run.images)
    splits = EvalSplits(run.config.data.name, train, val, split)
    metrics |= evaluate_denoiser(as_denoiser(task), splits, config, setting, output, cache, run.accelerator.device)
    if segmenter is not None:
        metrics["layouts/segmenter"] = str(config.segmenter)
        metrics |= evaluate_layouts(task, run.images, segmenter, setting)
    return metrics


def segmentation_metrics(
    task: SegmentationTask,
    images: ImageDataset,
    config: RunConfig,
    inference: InferenceConfig,
    precision: str,
    num_worst: int = 20,
    instances: InstanceScores | None = None,
) -> SegmentationEvaluation:
    """Evaluate a task's network on images at their original size, each resized to data.size for the network only."""
    batch_size = config.training.eval_batch_size
    options = replace(inference, batch_size=batch_size) if inference.is_whole_image else inference
    return evaluate_segmenter(
        _logits_of(task, images, options, precision),
        images,
        config.segmentation.ignore_index,
        num_worst,
        batch_size,
        partial(progress_bar, desc="evaluating", unit="batch"),
        instances,
    )


def _logits_of(task: SegmentationTask, images: ImageDataset, options: InferenceConfig, precision: str) -> Logits:
    """A function for `evaluate_segmenter`; of a segmenter of captions, each image with its own, if it has one."""
    arguments = (task.data.size, options, AUTOCAST.get(precision))
    reads_captions = task.context is not None and task.context.reads_captions
    if not reads_captions or "caption" not in images.without_image(0):
        return network_logits(task.segmenter, *arguments)
    captions = (images.caption(index) for index in range(len(images)))  # in the order of the evaluation

    def logits_of(batch: Sequence[Tensor]) -> Iterator[Tensor]:
        for image, caption in zip(batch, captions, strict=False):
            yield from network_logits(task.segmenter.with_prompt(caption), *arguments)([image])

    return logits_of


def evaluate_masks(
    task: DiffusionTask, images: ImageDataset, config: EvaluationConfig, precision: str, run_config: RunConfig
) -> dict[str, Any]:
    """Segmentation metrics of a denoiser of masks, one sample for each image; {} unless images are its condition.

    Of `config`, only num_inference_steps and seed apply: no feature network is trained on masks.
    """
    pipeline = task.pipeline()
    if not is_mask_denoiser(pipeline):
        return {}
    steps = config.num_inference_steps
    sampler = MaskSampler(pipeline, MaskSamplingConfig(1, steps, seed=config.seed), AUTOCAST.get(precision))
    progress = partial(progress_bar, desc="sampling masks", unit="batch")
    batch_size, ignore_index = run_config.training.eval_batch_size, run_config.segmentation.ignore_index
    evaluation = evaluate_segmenter(sampler.logits(), images, ignore_index, 0, batch_size, progress)
    metrics = {f"masks/{name}": value for name, value in evaluation.metrics().items()}
    return metrics | {"masks/num_inference_steps": steps}


def load_layout_segmenter(task: DiffusionTask, path: Path) -> SegmentationPipeline:
    """The segmenter of a run or model directory, to measure the layout consistency of a denoiser with.

    Raises:
        UserError: a denoiser without layout condition, no segmenter in `path`, or one with other classes.
    """
    if not isinstance(task.conditioner, LayoutConditioner):
        raise UserError(f"segmenter={path}: must be set with a layout-conditional model only. Omit it.")
    try:
        segmenter = SegmentationPipeline.from_pretrained(model_directory(path))
    except UserError as error:
        raise UserError(f"segmenter: {error}") from None
    remedy = "Give a segmenter trained on the dataset of the model."
    rule = "the segmenter must have the classes of the layouts"
    require_same_classes(task.conditioner.labels, segmenter.classes, f"segmenter={path}", remedy, rule)
    return segmenter.to(task.unet.device)


def evaluate_layouts(
    task: DiffusionTask, images: ImageDataset, segmenter: SegmentationPipeline, setting: SamplingConfig
) -> dict[str, Any]:
    """Layout consistency of one sample for each layout of a split, and of its real images."""
    count = min(len(images), MAX_LAYOUTS)
    samples = (image for batch in sample_batches(task, count, setting) for image in batch.images)
    masks = [images[i]["mask"] for i in range(count)]
    real = (images[i]["image"] for i in range(count))
    num_classes = len(segmenter.classes)
    metrics: dict[str, Any] = {"layouts/num_images": count}
    for name, source in (("samples", samples), ("real", real)):
        result = layout_consistency(segmenter, source, masks, num_classes)
        metrics |= {f"layouts/{key}_of_{name}": result[key] for key in ("mean_iou", "pixel_accuracy", "mean_accuracy")}
    return metrics
