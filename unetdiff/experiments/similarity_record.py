"""The record of the similarity of networks: maps of layers, the diagonal over layers, and what was found."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from unetdiff.experiments.features import Moment, called
from unetdiff.experiments.record import Chart, Column, Heatmap, Line, Part, Record, Table, Value

Matrix = list[list[float | None]]


@dataclass(frozen=True)
class Compared:
    """CKA of every two layers of some networks, and of each one's random twin, as it is kept."""

    names: list[str]
    noised: list[bool]
    """Whether each network is shown noised pictures."""
    blocks: list[list[str]]
    """Each network's layers; its twin has the same."""
    moments: list[Moment]
    tables: list[Matrix]
    """One for each moment, over the layers of all networks, then of all twins."""
    pictures: int
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

    def floor(self, moment: int, one: int, other: int) -> list[float]:
        """For each shared layer, the higher CKA of either network with its own random twin."""
        n, shared = len(self.names), self.shared(one, other)
        found = []
        for which in (one, other):
            own = dict(zip(self.blocks[which], self.diagonal(moment, which, which + n), strict=True))
            found.append([own[block] for block in shared])
        return [max(a, b) for a, b in zip(*found, strict=True)]


def similarity_record(
    compared: Compared,
    given: argparse.Namespace,
    set_name: str,
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
        question="Which layers of the networks see the same in the same pictures, and is it more than chance?",
        findings=findings,
        parts=parts,
        method=_method(compared, given),
        source='Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited"; minibatches: Nguyen '
        'et al. 2021, "Do Wide and Deep Networks Learn the Same Things?"',
        command=command,
        seeds=[given.seed],
        set_name=set_name,
        configs=configs,
        machine=machine,
        minutes=minutes,
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _at(compared: Compared, moment: int, *which: int) -> str:
    """What the networks are shown, in words."""
    name = called(compared.moments[moment])
    return f"t = {name}" if name.isdecimal() and any(compared.noised[one] for one in which) else "clean pictures"


def _chart(compared: Compared, one: int, other: int) -> Chart:
    shared = compared.shared(one, other)
    x = [float(index + 1) for index in range(len(shared))]
    lines = [
        Line(_at(compared, moment, one, other), x, [Value.of([v]) for v in compared.diagonal(moment, one, other)])
        for moment in range(len(compared.moments))
    ]
    floors = [compared.floor(moment, one, other) for moment in range(len(compared.moments))]
    highest = [max(column) for column in zip(*floors, strict=True)]
    lines.append(Line("random weights, the highest", x, [Value.of([value]) for value in highest]))
    order = ", ".join(f"{index + 1} {block}" for index, block in enumerate(shared))
    return Chart(
        f"CKA of the same layer: {compared.names[one]} and {compared.names[other]}",
        "layer, from the picture to the heads",
        "linear CKA (1: the same up to rotation and scale)",
        lines,
        note=f"Layers: {order}. The last line is the highest CKA, at any timestep, of the layer with the same layer of "
        "a network with random weights.",
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
        (value, value - floor, block, _on(compared, moment, one, other))
        for moment in range(len(compared.moments))
        for value, floor, block in zip(
            compared.diagonal(moment, one, other), compared.floor(moment, one, other), shared, strict=True
        )
        if not math.isnan(value) and not math.isnan(floor)
    ]
    if not cells:
        return [f"{pair}: no layer says anything; CKA is not defined."]
    most, least = max(cells), min(cells)
    gap = max(cells, key=lambda cell: cell[1])
    above = sum(cell[1] > 0 for cell in cells)
    means = []
    for moment in range(len(compared.moments)):
        mean, floor = _mean(compared.diagonal(moment, one, other)), _mean(compared.floor(moment, one, other))
        if mean is not None and floor is not None:
            means.append(f"{_at(compared, moment, one, other)} {mean:.2f} ({floor:.2f})")
    return [
        f"{pair}: most alike in {most[2]} {most[3]}, CKA {most[0]:.2f}, {_above(most[1])} the floor of random "
        f"weights; least alike in {least[2]} {least[3]}, CKA {least[0]:.2f}, {_above(least[1])} it.",
        f"{pair}: the layer furthest above its floor is {gap[2]} {gap[3]}, CKA {gap[0]:.2f}, {_above(gap[1])} it; "
        f"{above} of {len(cells)} layers, counted at each timestep, are above theirs.",
        f"{pair}: mean CKA over the layers, and that of the floor: {', '.join(means)}.",
    ]


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


def _above(gap: float) -> str:
    return f"{abs(gap):.2f} {'above' if gap >= 0 else 'below'}"


def _method(compared: Compared, given: argparse.Namespace) -> list[str]:
    cells = given.grid**2
    return [
        f"{compared.pictures} validation pictures. Each layer's map is averaged over the cells of a {given.grid} x "
        f"{given.grid} grid, and each cell of each picture is an example. A map with fewer cells than that gives a "
        "cell to several examples, and is compared on less than the others.",
        f"Unbiased estimate of HSIC on batches of {compared.batch_size} pictures ({compared.batch_size * cells} "
        "examples), numerator and denominator averaged over the batches, in float64. Being unbiased, it can fall below "
        "0 where two layers have nothing in common. Cells of one picture are alike; in a batch they are a larger share "
        "of the pairs than in the whole set, so figures of another batch size or grid are not comparable.",
        "A picture's noise is a function of its name and the seed: the same in every network of one input size. A "
        "denoiser is told no condition; a network that trained no diffusion head is shown clean pictures at every "
        "timestep of the other's.",
        "The floor of a layer is its CKA with the same layer of a network of the same config with random weights (one "
        "seed) on the same input; of a pair, the higher of the two. A network with itself is 1 by definition.",
        "CKA says that the same pictures lie near each other in both layers, not that the layers are of the same use.",
    ]
