"""The tables, curves and sentences of `unetdiff experiment budget`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from unetdiff.experiments.consistency import Judged
from unetdiff.experiments.runs import curve, difference, difference_words, last, over_runs
from unetdiff.reports.record import Chart, Column, Table, Value
from unetdiff.reports.record_text import as_text
from unetdiff.reports.runs import Run

JOINT = "joint"
Ways = Mapping[str, Sequence[Run]]
"""Runs of each kind, one a seed, by their name on the page."""
Judgements = Mapping[str, Judged | None]
"""By the run's name."""

SEGMENTATION = (
    ("segmentation/mean_iou", Column("mIoU", "higher", "fraction")),
    ("segmentation/pixel_accuracy", Column("pixel accuracy", "higher", "fraction")),
    ("segmentation/mean_accuracy", Column("mean accuracy", "higher", "fraction", "mean over classes")),
    ("segmentation/fw_iou", Column("FWIoU", "higher", "fraction", "IoU weighted by the classes' pixels")),
)
DIFFUSION = (
    ("diffusion/loss", Column("loss", "lower", "number")),
    *(
        (f"diffusion/loss_q{quarter}", Column(f"quarter {quarter + 1}", "lower", "number", note))
        for quarter, note in enumerate(("least noise", "", "", "most noise"))
    ),
)
CONSISTENCY = Column("class consistency", "higher", "percent", "by an independent classifier")
MEGABYTE = 1e6


def of_head(ways: Ways, head: str) -> dict[str, Sequence[Run]]:
    """The kinds of run that trained a head."""
    return {name: runs for name, runs in ways.items() if head in runs[0].heads}


def head_tables(ways: Ways, judged: Judgements) -> list[Table]:
    """Every metric of each head, a row a kind."""
    masks = [
        (name, [over_runs(runs, _reader(key)) for key, _ in SEGMENTATION])
        for name, runs in of_head(ways, "segmentation").items()
    ]
    noise = []
    some = any(judgement is not None for judgement in judged.values())
    for name, runs in of_head(ways, "diffusion").items():
        values = [over_runs(runs, _reader(key)) for key, _ in DIFFUSION]
        noise.append((name, [*values, over_runs(runs, _consistency(judged))] if some else values))
    columns = [column for _, column in DIFFUSION] + ([CONSISTENCY] if some else [])
    return [
        Table("The segmentation head", [column for _, column in SEGMENTATION], masks, "On validation images."),
        Table("The diffusion head", columns, noise, "Validation loss, in all and by quarter of the timesteps."),
    ]


def cost_table(ways: Ways) -> Table:
    """Time, speed, memory and weights; both networks alone together, beside the joint ones."""
    columns = [
        Column("training", unit="minutes"),
        Column("images a second", unit="number"),
        Column("peak memory", unit="megabytes"),
        Column("shared weights", unit="count", note="encoder, middle, decoder, conditioning"),
        Column("segmentation head", unit="count", note="its own weights"),
        Column("diffusion head", unit="count", note="its own weights"),
    ]
    measured: list[Callable[[Run], float]] = [
        _summary("train_minutes"),
        _summary("images_per_second"),
        lambda run: _summary("peak_memory")(run) / MEGABYTE,
    ]
    counted: list[Callable[[Run], float]] = [  # the same for every seed
        lambda run: _number(run.shared_parameters),
        lambda run: _number(run.head_parameters("segmentation")),
        lambda run: _number(run.head_parameters("diffusion")),
    ]
    rows = [
        (name, [over_runs(runs, read) for read in measured] + [over_runs(runs[:1], read) for read in counted])
        for name, runs in ways.items()
    ]
    alone = [runs for runs in ways.values() if runs[0].task != JOINT]
    if len(alone) == 2:
        pairs = list(zip(*alone, strict=True))
        minutes = Value.of([sum(measured[0](run) for run in pair) for pair in pairs])
        backbones = Value(sum(_number(runs[0].shared_parameters) for runs in alone))
        heads = [over_runs(of_head(ways, head)[f"{head} alone"][:1], counted[1 + i]) for i, head in enumerate(HEADS)]
        rows.append(("both alone, together", [minutes, Value(None), Value(None), backbones, *heads]))
    return Table("What it costs", columns, rows, "Heads that a run does not train are left out.")


HEADS = ("segmentation", "diffusion")


def charts(ways: Ways) -> list[Chart]:
    """Learning curves of each head's main figure, against images seen and against minutes."""
    shown = (
        ("segmentation", "segmentation/mean_iou", "mIoU", "higher", False),
        ("diffusion", "diffusion/loss", "validation loss of the noise", "lower", True),
    )
    found = []
    for head, key, title, better, log in shown:
        for across, label in (("images", "images seen"), ("train_minutes", "minutes of training")):
            lines = [curve(runs, name, key, across) for name, runs in of_head(ways, head).items()]
            found.append(Chart(f"{title} against {label}", label, title, lines, better, log_y=log))  # type: ignore[arg-type]
    return found


def findings(ways: Ways, judged: Judgements) -> list[str]:
    """What a joint run gains or loses on each head against that head alone, and what it costs."""
    told = []
    figures = (
        ("segmentation", "mIoU", _reader("segmentation/mean_iou"), "fraction"),
        ("diffusion", "validation loss of the noise", _reader("diffusion/loss"), "number"),
        ("diffusion", "class consistency", _consistency(judged), "fraction"),
    )
    for name, runs in ways.items():
        if runs[0].task != JOINT:
            continue
        gaps = []
        for head, figure, read, unit in figures:
            alone = of_head(ways, head).get(f"{head} alone")
            if alone is None or over_runs(alone, read).mean is None:
                continue
            ours, theirs = [read(run) for run in runs], [read(run) for run in alone]
            gap = difference(ours, theirs)
            verdict = _verdict(gap, lower_is_better=head == "diffusion" and figure != "class consistency")
            gaps.append(
                f"{figure} {as_text(Value.of(ours), unit)}, {as_text(Value.of(theirs), unit)} for {head} alone "  # type: ignore[arg-type]
                f"({verdict}{difference_words(gap, 4 if unit == 'number' else 3)})"
            )
        if gaps:
            told.append(f"{name}: {'; '.join(gaps)}.")
        told.append(_cost(name, runs, ways))
    return told


def _verdict(gap: Value, lower_is_better: bool) -> str:
    if not gap.mean:
        return ""
    return ("a gain, " if (gap.mean < 0) == lower_is_better else "a loss, ") if _beyond(gap) else ""


def _beyond(gap: Value) -> bool:
    return gap.mean is not None and (gap.spread is None or abs(gap.mean) > gap.spread)


def _cost(name: str, runs: Sequence[Run], ways: Ways) -> str:
    minutes = _summary("train_minutes")
    mine = over_runs(runs, minutes)
    both = [over_runs(ways[f"{head} alone"], minutes).mean or math.nan for head in HEADS]
    shared, total = _number(runs[0].shared_parameters), sum(runs[0].parameters.values())
    return (
        f"{name} trained in {as_text(mine, 'minutes')}, the two alone in {both[0]:.1f} + {both[1]:.1f} min; it has one "
        f"backbone of {shared:,.0f} weights ({shared / max(1, total):.1%} of it), they have one each."
    )


def _reader(key: str) -> Callable[[Run], float]:
    return lambda run: last(run, key)


def _consistency(judged: Judgements) -> Callable[[Run], float]:
    def read(run: Run) -> float:
        judgement = judged.get(run.name)
        return math.nan if judgement is None else judgement.value

    return read


def _summary(key: str) -> Callable[[Run], float]:
    return lambda run: _number(run.summary.get(key))


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
