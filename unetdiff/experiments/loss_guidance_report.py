"""The record of `unetdiff experiment loss_guidance`: table, gallery and findings."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from unetdiff.evaluation.layout_consistency import BATCH
from unetdiff.experiments.gallery import ImageWriter, legend
from unetdiff.reports.record import Column, Gallery, Record, Table, Value
from unetdiff.segmentation.inference import predict_masks
from unetdiff.segmentation.palette import as_mask, colorize
from unetdiff.segmentation.pipeline import SegmentationPipeline

SOURCE = (
    "Dhariwal & Nichol 2021, section 4 (classifier guidance); Bansal et al. 2023 (universal guidance) and Chung et al. "
    "2023 (DPS), with the gradient at the predicted x_0"
)
UNGUIDED, REAL = "no loss guidance", "real images"


@dataclass(frozen=True)
class GuidedSamples:
    """The samples at one scale, or real images, and their mIoU with the layouts."""

    images: Tensor
    """uint8 (N, 3, H, W)."""
    guiding_miou: float
    """By the guiding segmenter."""
    independent_miou: float
    """By the independent segmenter."""
    seconds: float | None
    """Sampling time per image; None for real images."""


def loss_guidance_record(
    results: Mapping[str, GuidedSamples],
    real: GuidedSamples,
    layouts: Tensor,
    segmenter: SegmentationPipeline,
    eval_segmenter: SegmentationPipeline,
    args: argparse.Namespace,
    output: Path,
    *,
    palette: np.ndarray,
    paths: tuple[Path, Path],
    **fields: Any,
) -> Record:
    """The record.

    Args:
        results: by row of the table, `UNGUIDED` first.
        real: the real images of the layouts.
        layouts: target masks (N, H, W).
        segmenter: the guiding segmenter.
        eval_segmenter: the independent segmenter.
        args: the experiment's options.
        output: the record's folder.
        palette: colors of the classes.
        paths: runs of both segmenters.
        fields: the remaining fields of `Record`.
    """
    shown = {UNGUIDED: results[UNGUIDED]}
    guided = {name: one for name, one in results.items() if name != UNGUIDED}
    if guided:
        best = _best(guided)
        shown[best] = guided[best]
    gallery = _gallery(shown, layouts[: args.num_rows], (segmenter, eval_segmenter), palette, output)
    low, high = args.loss_interval
    if args.loss_sees == "xt":
        gradient = "it sees the noisy image at its timestep"
    else:
        end = "through the denoiser" if args.backprop_through == "network" else "to the predicted x_0 only"
        gradient = f"it sees the predicted x_0, with backpropagation {end}"
    condition = f"their own condition (guidance scale {args.guidance_scale:g})" if args.conditional else "no condition"
    return Record(
        name="loss_guidance",
        title="Layout guidance by a segmenter",
        question="Can a segmenter's gradient guide a denoiser to a layout that it was not trained on?",
        findings=findings(results, real, len(layouts)),
        parts=[_table(results, real), gallery],
        method=[
            f"{len(layouts)} masks of the validation split with one sample each, {args.num_inference_steps} DDIM "
            "steps, the same noise at every scale.",
            f"Guiding segmenter: {paths[0]}, applied at timesteps from {low:g} to {high:g} of the schedule; "
            f"{gradient}. The scale is the norm of the added gradient relative to that of the predicted noise.",
            f"Independent segmenter: {paths[1]}"
            + ("." if args.eval_segmenter else ", the guiding segmenter's config trained with another seed."),
            f"The denoiser gets {condition}.",
            "mIoU measures the layout only, not the realism of the samples.",
        ],
        source=SOURCE,
        seeds=[args.seed],
        **fields,
    )


def _best(results: Mapping[str, GuidedSamples]) -> str:
    """The row with the highest mIoU by the independent segmenter."""
    return max(results, key=lambda name: results[name].independent_miou)


def _table(results: Mapping[str, GuidedSamples], real: GuidedSamples) -> Table:
    columns = [
        Column("mIoU, guiding segmenter", "higher", "fraction"),
        Column("mIoU, independent segmenter", "higher", "fraction"),
        Column("time per image", "lower", "seconds"),
    ]

    def values(one: GuidedSamples) -> list[Value]:
        return [Value(one.guiding_miou), Value(one.independent_miou), Value(one.seconds)]

    rows = [*((name, values(one)) for name, one in results.items()), (REAL, values(real))]
    return Table("mIoU with the target layouts", columns, rows, note="Real images: those of the layouts.")


def _gallery(
    results: Mapping[str, GuidedSamples],
    layouts: Tensor,
    segmenters: tuple[SegmentationPipeline, SegmentationPipeline],
    palette: np.ndarray,
    output: Path,
) -> Gallery:
    """A row per layout: the layout, and the samples with their masks by both segmenters."""
    writer = ImageWriter(output, "loss-guidance")
    columns, predictions = ["target layout"], []
    for name, one in results.items():
        columns += [name, "guiding segmenter", "independent segmenter"]
        pixels = one.images[: len(layouts)]
        predictions.append([predict_masks(s.segmenter, pixels, s.size, BATCH, options=s.inference) for s in segmenters])
    rows: list[tuple[str, list[str]]] = []
    masks: list[np.ndarray] = []
    for number, layout in enumerate(layouts):
        masks.append(as_mask(layout))
        files = [writer.add(colorize(masks[-1], palette))]
        for one, by_segmenter in zip(results.values(), predictions, strict=True):
            files.append(writer.add(one.images[number]))
            for mask in by_segmenter:
                masks.append(mask[number])
                files.append(writer.add(colorize(masks[-1], palette)))
        rows.append((f"layout {number + 1}", files))
    note = "The samples of a row start from the same noise."
    entries = legend(segmenters[0].classes, palette, masks)
    return Gallery("Samples without and with loss guidance", columns, rows, note, entries)


def findings(results: Mapping[str, GuidedSamples], real: GuidedSamples, n: int) -> list[str]:
    """The main results as sentences; n: number of samples."""
    unguided = results[UNGUIDED]
    best = _best(results)
    top = max(results, key=lambda name: results[name].guiding_miou)
    guided = results[top]
    baseline = (
        f"Without loss guidance, mIoU of {n} samples with the target layouts: {unguided.guiding_miou:.3f} (guiding "
        f"segmenter), {unguided.independent_miou:.3f} (independent segmenter); real images: {real.guiding_miou:.3f} "
        f"and {real.independent_miou:.3f}."
    )
    if top == UNGUIDED:
        return ["Loss guidance did not improve the guiding segmenter's mIoU at any scale.", baseline]
    gain, confirmed = guided.guiding_miou - unguided.guiding_miou, guided.independent_miou - unguided.independent_miou
    independent = f"{guided.independent_miou:.3f} ({confirmed:+.3f})"
    lines = [
        f"Loss guidance at {top}: mIoU {guided.guiding_miou:.3f} ({gain:+.3f}) by the guiding segmenter, {independent} "
        "by the independent segmenter, "
        + (
            f"which confirms {confirmed / gain:.0%} of the gain."
            if confirmed > 0
            else "which does not confirm the gain."
        ),
        baseline,
    ]
    if best == UNGUIDED:
        lines.append("The independent segmenter's mIoU is not improved at any scale.")
    elif best != top:
        chosen = results[best]
        lines.append(
            f"Highest mIoU by the independent segmenter: {chosen.independent_miou:.3f} "
            f"({chosen.independent_miou - unguided.independent_miou:+.3f}) at {best}; slightly optimistic, as the "
            "scale was selected on the same samples."
        )
    if guided.seconds is not None and unguided.seconds:
        lines.append(f"Sampling with loss guidance takes {guided.seconds / unguided.seconds:.1f}× the time.")
    return lines
