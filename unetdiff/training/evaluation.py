"""A trained model judged on a split: the figures of its task, and the class consistency of its samples."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from tqdm import tqdm

from unetdiff.config import RunConfig, from_yaml
from unetdiff.data import DataConfig, PictureDataset, build_dataset, eval_loader
from unetdiff.data.config import AugmentConfig
from unetdiff.data.transforms import to_uint8
from unetdiff.diffusion.judge import Judge, train_judge
from unetdiff.diffusion.pictures import color_error
from unetdiff.diffusion.pipeline import GenerationOutput
from unetdiff.errors import UserError
from unetdiff.segmentation.config import InferenceConfig
from unetdiff.segmentation.pipeline import saved_inference
from unetdiff.training import machine
from unetdiff.training.checkpoints import model_directory
from unetdiff.training.rundir import CONFIG
from unetdiff.training.tasks import DiffusionTask, JointTask, SegmentationTask, load_task
from unetdiff.training.tasks.base import evenly

SAMPLE_BATCH = 100


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
) -> dict[str, Any]:
    """Judge a run's best weights, or a model directory.

    With a segmentation head: the four figures and those of each class, at the masks' own size. With a diffusion head:
    the loss by quartile of the timestep, and for a class-conditional one the class consistency of its samples by an
    independent classifier (trained on the set's real training pictures, once, cached in the run directory) with that
    classifier's accuracy on the real pictures of the split, and the samples' colours against theirs.

    Args:
        path: a run directory or a model directory.
        data: another set; None: the run's own.
        split: "val" or "train".
        output: where figures.json goes; None: evaluation-SPLIT/ in `path`.
        samples_per_class: pictures drawn of each class; 0: none.
        steps: denoising steps of the samples.
        guidance_scale: guidance of the samples; None: the run's.
        seed: of the samples.
        inference: how the segmentation head sees pictures; None: as its pipeline does.

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
    loader = eval_loader(pictures, config.training.eval_batch_size)
    segmentation = task.segmentation if isinstance(task, JointTask) else task
    if isinstance(segmentation, SegmentationTask):
        segmentation.inference = inference or saved_inference(directory)
    elif inference is not None and not inference.plain:
        raise UserError(f"inference: {directory} has no segmentation head; leave tiles, flips and scales out")
    figures: dict[str, Any] = {"model": str(directory), "data": config.data.name, "split": split}
    figures |= task.evaluate(tqdm(loader, desc="evaluating", unit="batch", disable=None), accelerator)
    if isinstance(segmentation, SegmentationTask) and not segmentation.inference.plain:
        figures["segmentation/inference"] = asdict(segmentation.inference)
    if pictures.classes:
        for kind in ("iou_per_class", "accuracy_per_class"):
            values = figures.pop(f"segmentation/{kind}")
            figures[f"segmentation/{kind}"] = dict(zip(pictures.classes, values, strict=True))
    diffusion = task.diffusion if isinstance(task, JointTask) else task
    if isinstance(diffusion, DiffusionTask) and samples_per_class:
        guidance = config.diffusion.guidance_scale if guidance_scale is None else guidance_scale
        samples, labels = draw(diffusion, samples_per_class, steps, guidance, seed)
        figures |= {"samples/number": len(samples), "samples/steps": steps, "samples/seed": seed}
        figures["samples/guidance_scale"] = guidance if labels is not None else 1.0
        real = torch.stack([pictures[i]["image"] for i in evenly(len(pictures), 500)])
        figures |= {f"samples/{name}": value for name, value in color_error(samples, real).items()}
        if labels is not None:
            figures |= class_consistency(config.data, pictures, samples, labels, path / "judge")
    output = Path(output) if output is not None else path / f"evaluation-{split}"
    output.mkdir(parents=True, exist_ok=True)
    (output / "figures.json").write_text(json.dumps(figures, indent=1))
    return figures


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
