"""The record of `unetdiff experiment pretraining`: curve, table and findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from unetdiff.experiments.runs import (
    exceeds_std,
    format_difference,
    machine_info,
    paired_difference,
    yaml_configs,
)
from unetdiff.reports.record import Chart, Column, Gallery, Line, Record, Table, Value
from unetdiff.reports.record_text import as_text
from unetdiff.reports.runs import Run

MiouByInit = Mapping[str, Mapping[float, Sequence[float]]]
"""mIoU of each seed, by initialization, then by label fraction."""
Counts = Mapping[float, int]
"""Number of labeled images by label fraction."""


def pretraining_record(
    miou: MiouByInit,
    counts: Counts,
    gallery: Gallery,
    runs: Mapping[str, Run],
    *,
    reference: str,
    num_images: int,
    encoder: str | None,
    seeds: list[int],
    probed: Mapping[str, Mapping[int, float]],
    command: str,
    minutes: float,
) -> Record:
    """The record.

    Args:
        miou: results by initialization.
        counts: number of labeled images.
        gallery: masks of the segmenters with the fewest labels.
        runs: all runs by name, the denoisers first, then the segmenters.
        reference: initialization that the others are compared with.
        num_images: images the denoiser was trained on.
        encoder: name of the pretrained encoder; None: there is none.
        seeds: seeds of the segmenters.
        probed: mIoU of the denoiser's best probe by initialization, then by timestep; {} without probes.
        command: the command line.
        minutes: duration of the experiment.
    """
    denoiser = next(iter(runs.values()))
    segmenter = next(run for run in runs.values() if run.task == "segmentation")
    return Record(
        name="pretraining",
        title="Label efficiency of denoising pre-training",
        question="Does initialization from a denoiser improve a segmenter trained with few labels?",
        findings=findings(miou, counts, reference),
        parts=[chart(miou, counts), label_table(miou, counts), gallery],
        method=_method(denoiser, segmenter, num_images, encoder) + _starts(probed),
        source="Brempong et al. 2022, “Denoising Pretraining for Semantic Segmentation”",
        command=command,
        seeds=seeds,
        dataset_name=denoiser.data_name,
        configs=yaml_configs(runs),
        machine=machine_info(list(runs.values())),
        minutes=minutes,
    )


def chart(miou: MiouByInit, counts: Counts) -> Chart:
    """mIoU against the number of labeled images, a line per initialization."""
    lines = [
        Line(
            init,
            [float(counts[fraction]) for fraction in by_fraction],
            [Value.of(seeds) for seeds in by_fraction.values()],
        )
        for init, by_fraction in miou.items()
    ]
    return Chart("mIoU against labeled images", "labeled images", "mIoU", lines, "higher", log_x=True)


def label_table(miou: MiouByInit, counts: Counts) -> Table:
    """A row per initialization, a column per label fraction."""
    columns = [
        Column(f"{100 * fraction:g} %", "higher", "fraction", f"{count:,} image{'s' * (count != 1)}")
        for fraction, count in counts.items()
    ]
    rows = [(init, [Value.of(seeds) for seeds in by_fraction.values()]) for init, by_fraction in miou.items()]
    return Table("mIoU by label fraction", columns, rows)


def findings(miou: MiouByInit, counts: Counts, reference: str) -> list[str]:
    """Each initialization against the reference: a summary, then a sentence per label fraction."""
    lines = []
    for init, by_fraction in miou.items():
        if init == reference:
            continue
        differences = {
            fraction: paired_difference(seeds, miou[reference][fraction]) for fraction, seeds in by_fraction.items()
        }
        lines.append(_summary(init, differences, reference))
        for fraction, difference in differences.items():
            own, other = (as_text(Value.of(values[fraction]), "fraction") for values in (by_fraction, miou[reference]))
            labels = f"{counts[fraction]:,} labeled image{'s' * (counts[fraction] != 1)} ({100 * fraction:g} %)"
            lines.append(f"{labels}: mIoU {own} ({init}), {other} ({reference}); {format_difference(difference)}.")
    return lines


def _summary(init: str, differences: Mapping[float, Value], reference: str) -> str:
    distinct = {fraction: one for fraction, one in differences.items() if exceeds_std(one)}
    higher = [fraction for fraction, one in distinct.items() if (one.mean or 0) > 0]
    lower = [fraction for fraction, one in distinct.items() if (one.mean or 0) < 0]
    unclear = [fraction for fraction in differences if fraction not in distinct]

    def labels(fractions: Sequence[float]) -> str:
        return f"{', '.join(f'{100 * fraction:g} %' for fraction in fractions)} of the labels"

    parts = [f"higher mIoU at {labels(higher)}"] if higher else []
    parts += [f"lower mIoU at {labels(lower)}"] if lower else []
    parts += [f"a difference within one std at {labels(unclear)}"] if unclear else []
    single = "" if any(one.spread is not None for one in differences.values()) else " (1 seed: may be due to chance)"
    return f"{init} compared with {reference}: {'; '.join(parts)}{single}."


def _method(denoiser: Run, segmenter: Run, num_images: int, encoder: str | None) -> list[str]:
    pretraining, training = denoiser.config["training"], segmenter.config["training"]
    diffusion = denoiser.config["diffusion"]
    lines = [
        f"Denoiser: {pretraining['steps']} steps with batch size {pretraining['batch_size']} on all {num_images:,} "
        f"training images, without labels, unconditional ({diffusion['prediction_type']} prediction, "
        f"{diffusion['weighting']} loss weighting). It is trained once, so ± does not include the variance of "
        "pre-training.",
        f"Segmenters: {training['steps']} steps with batch size {training['batch_size']} at every label fraction, so a "
        "smaller subset is seen more often. The warm-up is at most three epochs, hence shorter for smaller subsets.",
        "A seed determines the new weights, the image order and the subset of the images; all initializations share "
        "the subset of a seed. Subsets are nested. Differences are paired by seed, and called higher or lower if they "
        "exceed their standard deviation over seeds.",
        _validations(segmenter),
        "Unlike the paper, whose denoiser is trained at one noise level and at its best pre-trains only the decoder on "
        "top of an ImageNet encoder, the whole network is pre-trained at all noise levels.",
        f"Pre-training took {float(denoiser.summary['train_minutes']):.1f} minutes, which the other initializations do "
        "not need.",
    ]
    if encoder is not None:
        lines.append(
            f"The network with the ImageNet encoder ({encoder}) differs in architecture, size and optimizer settings, "
            "and was pretrained on over a million labeled images: a point of reference, not a like-for-like comparison."
        )
    return lines


def _validations(segmenter: Run) -> str:
    count = len(segmenter.validation)
    if count <= 1:
        return "mIoU is that of the last validation on the whole validation split, not of the best one."
    return (
        f"mIoU is the best of {count} validations on the whole validation split, evenly spaced: a segmenter with few "
        "labels overfits before its last step. The maximum favors all initializations alike."
    )


def _starts(probed: Mapping[str, Mapping[int, float]]) -> list[str]:
    """What the probes found, a line per denoiser."""
    lines = []
    for init, by_timestep in probed.items():
        best = max(by_timestep, key=lambda timestep: by_timestep[timestep])
        found = ", ".join(f"{miou:.3f} at t = {timestep}" for timestep, miou in by_timestep.items())
        lines.append(
            f"Segmenters with {init} receive timestep {best}: linear probes of the denoiser's maps of clean images, "
            f"trained on half of the fewest labeled images and chosen on the other half, have mIoU {found}."
        )
    return lines
