"""A trained model judged on a split: the figures of its heads, and of what it draws."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from unetdiff.config.parsing import RunConfig
from unetdiff.data.base import ImageDataset
from unetdiff.data.config import DataConfig
from unetdiff.data.loaders import eval_loader
from unetdiff.diffusion.conditioning import LayoutConditioner
from unetdiff.diffusion.mask_codec import MaskCodec
from unetdiff.diffusion.segmenting import MaskSampler, MaskSampling, segments
from unetdiff.errors import UserError
from unetdiff.evaluation.config import JudgingConfig
from unetdiff.evaluation.denoiser import evaluate_denoiser
from unetdiff.evaluation.layout_consistency import layout_agreement, require_classes
from unetdiff.evaluation.load_run import load_run, run_config, split_of
from unetdiff.evaluation.sampling import as_denoiser, draw_parts
from unetdiff.evaluation.types import EvalSplits, SamplingConfig
from unetdiff.reports.segmenter import write_segmenter_report
from unetdiff.segmentation.config import InferenceConfig
from unetdiff.segmentation.evaluation import SegmentationEvaluation, evaluate_segmenter, network_logits
from unetdiff.segmentation.pipeline import SegmentationPipeline, saved_inference
from unetdiff.training.checkpoints import model_directory
from unetdiff.training.logger import jsonable
from unetdiff.training.tasks import DiffusionTask, SegmentationTask

__all__ = ["evaluate", "evaluate_layouts", "evaluate_segmenter", "layout_judge", "run_config"]

METRICS = "metrics.json"
LAYOUTS = 500  # at most so many are drawn for a segmenter
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def evaluate(
    path: str | Path,
    data: DataConfig | None = None,
    split: str = "val",
    output: str | Path | None = None,
    judging: JudgingConfig | None = None,
    inference: InferenceConfig | None = None,
    worst: int = 20,
) -> dict[str, Any]:
    """Judge a run's best weights, or a model directory, and write metrics.json with all figures.

    With a segmentation head: the figures of `unetdiff.segmentation.evaluation` at the masks' own size, in all and of
    each class, and the table, plots and page of `unetdiff.reports.segmenter` beside them. With a diffusion head: the
    loss by quartile of the timestep, and what `unetdiff.evaluation.denoiser` says of its samples and likelihood, with
    their images and tables. The classifier and the real images' features are kept in `path` for the next time.

    Args:
        path: a run directory or a model directory.
        data: another set; None: the run's own.
        split: "val" or "train".
        output: folder of what is written; None: evaluation-SPLIT/ in `path`.
        judging: how a diffusion head is judged.
        inference: how the segmentation head sees images; None: as its pipeline does.
        worst: images on the page of a segmenter.

    Returns:
        The figures, as "TASK/NAME"; those of each class are {class: figure} under "TASK/NAME_per_class". In the file a
        figure that there is not (nan) is null.

    Raises:
        UserError: no model there, no such split, no data set named anywhere, or judges that are not to be had.
    """
    path = Path(path)
    loaded = load_run(path, data, split)
    asked, judge = judging or JudgingConfig(), None
    if loaded.diffusion is not None and asked.segmenter is not None:
        judge = layout_judge(loaded.diffusion, asked.segmenter)
    config, directory, images, accelerator = loaded.config, loaded.directory, loaded.images, loaded.accelerator
    output = Path(output) if output is not None else path / f"evaluation-{split}"
    figures: dict[str, Any] = {"model": str(directory), "data": config.data.name, "split": split}
    segmentation = loaded.segmentation
    if segmentation is not None:
        seen = inference or saved_inference(directory)
        plain_data = replace(config.data, size=None, longest_side=None)
        own_size = images if plain_data == config.data else split_of(plain_data, split, loaded.masks)
        judged = segmenter_metrics(segmentation, own_size, config, seen, accelerator.mixed_precision, worst)
        figures |= {f"segmentation/{name}": value for name, value in judged.metrics().items()}
        facts = {"model": str(directory), "set": config.data.name, "split": split}
        if not seen.is_whole_image:
            figures["segmentation/inference"] = asdict(seen)
            views = len(seen.views)
            facts["seen in"] = f"{'tiles' if seen.tile else 'whole'}, {views} view{'s' if views > 1 else ''}"
        output.mkdir(parents=True, exist_ok=True)
        write_segmenter_report(judged, own_size, output, f"{path.resolve().name} on {split}", facts)
    elif inference is not None and not inference.is_whole_image:
        raise UserError(f"inference: {directory} has no segmentation head; leave tiles, flips and scales out")
    diffusion = loaded.diffusion
    if diffusion is not None:
        loader = eval_loader(images, config.training.eval_batch_size)
        figures |= diffusion.evaluate(tqdm(loader, desc="evaluating", unit="batch", disable=None), accelerator)
        if isinstance(diffusion.codec, MaskCodec):
            figures |= evaluate_masks(diffusion, images, asked, accelerator.mixed_precision, config)
        elif asked.anything:
            guidance = config.diffusion.guidance_scale if asked.guidance_scale is None else asked.guidance_scale
            setting = SamplingConfig(asked.steps, guidance, asked.seed)
            other = loaded.split("val" if split == "train" else "train")
            train, val = (images, other) if split == "train" else (other, images)
            sets = EvalSplits(config.data.name, train, val, split)
            figures |= evaluate_denoiser(as_denoiser(diffusion), sets, asked, setting, output, path, accelerator.device)
            if judge is not None:
                figures["layouts/segmenter"] = str(asked.segmenter)
                figures |= evaluate_layouts(diffusion, images, judge, setting)
    output.mkdir(parents=True, exist_ok=True)
    (output / METRICS).write_text(json.dumps(jsonable(figures), indent=1) + "\n")
    return figures


def segmenter_metrics(
    task: SegmentationTask,
    images: ImageDataset,
    config: RunConfig,
    inference: InferenceConfig,
    precision: str,
    worst: int = 20,
) -> SegmentationEvaluation:
    """A task's network on images at their own size, each resized to data.size for the network alone."""
    batch_size = config.training.eval_batch_size
    seen = replace(inference, batch_size=batch_size) if inference.is_whole_image else inference
    return evaluate_segmenter(
        network_logits(task.unet, task.facts.size, seen, AUTOCAST.get(precision)),
        images,
        config.segmentation.ignore_index,
        worst,
        batch_size,
        partial(tqdm, desc="evaluating", unit="batch", disable=None),
    )


def evaluate_masks(
    task: DiffusionTask, images: ImageDataset, asked: JudgingConfig, precision: str, config: RunConfig
) -> dict[str, Any]:
    """The figures of a segmenter, of one mask drawn of each image; {} where masks are drawn of something else.

    Of the judging, steps and seed count: no feature network has seen masks.
    """
    pipeline = task.pipeline()
    if not segments(pipeline):
        return {}
    sampler = MaskSampler(pipeline, MaskSampling(1, asked.steps, seed=asked.seed), AUTOCAST.get(precision))
    progress = partial(tqdm, desc="drawing masks", unit="batch", disable=None)
    batch = config.training.eval_batch_size
    judged = evaluate_segmenter(sampler.logits(), images, config.segmentation.ignore_index, 0, batch, progress)
    return {f"masks/{name}": value for name, value in judged.metrics().items()} | {"masks/steps": asked.steps}


def layout_judge(task: DiffusionTask, segmenter: Path) -> SegmentationPipeline:
    """The segmenter of a run or model directory, to look for the layouts that a denoiser is told.

    Raises:
        UserError: a denoiser that is told no layouts, no segmenter there, or one of other classes.
    """
    if not isinstance(task.conditioner, LayoutConditioner):
        raise UserError("segmenter: the model is told no layouts that a segmenter could look for; leave it out")
    try:
        judge = SegmentationPipeline.from_pretrained(model_directory(segmenter))
        require_classes(judge, task.conditioner.num_classes)
    except UserError as error:
        raise UserError(f"segmenter: {error}") from None
    return judge.to(task.unet.device)


def evaluate_layouts(
    task: DiffusionTask, images: ImageDataset, judge: SegmentationPipeline, setting: SamplingConfig
) -> dict[str, Any]:
    """What a segmenter of real images (see `layout_judge`) finds in one sample for each layout of a split, and in the
    real images."""
    count = min(len(images), LAYOUTS)
    parts = draw_parts(task, count, setting)
    samples = (image for part in parts for image in part.images)
    masks = [images[i]["mask"] for i in range(count)]
    real = (images[i]["image"] for i in range(count))
    classes = len(judge.classes)
    seen = {"samples": layout_agreement(judge, samples, masks, classes)}
    seen["real"] = layout_agreement(judge, real, masks, classes)
    told = ("mean_iou", "pixel_accuracy", "mean_accuracy")
    figures = {f"layouts/{name}_of_{what}": seen[what][name] for what in seen for name in told}
    return {"layouts/number": count, **figures}
