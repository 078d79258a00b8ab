"""The model card of a run's model directories, from its config, metrics and images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unetdiff.config.reading import from_yaml
from unetdiff.config.schema import RunConfig
from unetdiff.files.folders import files_in, is_there
from unetdiff.files.hub import NAME
from unetdiff.files.model_card import Card, CardMetric, copy_image
from unetdiff.files.records import read_object
from unetdiff.training.logger import CONFIG, IMAGES, METRICS, SUMMARY, read_lines
from unetdiff.training.progress import STATE

SHOWN = {
    "segmentation": ("mean_iou", "mean_accuracy", "pixel_accuracy", "fw_iou", "mean_dice"),
    "diffusion": ("loss",),
}
"""Validation metrics of the card, by head."""


def write_run_card(directory: Path, run: Path, name: str | None = None, step: int | None = None) -> None:
    """Write the card of a model directory, and the previews of its validation next to it; nothing without a config.

    Args:
        directory: with the model's files.
        run: the run directory.
        name: of the model: OWNER/NAME on the Hub; None: the run's.
        step: of the validation that measured these weights; None: the last one.
    """
    if not is_there(run / CONFIG):
        return
    config = from_yaml(run / CONFIG)
    lines = read_lines(run / METRICS) if is_there(run / METRICS) else []
    lines = [line for line in lines if line["kind"] == "validation" and step in (None, line["step"])]
    line = lines[-1] if lines else {}
    run_card(config, line, name or str(run), _copy_previews(directory, run, line.get("step"))).write(directory)


def step_of(model: Path) -> int | None:
    """The step whose validation measured a run's model directory: that of `best`; None for `latest`, the last one."""
    if model.name != "best":
        return None
    run = model.parent
    if is_there(run / SUMMARY):
        return (read_object(run / SUMMARY).get("best") or {}).get("step")
    states = [path for path in files_in(run / "checkpoints", {".json"}, recursive=True) if path.name == STATE]
    return read_object(states[-1]).get("best_step") if states else None


def run_card(config: RunConfig, line: dict[str, Any], name: str, images: list[str]) -> Card:
    """The card of a run's weights.

    Args:
        config: of the run.
        line: of metrics.jsonl, with the validation of these weights; {} without one.
        name: of the model.
        images: names of image files next to the card.
    """
    heads = [head for head in ("segmentation", "diffusion") if config.task in (head, "joint")]
    data, training = config.data, config.training
    measured = [
        CardMetric(f"{head}/{metric}", float(line[f"{head}/{metric}"]), "validation", _count(line, head))
        for head in heads
        for metric in SHOWN[head]
        if isinstance(line.get(f"{head}/{metric}"), int | float)
    ]
    loaders = {"segmentation": "SegmentationPipeline", "diffusion": "GenerationPipeline"}
    root = data.root or ""
    is_hub = data.name == "huggingface" and NAME.fullmatch(root) is not None and not Path(root).exists()
    return Card(
        name=name,
        heads=heads,
        loaders=[loaders[head] for head in heads],
        about=f"A U-Net ({config.model.encoder.name}) with a {' and a '.join(heads)} head",
        condition=config.diffusion.condition if "diffusion" in heads else "none",
        dataset=f"{data.name} ({Path(root).name})" if root else data.name,
        dataset_id=root if is_hub else None,
        metrics=measured,
        images=images,
        command=f"unetdiff train {config.task} {CONFIG}",
        details={
            "steps": f"{line.get('step', 'unknown')} of {training.batch_size} images",
            "seed": str(training.seed),
            "initial weights": str(
                training.init_from or config.model.pretrained or config.model.encoder.weights or "random"
            ),
        },
        limits=_limits(config, heads),
    )


def _limits(config: RunConfig, heads: list[str]) -> list[str]:
    metric = config.training.best_metric or "the best validation metric"
    limits = [
        f"One run with one seed. Its weights were selected on the validation split, by {metric}: the metrics above are "
        "optimistic for new images.",
        "It was trained on the dataset named above alone; other cameras, subjects and resolutions are untested.",
    ]
    if "segmentation" in heads:
        limits.append("Every pixel is assigned one of the training classes, also where none of them is right.")
    if "diffusion" in heads:
        limits.append(
            "Samples can repeat training images, more so the fewer there were: `unetdiff evaluate` shows each sample's "
            "nearest training images."
        )
    return [*limits, "No license was set: that of the weights depends on those of the data and the initial weights."]


def _count(line: dict[str, Any], head: str) -> int | None:
    number = line.get(f"{head}/images")
    return int(number) if isinstance(number, int | float) else None


def _copy_previews(directory: Path, run: Path, step: int | None) -> list[str]:
    """Copy the images of a validation next to the model, without its step in their names; their names."""
    prefix, names = f"step-{step:06d}-" if step is not None else "", []
    for path in files_in(run / IMAGES, {".png"}) if step is not None and (run / IMAGES).is_dir() else []:
        if path.name.startswith(prefix):
            names.append(path.name.removeprefix(prefix))
            copy_image(path, directory / names[-1])
    return names
