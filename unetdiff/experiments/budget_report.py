"""The record of `unetdiff experiment budget`: tables, learning curves and findings."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence

from unetdiff.experiments.class_consistency import ClassConsistency
from unetdiff.experiments.gradients import cosine_stats, gradient_chart, gradient_findings, gradient_table
from unetdiff.experiments.runs import (
    aggregate,
    exceeds_std,
    format_difference,
    last_metric,
    machine_info,
    metric_curve,
    paired_difference,
    yaml_configs,
)
from unetdiff.reports.record import Chart, Column, Record, Table, Value
from unetdiff.reports.record_text import as_text
from unetdiff.reports.runs import Run

JOINT = "joint"
HEADS = ("segmentation", "diffusion")
RunsByMethod = Mapping[str, Sequence[Run]]
"""Runs of each training method, one per seed, by the method's name in the report."""
ConsistencyByRun = Mapping[str, ClassConsistency | None]
"""By the run's name."""

SEGMENTATION = (
    ("segmentation/mean_iou", Column("mIoU", "higher", "fraction")),
    ("segmentation/pixel_accuracy", Column("pixel accuracy", "higher", "fraction")),
    ("segmentation/mean_accuracy", Column("mean accuracy", "higher", "fraction", "mean over classes")),
    ("segmentation/fw_iou", Column("FWIoU", "higher", "fraction", "frequency-weighted IoU")),
)
DIFFUSION = (
    ("diffusion/loss", Column("loss", "lower", "number")),
    *(
        (f"diffusion/loss_q{quartile}", Column(f"timestep quartile {quartile + 1}", "lower", "number", note))
        for quartile, note in enumerate(("lowest noise", "", "", "highest noise"))
    ),
)
CONSISTENCY = Column("class consistency", "higher", "percent", "accuracy of an independent classifier on the samples")
MEGABYTE = 1e6


def budget_record(
    runs: RunsByMethod, consistency: ConsistencyByRun, args: argparse.Namespace, command: str, minutes: float
) -> Record:
    """The record."""
    joint = {name: seeds for name, seeds in runs.items() if seeds[0].task == JOINT}
    stats = cosine_stats(joint)
    gradients = [gradient_table(stats)] if any(stats.values()) else []
    trained = {one.name: one for seeds in runs.values() for one in seeds}
    first = next(iter(trained.values()))
    return Record(
        name="budget",
        title="Joint versus separate training at equal optimizer steps",
        question="Does training both heads on one backbone help or hurt either head, at equal optimizer steps?",
        findings=[*findings(runs, consistency), *gradient_findings(stats)],
        parts=[
            *head_tables(runs, consistency),
            cost_table(runs),
            *charts(runs),
            *gradients,
            *(gradient_chart(name, seeds, args.num_validations) for name, seeds in joint.items() if stats[name]),
        ],
        method=_method(first, runs, consistency, args.num_inference_steps),
        source="Loss weights: Kendall et al. 2018; Chen et al. 2018. Gradient cosine: Yu et al. 2020, definition 1.",
        command=command,
        seeds=[int(one.config["training"]["seed"]) for one in next(iter(runs.values()))],
        dataset_name=first.data_name,
        configs=yaml_configs(trained),
        machine=machine_info(list(trained.values())),
        minutes=minutes,
    )


def with_head(runs: RunsByMethod, head: str) -> dict[str, Sequence[Run]]:
    """The methods that train a head."""
    return {name: seeds for name, seeds in runs.items() if head in seeds[0].heads}


def head_tables(runs: RunsByMethod, consistency: ConsistencyByRun) -> list[Table]:
    """All metrics of each head, a row per method."""
    segmentation = [
        (name, [aggregate(seeds, _metric(key)) for key, _ in SEGMENTATION])
        for name, seeds in with_head(runs, "segmentation").items()
    ]
    diffusion = []
    has_consistency = any(one is not None for one in consistency.values())
    for name, seeds in with_head(runs, "diffusion").items():
        values = [aggregate(seeds, _metric(key)) for key, _ in DIFFUSION]
        diffusion.append((name, [*values, aggregate(seeds, _consistency(consistency))] if has_consistency else values))
    columns = [column for _, column in DIFFUSION] + ([CONSISTENCY] if has_consistency else [])
    return [
        Table("Segmentation head", [column for _, column in SEGMENTATION], segmentation, "On the validation images."),
        Table("Diffusion head", columns, diffusion, "Validation loss, overall and by timestep quartile."),
    ]


def cost_table(runs: RunsByMethod) -> Table:
    """Training time, throughput, memory and parameters; a last row sums up both separate networks."""
    columns = [
        Column("training", unit="minutes"),
        Column("images/s", unit="number"),
        Column("peak memory", unit="megabytes"),
        Column("shared parameters", unit="count", note="encoder, mid block, decoder, conditioning"),
        Column("segmentation head", unit="count", note="parameters"),
        Column("diffusion head", unit="count", note="parameters"),
    ]
    per_seed: list[Callable[[Run], float]] = [
        _summary("train_minutes"),
        _summary("images_per_second"),
        lambda run: _summary("peak_memory")(run) / MEGABYTE,
    ]
    constant: list[Callable[[Run], float]] = [  # the same for every seed
        lambda run: _number(run.shared_parameters),
        lambda run: _number(run.head_parameters("segmentation")),
        lambda run: _number(run.head_parameters("diffusion")),
    ]
    rows = [
        (name, [aggregate(seeds, get) for get in per_seed] + [aggregate(seeds[:1], get) for get in constant])
        for name, seeds in runs.items()
    ]
    separate = [seeds for seeds in runs.values() if seeds[0].task != JOINT]
    if len(separate) == 2:
        pairs = list(zip(*separate, strict=True))
        minutes = Value.of([sum(per_seed[0](run) for run in pair) for pair in pairs])
        backbones = Value(sum(_number(seeds[0].shared_parameters) for seeds in separate))
        heads = [aggregate(runs[f"{head} only"][:1], constant[1 + index]) for index, head in enumerate(HEADS)]
        rows.append(("both separate networks", [minutes, Value(None), Value(None), backbones, *heads]))
    return Table("Training cost", columns, rows, "Heads that a run does not train are not counted.")


def charts(runs: RunsByMethod) -> list[Chart]:
    """Learning curves of each head's main metric, against images seen and against training time."""
    metrics = (
        ("segmentation", "segmentation/mean_iou", "mIoU", "higher", False),
        ("diffusion", "diffusion/loss", "Diffusion validation loss", "lower", True),
    )
    charts = []
    for head, key, title, better, log in metrics:
        for x_key, label in (("images", "images seen"), ("train_minutes", "minutes of training")):
            lines = [metric_curve(seeds, name, key, x_key) for name, seeds in with_head(runs, head).items()]
            charts.append(Chart(f"{title} against {label}", label, title, lines, better, log_y=log))  # type: ignore[arg-type]
    return charts


def findings(runs: RunsByMethod, consistency: ConsistencyByRun) -> list[str]:
    """Metrics and cost of each joint method against separate training."""
    lines = []
    metrics = (
        ("segmentation", "mIoU", _metric("segmentation/mean_iou"), "fraction", True),
        ("diffusion", "diffusion validation loss", _metric("diffusion/loss"), "number", False),
        ("diffusion", "class consistency", _consistency(consistency), "fraction", True),
    )
    for name, seeds in runs.items():
        if seeds[0].task != JOINT:
            continue
        comparisons = []
        for head, title, metric, unit, higher_is_better in metrics:
            reference = with_head(runs, head).get(f"{head} only")
            if reference is None or aggregate(reference, metric).mean is None:
                continue
            values, reference_values = [metric(run) for run in seeds], [metric(run) for run in reference]
            difference = paired_difference(values, reference_values)
            comparisons.append(
                f"{title} {as_text(Value.of(values), unit)} against {as_text(Value.of(reference_values), unit)} with "  # type: ignore[arg-type]
                f"{head} only ({_verdict(difference, higher_is_better)}: "
                f"{format_difference(difference, 4 if unit == 'number' else 3)})"
            )
        if comparisons:
            lines.append(f"{name}: {'; '.join(comparisons)}.")
        lines.append(_cost(name, seeds, runs))
    return lines


def _verdict(difference: Value, higher_is_better: bool) -> str:
    if difference.mean is None or not exceeds_std(difference):
        return "within one std"
    return "better" if (difference.mean > 0) == higher_is_better else "worse"


def _cost(name: str, seeds: Sequence[Run], runs: RunsByMethod) -> str:
    minutes = _summary("train_minutes")
    separate = [aggregate(runs[f"{head} only"], minutes).mean or math.nan for head in HEADS]
    shared, total = _number(seeds[0].shared_parameters), sum(seeds[0].parameters.values())
    return (
        f"{name}: {as_text(aggregate(seeds, minutes), 'minutes')} of training, against {separate[0]:.1f} + "
        f"{separate[1]:.1f} min for separate networks; {shared:,.0f} parameters ({shared / max(1, total):.1%}) are "
        "shared by both heads."
    )


def _metric(key: str) -> Callable[[Run], float]:
    return lambda run: last_metric(run, key)


def _consistency(consistency: ConsistencyByRun) -> Callable[[Run], float]:
    def metric(run: Run) -> float:
        one = consistency.get(run.name)
        return math.nan if one is None else one.value

    return metric


def _summary(key: str) -> Callable[[Run], float]:
    return lambda run: _number(run.summary.get(key))


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _method(first: Run, runs: RunsByMethod, consistency: ConsistencyByRun, num_inference_steps: int) -> list[str]:
    training, fraction = first.config["training"], first.config["joint"]["segmentation_fraction"]
    lines = [
        f"All runs: {training['steps']} optimizer steps with batch size {training['batch_size']}, one learning rate, "
        "one backbone; runs of one seed see the images in the same order. A joint step passes clean and noised images "
        "through the backbone and takes longer.",
        "Metrics are those of the last validation (EMA weights), not of the best one.",
        "Training time excludes validation and sampling.",
        "Peak memory on a CPU is that of the whole process, including what earlier runs of the same call left in it.",
        "Cosines are computed from the gradients of one batch; their noise biases cosines towards zero, so the sign is "
        "more informative than the magnitude. A mean is significant beyond two standard errors, with steps taken as "
        "independent.",
        "A difference is called better or worse if it exceeds the standard deviation of the paired differences over "
        "seeds; with one seed, any difference may be due to chance.",
    ]
    if fraction < 1:
        lines.insert(1, f"The segmentation head of a joint run is trained on {fraction:.0%} of each batch.")
    weights = {
        name: tuple(seeds[0].config["joint"][f"{head}_weight"] for head in HEADS)
        for name, seeds in runs.items()
        if seeds[0].task == JOINT
    }
    lines += [f"{name}: loss weights {a:g} (segmentation) and {b:g} (diffusion)." for name, (a, b) in weights.items()]
    one = next((one for one in consistency.values() if one is not None), None)
    if one is not None:
        lines.append(
            f"Class consistency: accuracy of an independent classifier on {one.num_samples} class-conditional samples "
            f"({num_inference_steps} denoising steps). Its accuracy on real validation images: {one.real_accuracy:.1%}."
        )
    return lines
