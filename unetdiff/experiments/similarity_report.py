"""The record of the similarity of networks: maps of layers, the diagonal over layers, and what was found."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from unetdiff.experiments.features import Moment, called
from unetdiff.reports.record import Chart, Column, Heatmap, Line, Part, Record, Table, Value

Matrix = list[list[float | None]]


@dataclass(frozen=True)
class Compared:
    """CKA of every two layers of some networks, and of each one's random twin, as it is kept."""

    names: list[str]
    noised: list[bool]
    """Whether each network is shown noised images."""
    blocks: list[list[str]]
    """Each network's layers; its twin has the same."""
    moments: list[Moment]
    tables: list[Matrix]
    """One for each moment, over the layers of all networks, then of all twins."""
    images: int
    batch_size: int

    def between(self, moment: int, one: int, other: int) -> Matrix:
        """Layers of one network by layers of another, at the moment of that index; twins come after all networks."""
        sizes = [len(blocks) for blocks in self.blocks] * 2
        starts = [sum(sizes[:index]) for index in range(len(sizes))]
        rows = self.tables[moment][starts[one] : starts[one] + sizes[one]]
        return [row[starts[other] : starts[other] + sizes[other]] for row in rows]

    def shared(self, one: int, other: int) -> list[str]:
        """Layers that both have, in order."""
        return [block for block in self.blocks[one] if block in self.blocks[other]]

    def diagonal(self, moment: int, one: int, other: int) -> list[float]:
        """CKA of the same layer of both, NaN where there is none."""
        n = len(self.names)
        table = self.between(moment, one, other)
        a, b = self.blocks[one % n], self.blocks[other % n]
        return [_number(table[a.index(block)][b.index(block)]) for block in self.shared(one % n, other % n)]

    def floors(self, moment: int, one: int, other: int) -> tuple[list[float], list[float]]:
        """For each shared layer, the CKA of either network with its own random twin."""
        n, shared = len(self.names), self.shared(one, other)
        found = []
        for which in (one, other):
            own = dict(zip(self.blocks[which], self.diagonal(moment, which, which + n), strict=True))
            found.append([own[block] for block in shared])
        return found[0], found[1]


def similarity_record(
    compared: Compared,
    given: argparse.Namespace,
    dataset_name: str,
    command: str,
    configs: dict[str, str],
    machine: dict[str, Any],
    minutes: float,
) -> Record:
    """All of it."""
    parts: list[Part] = []
    findings: list[str] = []
    for one, other in combinations(range(len(compared.names)), 2):
        if compared.shared(one, other):
            parts += [_chart(compared, one, other), _means(compared, one, other)]
            findings += _findings(compared, one, other)
        else:
            findings += _without_shared(compared, one, other)
        parts += [_heatmap(compared, moment, one, other) for moment in range(len(compared.moments))]
    parts += [_heatmap(compared, 0, one, one) for one in range(len(compared.names))]
    return Record(
        name="similarity",
        title="How alike two networks are inside",
        question="Which layers of the networks see the same in the same images, and is it more than chance?",
        findings=findings,
        parts=parts,
        method=_method(compared, given),
        source='Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited"; minibatches: Nguyen '
        'et al. 2021, "Do Wide and Deep Networks Learn the Same Things?"',
        command=command,
        seeds=[given.seed],
        dataset_name=dataset_name,
        configs=configs,
        machine=machine,
        minutes=minutes,
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _at(compared: Compared, moment: int, *which: int) -> str:
    """What the networks are shown, in words."""
    name = called(compared.moments[moment])
    return f"t = {name}" if name.isdecimal() and any(compared.noised[one] for one in which) else "clean images"


def _chart(compared: Compared, one: int, other: int) -> Chart:
    shared = compared.shared(one, other)
    x = [float(index + 1) for index in range(len(shared))]
    lines = [
        Line(_at(compared, moment, one, other), x, [Value.of([v]) for v in compared.diagonal(moment, one, other)])
        for moment in range(len(compared.moments))
    ]
    floors = [compared.floors(moment, one, other) for moment in range(len(compared.moments))]
    for which, index in ((one, 0), (other, 1)):
        highest = [max(column) for column in zip(*(both[index] for both in floors), strict=True)]
        name = f"{compared.names[which]} and random weights, the highest"
        lines.append(Line(name, x, [Value.of([value]) for value in highest]))
    order = ", ".join(f"{index + 1} {block}" for index, block in enumerate(shared))
    return Chart(
        f"CKA of the same layer: {compared.names[one]} and {compared.names[other]}",
        "layer, from the image to the heads",
        "linear CKA (1: the same up to rotation and scale)",
        lines,
        note=f"Layers: {order}. The last two lines are the floors: each network and one of the same config with "
        "random weights, the highest CKA of the layer at any timestep.",
    )


def _means(compared: Compared, one: int, other: int) -> Table:
    n = len(compared.names)
    rows = []
    for moment in range(len(compared.moments)):
        figures = [
            compared.diagonal(moment, one, other),
            compared.diagonal(moment, one, one + n),
            compared.diagonal(moment, other, other + n),
        ]
        rows.append((_at(compared, moment, one, other), [Value(_mean(values)) for values in figures]))
    a, b = compared.names[one], compared.names[other]
    columns = [Column(f"{a} and {b}"), Column(f"{a} and random weights"), Column(f"{b} and random weights")]
    return Table(f"CKA of the same layer, mean over layers: {a} and {b}", columns, rows)


def _heatmap(compared: Compared, moment: int, one: int, other: int) -> Heatmap:
    names, at = compared.names, _at(compared, moment, one, other)
    title = f"CKA of every two layers, {at}: {names[one]} and {names[other]}"
    note = (
        "The same network on both sides: what is off the diagonal is how fast its layers change."
        if one == other
        else ""
    )
    return Heatmap(
        title, names[one], names[other], compared.blocks[one], compared.blocks[other],
        compared.between(moment, one, other), note=note,
    )  # fmt: skip


def _mean(values: list[float]) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else None


def _findings(compared: Compared, one: int, other: int) -> list[str]:
    pair = f"{compared.names[one]} and {compared.names[other]}"
    shared = compared.shared(one, other)
    cells = [
        _Cell(value, floors, f"{block} {_on(compared, moment, one, other)}")
        for moment in range(len(compared.moments))
        for value, floors, block in zip(
            compared.diagonal(moment, one, other),
            zip(*compared.floors(moment, one, other), strict=True),
            shared,
            strict=True,
        )
        if not any(math.isnan(figure) for figure in (value, *floors))
    ]
    if not cells:
        return [f"{pair}: no layer says anything; CKA is not defined."]
    a, b = (f"{compared.names[which]} and random weights" for which in (one, other))
    most, least = max(cells, key=lambda cell: cell.value), min(cells, key=lambda cell: cell.value)
    above = [sum(cell.value > cell.floors[index] for cell in cells) for index in (0, 1)]
    means = [
        f"{_at(compared, moment, one, other)} {_mean(compared.diagonal(moment, one, other)) or math.nan:.2f}"
        for moment in range(len(compared.moments))
    ]
    return [
        f"{pair} are most alike in {most.place}: CKA {most.value:.2f}, {most.beside(0)} what {a} have there, "
        f"{most.beside(1)} what {b} have.",
        f"{pair} are least alike in {least.place}: CKA {least.value:.2f}, {least.beside(0)} what {a} have there, "
        f"{least.beside(1)} what {b} have.",
        f"Of {len(cells)} layers of {pair}, each timestep counted, {above[0]} are more alike than {a}, and {above[1]} "
        f"more than {b}.",
        f"{pair}: mean CKA over the layers {', '.join(means)}.",
    ]


@dataclass(frozen=True)
class _Cell:
    """One layer of two networks at one moment."""

    value: float
    floors: tuple[float, float]
    place: str

    def beside(self, index: int) -> str:
        gap = self.value - self.floors[index]
        return f"{abs(gap):.2f} {'above' if gap >= 0 else 'below'}"


def _without_shared(compared: Compared, one: int, other: int) -> list[str]:
    """Networks of different blocks have no diagonal: the nearest layers instead."""
    cells = [
        (value, a, b, _on(compared, moment, one, other))
        for moment in range(len(compared.moments))
        for a, row in zip(compared.blocks[one], compared.between(moment, one, other), strict=True)
        for b, value in zip(compared.blocks[other], row, strict=True)
        if value is not None
    ]
    pair = f"{compared.names[one]} and {compared.names[other]}"
    if not cells:
        return [f"{pair}: no layer says anything; CKA is not defined."]
    value, a, b, at = max(cells)
    return [f"{pair} share no layer; the nearest are {a} and {b} {at}, CKA {value:.2f}."]


def _on(compared: Compared, moment: int, *which: int) -> str:
    """The same within a sentence."""
    at = _at(compared, moment, *which)
    return f"at {at}" if at.startswith("t =") else f"on {at}"


def _method(compared: Compared, given: argparse.Namespace) -> list[str]:
    cells = given.grid**2
    return [
        f"{compared.images} validation images. Each layer's map is averaged over the cells of a {given.grid} x "
        f"{given.grid} grid, and each cell of each image is an example. A map with fewer cells than that gives a "
        "cell to several examples, and is compared on less than the others.",
        f"Unbiased estimate of HSIC on batches of {compared.batch_size} images ({compared.batch_size * cells} "
        "examples), numerator and denominator averaged over the batches, in float64. Being unbiased, it can fall below "
        "0 where two layers have nothing in common. Cells of one image are alike; in a batch they are a larger share "
        "of the pairs than in the whole set, so figures of another batch size or grid are not comparable.",
        "An image's noise is a function of its name and the seed: the same in every network of one input size. A "
        "denoiser is told no condition; a network that trained no diffusion head is shown clean images at every "
        "timestep of the other's.",
        "The floor of a layer is its CKA with the same layer of a network of the same config with random weights (one "
        "seed) on the same input; a pair has two, one for each network. Where a network is nearer to random weights "
        "than to the other run, it has kept to what any such network does with the pixels. With itself it is 1 by "
        "definition.",
        "CKA says that the same images lie near each other in both layers, not that the layers are of the same use.",
    ]
