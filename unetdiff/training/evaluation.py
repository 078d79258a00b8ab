"""A trained model judged on a split: the figures of its heads, and the class consistency of its samples."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from tqdm import tqdm

from unetdiff.compare.segmenter import write_segmenter_report
from unetdiff.config import RunConfig, from_yaml
from unetdiff.data import DataConfig, PictureDataset, build_dataset, eval_loader
from unetdiff.data.config import AugmentConfig
from unetdiff.data.transforms import to_uint8
from unetdiff.judging.classifier import Judge, train_judge
from unetdiff.diffusion.pictures import color_error
from unetdiff.diffusion.pipeline import GenerationOutput
from unetdiff.errors import UserError
from unetdiff.segmentation.config import InferenceConfig
from unetdiff.segmentation.evaluation import SegmentationEvaluation, evaluate_segmenter, network_logits
from unetdiff.segmentation.pipeline import saved_inference
from unetdiff.training import machine
from unetdiff.training.checkpoints import model_directory
from unetdiff.training.records import jsonable
from unetdiff.training.rundir import CONFIG
from unetdiff.training.tasks import DiffusionTask, JointTask, SegmentationTask, load_task
from unetdiff.training.tasks.base import evenly

METRICS = "metrics.json"
SAMPLE_BATCH = 100
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def evaluate(
    path: str | Path,
    data: DataConfig | None = None,
    split: str = "val",
    output: str | Path | None = None,
    samples_per_class: int = 30,
    steps: int = 50,
    guidance_scale: float | None = None,
    seed: int = 0,
    inference: InferenceConfig | None = None,
    worst: int = 20,
) -> dict[str, Any]:
    """Judge a run's best weights, or a model directory, and write metrics.json with all figures.

    With a segmentation head: the figures of `unetdiff.segmentation.evaluation` at the masks' own size, in all and of
    each class, and the table, plots and page of `unetdiff.compare.segmenter` beside them. With a diffusion head: the
    loss by quartile of the timestep, and for a class-conditional one the class consistency of its samples by an
    independent classifier (trained on the set's real training pictures, once, cached in the run directory) with that
    classifier's accuracy on the real pictures of the split, and the samples' colours against theirs.

    Args:
        path: a run directory or a model directory.
        data: another set; None: the run's own.
        split: "val" or "train".
        output: folder of what is written; None: evaluation-SPLIT/ in `path`.
        samples_per_class: pictures drawn of each class; 0: none.
        steps: denoising steps of the samples.
        guidance_scale: guidance of the samples; None: the run's.
        seed: of the samples.
        inference: how the segmentation head sees pictures; None: as its pipeline does.
        worst: pictures on the page of a segmenter.

    Returns:
        The figures, as "TASK/NAME"; those of each class are {class: figure} under "TASK/NAME_per_class". In the file a
        figure that there is not (nan) is null.

    Raises:
        UserError: no model there, no such split, or no data set named anywhere.
    """
    path = Path(path)
    directory = model_directory(path)
    config = run_config(path)
    if data is not None:
        config.data = data
    if split not in ("val", "train"):
        raise UserError(f"split: '{split}' is not one of val, train")
    masks = bool((_heads(directory))["segmentation"])
    pictures = _split(config.data, split, masks)
    task = load_task(config, directory, pictures)
    accelerator = machine.build_accelerator(config.training)
    task.to(accelerator.device)
    task.place(config.training.channels_last)
    output = Path(output) if output is not None else path / f"evaluation-{split}"
    figures: dict[str, Any] = {"model": str(directory), "data": config.data.name, "split": split}
    segmentation = task.segmentation if isinstance(task, JointTask) else task
    if isinstance(segmentation, SegmentationTask):
        seen = inference or saved_inference(directory)
        plain_data = replace(config.data, size=None, longest_side=None)
        own_size = pictures if plain_data == config.data else _split(plain_data, split, masks)
        judged = judge_segmenter(segmentation, own_size, config, seen, accelerator.mixed_precision, worst)
        figures |= {f"segmentation/{name}": value for name, value in judged.figures().items()}
        facts = {"model": str(directory), "set": config.data.name, "split": split}
        if not seen.plain:
            figures["segmentation/inference"] = asdict(seen)
            views = len(seen.views)
            facts["seen in"] = f"{'tiles' if seen.tile else 'whole'}, {views} view{'s' if views > 1 else ''}"
        output.mkdir(parents=True, exist_ok=True)
        write_segmenter_report(judged, own_size, output, f"{path.resolve().name} on {split}", facts)
    elif inference is not None and not inference.plain:
        raise UserError(f"inference: {directory} has no segmentation head; leave tiles, flips and scales out")
    diffusion = task.diffusion if isinstance(task, JointTask) else task
    if isinstance(diffusion, DiffusionTask):
        loader = eval_loader(pictures, config.training.eval_batch_size)
        figures |= diffusion.evaluate(tqdm(loader, desc="evaluating", unit="batch", disable=None), accelerator)
    if isinstance(diffusion, DiffusionTask) and samples_per_class:
        guidance = config.diffusion.guidance_scale if guidance_scale is None else guidance_scale
        samples, labels = draw(diffusion, samples_per_class, steps, guidance, seed)
        figures |= {"samples/number": len(samples), "samples/steps": steps, "samples/seed": seed}
        figures["samples/guidance_scale"] = guidance if labels is not None else 1.0
        real = torch.stack([pictures[i]["image"] for i in evenly(len(pictures), 500)])
        figures |= {f"samples/{name}": value for name, value in color_error(samples, real).items()}
        if labels is not None:
            figures |= class_consistency(config.data, pictures, samples, labels, path / "judge")
    output.mkdir(parents=True, exist_ok=True)
    (output / METRICS).write_text(json.dumps(jsonable(figures), indent=1) + "\n")
    return figures


def judge_segmenter(
    task: SegmentationTask,
    pictures: PictureDataset,
    config: RunConfig,
    inference: InferenceConfig,
    precision: str,
    worst: int = 20,
) -> SegmentationEvaluation:
    """A task's network on pictures at their own size, each resized to data.size for the network alone."""
    batch_size = config.training.eval_batch_size
    seen = replace(inference, batch_size=batch_size) if inference.plain else inference
    return evaluate_segmenter(
        network_logits(task.unet, task.facts.size, seen, AUTOCAST.get(precision)),
        pictures,
        config.segmentation.ignore_index,
        worst,
        batch_size,
        partial(tqdm, desc="evaluating", unit="batch", disable=None),
    )


def run_config(path: Path) -> RunConfig:
    """The config of a run or model directory's run; the defaults where there is none."""
    for candidate in (path / CONFIG, path.parent / CONFIG):
        if candidate.is_file():
            return from_yaml(candidate)
    return RunConfig()


def draw(
    task: DiffusionTask, per_class: int, steps: int, guidance_scale: float, seed: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Samples, uint8 (N, 3, H, W), and the classes (N,) that they were asked for (None without classes)."""
    pipeline = task.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    labels = None
    count = per_class * 10
    if task.conditioner is not None:
        labels = torch.arange(task.conditioner.num_classes).repeat_interleave(per_class)
        count = len(labels)
    generator = torch.Generator().manual_seed(seed)
    precision = machine.autocast_dtype()
    parts = []
    for start in tqdm(range(0, count, SAMPLE_BATCH), desc="sampling", unit="batch", disable=None):
        size = min(SAMPLE_BATCH, count - start)
        result = pipeline(
            class_labels=None if labels is None else labels[start : start + size].tolist(),
            batch_size=size,
            num_inference_steps=steps,
            guidance_scale=guidance_scale if labels is not None else 1.0,
            generator=generator,
            output_type="pt",
            autocast_dtype=precision,
        )
        parts.append(to_uint8(cast(GenerationOutput, result).pixels() * 2 - 1))
    return torch.cat(parts), labels


def class_consistency(
    data: DataConfig, pictures: PictureDataset, samples: torch.Tensor, labels: torch.Tensor, cache: Path
) -> dict[str, Any]:
    """Share of samples that an independent classifier takes for the class they were asked for; its own accuracy too."""
    judge = real_judge(data, cache)
    names = pictures.labels
    return {
        "samples/class_consistency": judge.consistency(samples, labels),
        "samples/class_consistency_per_class": dict(
            zip(names, judge.consistency_per_class(samples, labels), strict=True)
        ),
        "samples/judge_accuracy_on_real": judge.accuracy(pictures),
    }


def real_judge(data: DataConfig, cache: Path | None) -> Judge:
    """The classifier of a set's real training pictures; cached at `cache` (two files)."""
    train = _split(data, "train", masks=False)
    return train_judge(train, len(train.labels), cache)


def _split(data: DataConfig, split: str, masks: bool) -> PictureDataset:
    return build_dataset(replace(data, augment=AugmentConfig()), "train" if split == "train" else "val", masks)


def _heads(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "unet" / "config.json").read_text())["heads"]
