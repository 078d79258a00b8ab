"""The summary at the top of the page: cards with one metric and one sentence each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unetdiff.reports.dataset_groups import dataset_key, size_key
from unetdiff.reports.runs import Run
from unetdiff.reports.samples import SampleBlock
from unetdiff.reports.table import Table, compact, fraction, minutes, percent

MIN_DIFFERENCE = 0.01
"""A smaller difference of mIoU is within the variation between seeds."""


@dataclass(frozen=True)
class Finding:
    """One card."""

    metric: str
    label: str
    sentence: str
    accent: str
    """CSS variable of its color."""


def findings(runs: Sequence[Run], table: Table, samples: Sequence[SampleBlock]) -> list[Finding]:
    """The cards, in the order of the page; those that the runs have no data for are left out."""
    scored = [block for block in samples if block.scores]
    consistency = [_diffusion(runs, block, several=len(scored) > 1) for block in scored]
    cards = [_shared(runs), _segmentation(runs, table), *consistency, _time(runs, table)]
    return [card for card in cards if card is not None]


def _shared(runs: Sequence[Run]) -> Finding | None:
    known = [run for run in runs if run.shared_parameters and run.heads]
    if not known:
        return None
    run = max(known, key=lambda run: len(run.heads))
    backbone = run.shared_parameters or 0
    own = {head: run.head_parameters(head) or 0 for head in run.heads}
    if len(own) == 2:
        total = backbone + sum(own.values())
        sentence = (
            f"“{run.name}” has {compact(total)} parameters: {compact(backbone)} in the shared backbone, "
            f"{compact(own['segmentation'])} in the segmentation head "
            f"and {compact(own['diffusion'])} in the diffusion head."
        )
        return Finding(percent(backbone / total), "of the parameters are shared by both heads", sentence, "--run-2")
    head, count = next(iter(own.items()))
    sentence = f"“{run.name}”: {compact(backbone)} in the backbone, {compact(count)} in the {head} head."
    return Finding(compact(backbone + count), "parameters", sentence, "--run-2")


def _segmentation(runs: Sequence[Run], table: Table) -> Finding | None:
    row = table.row("segmentation.mean_iou")
    if row is None:
        return None
    have = [(i, value) for i, value in enumerate(row.values) if value.number is not None]
    top, value = max(have, key=lambda pair: pair[1].number or 0.0)
    accuracy = table.row("segmentation.pixel_accuracy")
    pixel_accuracy = accuracy.values[top].number if accuracy else None
    sentence = f"“{runs[top].name}”"
    sentence += f", with a pixel accuracy of {percent(pixel_accuracy)}." if pixel_accuracy is not None else "."
    joint, alone = _pair(runs, [i for i, _ in have], "segmentation")
    if joint is not None and alone is not None:
        together, apart = row.values[joint].number or 0.0, row.values[alone].number or 0.0
        gap = together - apart
        size = f"{100 * abs(gap):.1f} points"
        if abs(gap) < MIN_DIFFERENCE:
            verdict = f"a difference of {size}, too small to be conclusive with one seed"
        elif gap > 0:
            verdict = f"the joint run is {size} higher"
        else:
            verdict = f"the joint run is {size} lower"
        sentence = f"Joint training {fraction(together)}, segmentation alone {fraction(apart)}: {verdict}."
    elif len(have) > 1:
        low = min(have, key=lambda pair: pair[1].number or 0.0)
        gap = (value.number or 0.0) - (low[1].number or 0.0)
        if not any(cell.best for cell in row.values) and low[1].text != value.text:
            sentence += " The runs were evaluated on different images, so their mIoU is not comparable."
        else:
            sentence += f" Lowest: “{runs[low[0]].name}” with {low[1].text}, {100 * gap:.1f} points lower."
    return Finding(value.text, "best validation mIoU", sentence, "--seg")


def _diffusion(runs: Sequence[Run], block: SampleBlock, several: bool) -> Finding:
    """The best class consistency of one block; several: there are blocks of other datasets or sizes."""
    scores, classifier = block.scores, block.classifier
    top = max(scores, key=lambda index: scores[index].value)
    best = scores[top]
    real = f" Classifier accuracy on {classifier.n} real images: {percent(classifier.accuracy)}." if classifier else ""
    interval = f"95 % interval {100 * best.low:.1f} to {percent(best.high)}"
    sentence = f"“{runs[top].name}”, {best.n} samples, {interval}."
    joint, alone = _pair(runs, list(scores), "diffusion")
    if joint is not None and alone is not None:
        a, b = scores[joint], scores[alone]
        overlap = a.low <= b.high and b.low <= a.high
        verdict = "overlap" if overlap else "do not overlap"
        sentence = (
            f"Joint training {percent(a.value)}, diffusion alone {percent(b.value)} ({a.n} samples each); "
            f"the 95 % intervals {verdict}."
        )
    label = "best class consistency of the samples" + (f" ({block.dataset_name})" if several else "")
    return Finding(percent(best.value), label, sentence + real, "--c3")


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
        separate = times[segmenter] + times[denoiser]
        sentence = (
            f"Separate training took {minutes(times[segmenter])} (segmentation) and {minutes(times[denoiser])} "
            f"(diffusion), {minutes(separate)} in total"
        )
        sentence += f": the joint run took {times[joint] / separate:.2f} times that." if separate > 0 else "."
        return Finding(minutes(times[joint]), "of joint training for both heads", sentence, "--c1")
    total = sum(times.values())
    many = f"{len(times)} runs" if len(times) > 1 else f"“{runs[next(iter(times))].name}”"
    sentence = f"Training time of {many} on {runs[next(iter(times))].summary.get('device', 'this machine')}."
    return Finding(minutes(total), "of training" + (" in total" if len(times) > 1 else ""), sentence, "--c1")


def _pair(runs: Sequence[Run], indices: Sequence[int], head: str) -> tuple[int | None, int | None]:
    """The one joint run and the one run of `head` alone, if both are finished and share a dataset; else None."""
    joint = [i for i in indices if len(runs[i].heads) == 2]
    alone = [i for i in indices if runs[i].heads == [head]]
    if len(joint) != 1 or len(alone) != 1 or dataset_key(runs[joint[0]]) != dataset_key(runs[alone[0]]):
        return None, None
    if not (runs[joint[0]].finished and runs[alone[0]].finished):
        return None, None
    return joint[0], alone[0]
