"""The page's summary: a number and one sentence for each thing that a person would ask first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unetdiff.reports.dataset_groups import dataset_key, size_key
from unetdiff.reports.runs import Run
from unetdiff.reports.samples import SampleBlock
from unetdiff.reports.table import Table, compact, minutes, percent, share

ALIKE = 0.01
"""Difference of mIoU that one seed does not tell from none."""


@dataclass(frozen=True)
class Finding:
    """One card."""

    figure: str
    what: str
    sentence: str
    accent: str
    """CSS variable of its colour."""


def findings(runs: Sequence[Run], table: Table, samples: Sequence[SampleBlock]) -> list[Finding]:
    """What the figures say, in the order of the page; only what the runs can answer."""
    judged = [block for block in samples if block.scores]
    render_axes = [_diffusion(runs, block, several=len(judged) > 1) for block in judged]
    found = [_shared(runs), _segmentation(runs, table), *render_axes, _time(runs, table)]
    return [finding for finding in found if finding is not None]


def _shared(runs: Sequence[Run]) -> Finding | None:
    known = [run for run in runs if run.shared_parameters]
    if not known:
        return None
    run = max(known, key=lambda run: len(run.heads))
    backbone = run.shared_parameters or 0
    own = {head: run.head_parameters(head) or 0 for head in run.heads}
    if len(own) == 2:
        total = backbone + sum(own.values())
        sentence = (
            f"Of the {compact(total)} weights of “{run.name}”, {compact(backbone)} serve both heads; labelling pixels "
            f"takes {compact(own['segmentation'])} of its own and predicting noise {compact(own['diffusion'])}."
        )
        return Finding(percent(backbone / total), "of the weights are shared by both heads", sentence, "--run-2")
    head, count = next(iter(own.items()))
    sentence = f"“{run.name}” is a backbone of {compact(backbone)} weights and a {head} head of {compact(count)}."
    return Finding(compact(backbone + count), "weights in the network", sentence, "--run-2")


def _segmentation(runs: Sequence[Run], table: Table) -> Finding | None:
    row = table.row("segmentation.mean_iou")
    if row is None:
        return None
    have = [(i, value) for i, value in enumerate(row.values) if value.number is not None]
    top, value = max(have, key=lambda pair: pair[1].number or 0.0)
    accuracy = table.row("segmentation.pixel_accuracy")
    right = accuracy.values[top].number if accuracy else None
    pixels = f" and labels {percent(right)} of the pixels rightly" if right is not None else ""
    sentence = f"“{runs[top].name}” reaches {value.text}{pixels}."
    joint, alone = _pair(runs, [i for i, _ in have], "segmentation")
    if joint is not None and alone is not None:
        together, apart = row.values[joint].number or 0.0, row.values[alone].number or 0.0
        gap = together - apart
        size = f"{100 * abs(gap):.1f} points"
        if abs(gap) < ALIKE:
            verdict = f"{size} apart, too little to tell from none with one seed"
        elif gap > 0:
            verdict = f"{size} more when the network is shared with the denoiser"
        else:
            verdict = f"{size} less when the network is shared with the denoiser"
        sentence = f"Jointly {share(together)}, alone {share(apart)}: {verdict}."
    elif len(have) > 1:
        low = min(have, key=lambda pair: pair[1].number or 0.0)
        gap = (value.number or 0.0) - (low[1].number or 0.0)
        if not any(cell.best for cell in row.values) and low[1].text != value.text:
            sentence += " The runs saw different images; their figures do not compare."
        else:
            sentence += f" “{runs[low[0]].name}” is the last with {low[1].text}, {100 * gap:.1f} points behind."
    return Finding(value.text, "best mIoU on images never trained on", sentence, "--seg")


def _diffusion(runs: Sequence[Run], block: SampleBlock, several: bool) -> Finding:
    """The best of the runs that one judge has seen; several: there are other judges, of other sets or sizes."""
    scores, judge = block.scores, block.judge
    top = max(scores, key=lambda index: scores[index].value)
    best = scores[top]
    known = f" The judge itself names {percent(judge.accuracy)} of {judge.n} real images rightly." if judge else ""
    sentence = f"“{runs[top].name}”, {best.n} samples: {percent(best.low)} to {percent(best.high)} with 95 % certainty."
    joint, alone = _pair(runs, list(scores), "diffusion")
    if joint is not None and alone is not None:
        a, b = scores[joint], scores[alone]
        overlap = a.low <= b.high and b.low <= a.high
        verdict = "within the chance of the draw" if overlap else "more than chance"
        sentence = f"Jointly {percent(a.value)}, alone {percent(b.value)} of {a.n} samples each: {verdict}."
    what = "of the samples show the class that was asked for" + (f" ({block.dataset_name})" if several else "")
    return Finding(percent(best.value), what, sentence + known, "--c3")


def _time(runs: Sequence[Run], table: Table) -> Finding | None:
    row = table.row("minutes")
    if row is None:
        return None
    times = {i: value.number for i, value in enumerate(row.values) if value.number is not None}
    for joint in (i for i in times if len(runs[i].heads) == 2):
        same = [i for i in times if size_key(runs[i]) == size_key(runs[joint])]
        segmenter = next((i for i in same if runs[i].heads == ["segmentation"]), None)
        denoiser = next((i for i in same if runs[i].heads == ["diffusion"]), None)
        if segmenter is None or denoiser is None:
            continue
        sentence = (
            f"One network for both tasks took {minutes(times[joint])}; the two apart took "
            f"{minutes(times[segmenter])} and {minutes(times[denoiser])}, together "
            f"{minutes(times[segmenter] + times[denoiser])}."
        )
        return Finding(minutes(times[joint]), "to train both heads at once", sentence, "--c1")
    total = sum(times.values())
    many = f"{len(times)} runs" if len(times) > 1 else f"“{runs[next(iter(times))].name}”"
    sentence = f"Training time of {many} on {runs[next(iter(times))].summary.get('device', 'this machine')}."
    return Finding(minutes(total), "of training" + (" in all" if len(times) > 1 else ""), sentence, "--c1")


def _pair(runs: Sequence[Run], indices: Sequence[int], head: str) -> tuple[int | None, int | None]:
    """The one joint run and the one run of `head` alone, both finished and on one set; else None."""
    joint = [i for i in indices if len(runs[i].heads) == 2]
    alone = [i for i in indices if runs[i].heads == [head]]
    if len(joint) != 1 or len(alone) != 1 or dataset_key(runs[joint[0]]) != dataset_key(runs[alone[0]]):
        return None, None
    if not (runs[joint[0]].finished and runs[alone[0]].finished):
        return None, None
    return joint[0], alone[0]
