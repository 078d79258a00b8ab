"""Can the segmentation head lead a denoiser to a layout that it was never trained on?

At each step of DDIM the image that the denoiser expects, x_0, is segmented, and the gradient of the cross-entropy
against a wished layout is added to the predicted noise (`unetdiff.diffusion.loss_guidance`). The layouts are masks of
validation images. An image that is moved along the gradient of one network may please that network alone, as
adversarial examples do. So the samples are judged twice: by the segmenter that steered, and by one that had no
part in it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from unetdiff.config.reading import to_yaml
from unetdiff.config.schema import RunConfig
from unetdiff.config.validation.checks import require_at_least
from unetdiff.data.base import collate
from unetdiff.data.sampling import evenly_spaced_indices
from unetdiff.data.transforms import fit_longest_side
from unetdiff.diffusion.loss_guidance import LossGuidance, layout_loss
from unetdiff.errors import UserError
from unetdiff.evaluation.layout_consistency import BATCH, layout_consistency
from unetdiff.evaluation.load_run import load_run, run_config
from unetdiff.evaluation.sampling import sample_batches
from unetdiff.evaluation.types import SamplingConfig, concat_batches
from unetdiff.experiments.images import Album, legend
from unetdiff.experiments.run_inputs import denoiser_of, no_overrides, open_segmenter
from unetdiff.experiments.runs import train, variant
from unetdiff.reports.record import Column, Gallery, Record, Table, Value
from unetdiff.reports.runs import data_name
from unetdiff.segmentation.inference import predict_masks, segment_whole
from unetdiff.segmentation.palette import as_mask, colorize
from unetdiff.segmentation.pipeline import SegmentationPipeline
from unetdiff.training import runtime as machine
from unetdiff.training.tasks import DiffusionTask

SOURCE = (
    "Dhariwal & Nichol 2021, section 4 (classifier guidance); Bansal et al. 2023 (universal guidance) and Chung et al. "
    "2023 (DPS), whose gradient is taken at the predicted x_0"
)
UNSTEERED, REAL = "not steered", "real images"


@dataclass(frozen=True)
class Judged:
    """The samples of one scale, or the real images, and how well they show the layouts."""

    images: Tensor
    """uint8 (N, 3, H, W)."""
    by_segmenter: float
    """mIoU, as the segmenter that steers sees them."""
    by_judge: float
    """mIoU, as the independent one does."""
    seconds: float | None
    """Of drawing an image; None: it is real."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run with a diffusion head")
    parser.add_argument("--segmenter", type=Path, metavar="RUN", help="who steers; none given: RUN's own other head")
    parser.add_argument("--judge", type=Path, metavar="RUN", help="who judges; none given: trained, by another seed")
    parser.add_argument("--classifier_steps", type=int, help="optimizer steps of that; none given: the segmenter's")
    parser.add_argument("--scales", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.4], help="strengths")
    parser.add_argument("--interval", type=float, nargs=2, default=[0.0, 1.0], help="steered here: 0 clean, 1 noise")
    parser.add_argument("--through", choices=("network", "image"), default="network", help="the gradient's way")
    parser.add_argument("--tell", action="store_true", help="tell the denoiser its condition of those images, too")
    parser.add_argument("--guidance", type=float, default=1.0, help="guidance scale, with --tell")
    parser.add_argument("--n", type=int, default=64, help="layouts, one sample each")
    parser.add_argument("--steps", type=int, default=50, help="denoising steps")
    parser.add_argument("--seed", type=int, default=0, help="of the noise, the same at each scale")
    parser.add_argument("--rows", type=int, default=6, help="layouts that are shown")


def run(given: argparse.Namespace, overrides: Sequence[str], output: Path, command: str) -> Record:
    """Draw with and without steering, and judge; see the module.

    Raises:
        UserError: a run without a diffusion head, a denoiser of latents, or segmenters of other classes.
    """
    began = time.perf_counter()
    no_overrides(overrides)
    for name in ("n", "steps", "rows"):
        require_at_least(f"--{name}", getattr(given, name), 1)
    settings = {scale: _steering_of(scale, given) for scale in sorted(set(given.scales) - {0.0})}
    loaded = load_run(given.run, layouts=True)
    task, images = denoiser_of(loaded, given.run), loaded.images
    steerer_path = given.segmenter or given.run
    segmenter = open_segmenter(steerer_path, images.classes, loaded)
    judge_path = given.judge or _trained_judge(run_config(steerer_path), given.classifier_steps, output, command)
    judge = open_segmenter(judge_path, images.classes, loaded, "--judge")
    task.unet.requires_grad_(False)
    segmenter.unet.eval().requires_grad_(False)
    places = evenly_spaced_indices(len(images), given.n)
    items = [images[place] for place in places]
    layouts: Tensor = collate(items)["mask"]  # (N, H, W)

    def ask(asked: DiffusionTask, numbers: range) -> tuple[dict[str, Any], None]:
        if not given.tell or asked.conditioner is None:
            return {}, None
        return {"conditions": asked.conditioner.from_batch(collate([items[number] for number in numbers]))}, None

    def samples(options: dict[str, Any] | None) -> tuple[Tensor, float]:
        def steering(numbers: range) -> LossGuidance:
            wished = layouts[numbers.start : numbers.stop]
            loss = layout_loss(lambda x: seen_by(segmenter, x), wished, segmenter.ignore_index)
            return LossGuidance(loss, **(options or {}))

        started = time.perf_counter()
        setting = SamplingConfig(given.steps, given.guidance, given.seed)
        parts = sample_batches(task, len(items), setting, ask, None if options is None else steering)
        drawn, _ = concat_batches(parts)
        return drawn, (time.perf_counter() - started) / len(items)

    def judged(some: Tensor, seconds: float | None) -> Judged:
        masks = list(layouts)
        seen = [layout_consistency(who, some, masks, len(images.classes)) for who in (segmenter, judge)]
        return Judged(some, seen[0]["mean_iou"], seen[1]["mean_iou"], seconds)

    found: dict[str, Judged] = {UNSTEERED: judged(*samples(None))}
    for scale, options in tqdm(settings.items(), desc="scales", unit="scale", disable=None):
        found[scale_name(scale)] = judged(*samples(options))
    real = judged(torch.stack([item["image"] for item in items]), None)
    best = max(found, key=lambda name: found[name].by_judge)
    shown = {UNSTEERED: found[UNSTEERED]}
    if len(found) > 1:
        shown_scale = max((name for name in found if name != UNSTEERED), key=lambda name: found[name].by_judge)
        shown[shown_scale] = found[shown_scale]
    gallery = _gallery(shown, layouts[: given.rows], segmenter, judge, images.palette, output)
    return Record(
        name="steering",
        title="Steered by the segmentation head",
        question="Can the segmentation head lead a denoiser to a layout that it was never trained on?",
        findings=findings(found, real, best, len(items)),
        parts=[_table(found, real), gallery],
        method=[
            f"{len(items)} masks of the validation split, one sample each, {given.steps} steps of DDIM, the same noise "
            "at each scale.",
            f"Steered by {steerer_path}, between {given.interval[0]:g} and {given.interval[1]:g} of the timesteps; the "
            + ("gradient goes through the denoiser." if given.through == "network" else "gradient ends at x_0.")
            + " The scale is the length of what is added, as a share of the predicted noise's.",
            f"Judged by {judge_path} as well, which had no part in it"
            + ("." if given.judge else ": the segmenter's config, trained with another seed."),
            "The denoiser is told "
            + (
                f"what it is trained to be told of those images (guidance {given.guidance:g})."
                if given.tell
                else "nothing."
            ),
            "mIoU of samples is a matter of the layout alone; it says nothing of how real they look.",
        ],
        source=SOURCE,
        command=command,
        seeds=[given.seed],
        dataset_name=data_name(asdict(loaded.config.data)),
        configs={
            "denoiser": to_yaml(loaded.config),
            "segmenter": to_yaml(run_config(steerer_path)),
            "judge": to_yaml(run_config(judge_path)),
        },
        machine=machine.facts(loaded.accelerator),
        minutes=(time.perf_counter() - began) / 60,
    )


def seen_by(segmenter: SegmentationPipeline, images: Tensor) -> Tensor:
    """Logits (B, classes, h, w) of images in [-1, 1] (B, 3, H, W), at the segmenter's own size; differentiable."""
    own, size = (images.shape[-2], images.shape[-1]), segmenter.size
    wanted = own if size is None else fit_longest_side(own, size) if isinstance(size, int) else (size[0], size[1])
    if wanted != own:
        images = F.interpolate(images, size=wanted, mode="bilinear", antialias=True, align_corners=False)
    return segment_whole(segmenter.unet, images)


def scale_name(scale: float) -> str:
    """What the row of a scale is called."""
    return f"scale {scale:g}"


def _steering_of(scale: float, given: argparse.Namespace) -> dict[str, Any]:
    """The options of `LossGuidance`, refused here, before anything is loaded or trained, where they cannot be."""
    options = {"scale": scale, "interval": tuple(given.interval), "backprop_through": given.through}
    try:
        LossGuidance(lambda x: x, **options)
    except UserError as error:
        raise UserError(f"--{error}") from None
    return options


def _trained_judge(config: RunConfig, steps: int | None, output: Path, command: str) -> Path:
    """A segmenter of the same config and another seed, trained where it is missing."""
    changes: dict[str, Any] = {
        "model.heads.diffusion": None,
        "training.init_from": None,
        "training.resume": False,
        "training.overwrite": False,
        "training.seed": config.training.seed + 1,
    }
    if steps is not None:
        changes |= {"training.steps": steps, "training.epochs": None}
    return train("judge", variant(config, "segmentation", output / "judge", changes), command).path


def _table(found: Mapping[str, Judged], real: Judged) -> Table:
    columns = [
        Column("mIoU, segmenter that steers", "higher", "fraction"),
        Column("mIoU, independent segmenter", "higher", "fraction"),
        Column("time an image", "lower", "seconds"),
    ]

    def values(one: Judged) -> list[Value]:
        return [Value(one.by_segmenter), Value(one.by_judge), Value(one.seconds)]

    rows = [*((name, values(one)) for name, one in found.items()), (REAL, values(real))]
    return Table("The wished layouts in the samples", columns, rows, note="Real images: those of the masks.")


def _gallery(
    shown: Mapping[str, Judged],
    layouts: Tensor,
    segmenter: SegmentationPipeline,
    judge: SegmentationPipeline,
    palette: np.ndarray,
    output: Path,
) -> Gallery:
    """A row for each layout: itself, and each sample with what the two segmenters see in it."""
    album = Album(output, "steering")
    columns, seen = ["wished layout"], []
    for name, one in shown.items():
        columns += [name, "as the segmenter sees it", "as the judge sees it"]
        some = one.images[: len(layouts)]
        seen.append(
            [predict_masks(who.unet, some, who.size, BATCH, options=who.inference) for who in (segmenter, judge)]
        )
    rows: list[tuple[str, list[str]]] = []
    masks: list[np.ndarray] = []
    for number, layout in enumerate(layouts):
        wished = as_mask(layout)
        files = [album.add(colorize(wished, palette))]
        masks.append(wished)
        for one, both in zip(shown.values(), seen, strict=True):
            files.append(album.add(one.images[number]))
            for guesses in both:
                files.append(album.add(colorize(guesses[number], palette)))
                masks.append(guesses[number])
        rows.append((f"layout {number + 1}", files))
    note = "The same noise all along a row."
    return Gallery("Before and after", columns, rows, note, legend(segmenter.classes, palette, masks))


def findings(found: Mapping[str, Judged], real: Judged, best: str, n: int) -> list[str]:
    """What came out, as sentences of the figures; `best`: the row that the independent judge likes most."""
    before = found[UNSTEERED]
    pleased = max(found, key=lambda name: found[name].by_segmenter)
    most = found[pleased]
    without = (
        f"Without steering, the mIoU of {n} samples against the wished layouts is {before.by_segmenter:.3f} by the "
        f"steering segmenter and {before.by_judge:.3f} by the independent one; real images have "
        f"{real.by_segmenter:.3f} and {real.by_judge:.3f}."
    )
    if pleased == UNSTEERED:
        return ["No scale raises the steering segmenter's own mIoU: steering failed here.", without]
    gain, confirmed = most.by_segmenter - before.by_segmenter, most.by_judge - before.by_judge
    seen = f"{most.by_judge:.3f} ({confirmed:+.3f})"
    told = [
        f"Steered at {pleased}, the steering segmenter's mIoU against the wished layouts is {most.by_segmenter:.3f} "
        f"({gain:+.3f}). "
        + (
            f"The independent judge sees {confirmed / gain:.0%} of that gain: {seen}."
            if confirmed > 0
            else f"The independent judge does not confirm it: {seen}. Only the steering segmenter sees what was gained."
        ),
        without,
    ]
    if best == UNSTEERED:
        told.append("At no scale does the independent judge see the layouts better than without steering.")
    elif best != pleased:
        chosen = found[best]
        told.append(
            f"The independent judge likes {best} most: {chosen.by_judge:.3f} "
            f"({chosen.by_judge - before.by_judge:+.3f}). It is chosen by these very "
            "samples, which flatters it a little."
        )
    if most.seconds is not None and before.seconds:
        told.append(f"A steered sample takes {most.seconds / before.seconds:.1f} times as long as one that is not.")
    return told
