"""The record of the similarity of networks: CKA heatmaps, charts over depth, and findings."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from unetdiff.experiments.features import NoiseLevel, level_name
from unetdiff.reports.record import Chart, Column, Heatmap, Line, Part, Record, Table, Value

Matrix = list[list[float | None]]


@dataclass(frozen=True)
class SimilarityResults:
    """CKA of every pair of layers of some networks and their randomly initialized counterparts, as it is cached."""

    names: list[str]
    noised: list[bool]
    """Whether each network sees noised images."""
    blocks: list[list[str]]
    """Layers of each network, which are those of its counterpart."""
    noise_levels: list[NoiseLevel]
    matrices: list[Matrix]
    """One per noise level, over the layers of all networks, then of all counterparts."""
    num_images: int
    batch_size: int

    def between(self, level: int, first: int, second: int) -> Matrix:
        """Layers of one network (rows) by layers of another (columns).

        level: index of the noise level. first, second: network indices; counterparts follow after all networks.
        """
        sizes = [len(blocks) for blocks in self.blocks] * 2
        starts = [sum(sizes[:index]) for index in range(len(sizes))]
        rows = self.matrices[level][starts[first] : starts[first] + sizes[first]]
        return [row[starts[second] : starts[second] + sizes[second]] for row in rows]

    def shared(self, first: int, second: int) -> list[str]:
        """Layers that both networks have, in order."""
        return [block for block in self.blocks[first] if block in self.blocks[second]]

    def diagonal(self, level: int, first: int, second: int) -> list[float]:
        """CKA of each shared layer; NaN where it is undefined."""
        n = len(self.names)
        matrix = self.between(level, first, second)
        a, b = self.blocks[first % n], self.blocks[second % n]
        return [_number(matrix[a.index(block)][b.index(block)]) for block in self.shared(first % n, second % n)]

    def baselines(self, level: int, first: int, second: int) -> tuple[list[float], list[float]]:
        """For each shared layer, the CKA of either network with its randomly initialized counterpart."""
        n, shared = len(self.names), self.shared(first, second)
        baselines = []
        for index in (first, second):
            by_block = dict(zip(self.blocks[index], self.diagonal(level, index, index + n), strict=True))
            baselines.append([by_block[block] for block in shared])
        return baselines[0], baselines[1]


def similarity_record(
    results: SimilarityResults,
    args: argparse.Namespace,
    **fields: Any,
) -> Record:
    """The record; `fields` are the remaining fields of `Record`."""
    parts: list[Part] = []
    findings: list[str] = []
    for first, second in combinations(range(len(results.names)), 2):
        if results.shared(first, second):
            parts += [_chart(results, first, second), _mean_table(results, first, second)]
            findings += _findings(results, first, second)
        else:
            findings += _findings_without_shared(results, first, second)
        parts += [_heatmap(results, level, first, second) for level in range(len(results.noise_levels))]
    parts += [_heatmap(results, 0, index, index) for index in range(len(results.names))]
    return Record(
        name="similarity",
        title="Representation similarity (linear CKA)",
        question="Which layers of the networks have similar representations, beyond the similarity to random weights?",
        findings=findings,
        parts=parts,
        method=_method(results, args),
        source='Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited"; minibatches: Nguyen '
        'et al. 2021, "Do Wide and Deep Networks Learn the Same Things?"',
        seeds=[args.seed],
        **fields,
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _input(results: SimilarityResults, level: int, *networks: int) -> str:
    """ "t = 50", or "clean images"."""
    name = level_name(results.noise_levels[level])
    return f"t = {name}" if name.isdecimal() and any(results.noised[index] for index in networks) else "clean images"


def _on_input(results: SimilarityResults, level: int, *networks: int) -> str:
    """ "at t = 50", or "on clean images"."""
    text = _input(results, level, *networks)
    return f"at {text}" if text.startswith("t =") else f"on {text}"


def _chart(results: SimilarityResults, first: int, second: int) -> Chart:
    shared = results.shared(first, second)
    x = [float(index + 1) for index in range(len(shared))]
    lines = [
        Line(_input(results, level, first, second), x, [Value.of([v]) for v in results.diagonal(level, first, second)])
        for level in range(len(results.noise_levels))
    ]
    baselines = [results.baselines(level, first, second) for level in range(len(results.noise_levels))]
    for side, index in enumerate((first, second)):
        highest = [max(column) for column in zip(*(both[side] for both in baselines), strict=True)]
        name = f"{results.names[index]} and random weights (maximum)"
        lines.append(Line(name, x, [Value.of([value]) for value in highest]))
    layers = ", ".join(f"{index + 1} {block}" for index, block in enumerate(shared))
    return Chart(
        f"CKA of corresponding layers: {results.names[first]} and {results.names[second]}",
        "layer, from input to output",
        "linear CKA (1: equal up to rotation and scale)",
        lines,
        note=f"Layers: {layers}. The last two lines are the baselines: each network and a randomly initialized one of "
        "the same config, the maximum over timesteps.",
    )


def _mean_table(results: SimilarityResults, first: int, second: int) -> Table:
    n = len(results.names)
    rows = []
    for level in range(len(results.noise_levels)):
        columns = [
            results.diagonal(level, first, second),
            results.diagonal(level, first, first + n),
            results.diagonal(level, second, second + n),
        ]
        rows.append((_input(results, level, first, second), [Value(_mean(values)) for values in columns]))
    a, b = results.names[first], results.names[second]
    headers = [Column(f"{a} and {b}"), Column(f"{a} and random weights"), Column(f"{b} and random weights")]
    return Table(f"Mean CKA of corresponding layers: {a} and {b}", headers, rows)


def _heatmap(results: SimilarityResults, level: int, first: int, second: int) -> Heatmap:
    names = results.names
    title = f"CKA of all pairs of layers, {_input(results, level, first, second)}: {names[first]} and {names[second]}"
    note = "One network with itself: off-diagonal values show how quickly its layers change." if first == second else ""
    return Heatmap(
        title, names[first], names[second], results.blocks[first], results.blocks[second],
        results.between(level, first, second), note=note,
    )  # fmt: skip


def _mean(values: list[float]) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else None


@dataclass(frozen=True)
class _Cell:
    """A shared layer of two networks at one noise level."""

    value: float
    baselines: tuple[float, float]
    location: str

    def text(self, names: tuple[str, str]) -> str:
        baselines = [f"{self.value - b:+.2f} relative to {name}" for b, name in zip(self.baselines, names, strict=True)]
        return f"{self.location} (CKA {self.value:.2f}; {', '.join(baselines)})"


def _findings(results: SimilarityResults, first: int, second: int) -> list[str]:
    pair = f"{results.names[first]} and {results.names[second]}"
    levels = range(len(results.noise_levels))
    cells = [
        _Cell(value, baselines, f"{block} {_on_input(results, level, first, second)}")
        for level in levels
        for value, baselines, block in zip(
            results.diagonal(level, first, second),
            zip(*results.baselines(level, first, second), strict=True),
            results.shared(first, second),
            strict=True,
        )
        if not any(math.isnan(number) for number in (value, *baselines))
    ]
    if not cells:
        return [f"{pair}: CKA is undefined, as all layers are constant over the images."]
    names = (
        f"{results.names[first]} and random weights",
        f"{results.names[second]} and random weights",
    )
    highest, lowest = max(cells, key=lambda cell: cell.value), min(cells, key=lambda cell: cell.value)
    above = [sum(cell.value > cell.baselines[side] for cell in cells) for side in (0, 1)]
    means = [
        f"{_mean(results.diagonal(level, first, second)) or math.nan:.2f} {_on_input(results, level, first, second)}"
        for level in levels
    ]
    return [
        f"{pair} are most similar in {highest.text(names)}.",
        f"{pair} are least similar in {lowest.text(names)}.",
        f"{pair}: CKA exceeds that of {names[0]} in {above[0]} of {len(cells)} layers (counted per timestep), and that "
        f"of {names[1]} in {above[1]}.",
        f"{pair}: mean CKA over layers {', '.join(means)}.",
    ]


def _findings_without_shared(results: SimilarityResults, first: int, second: int) -> list[str]:
    """Networks without corresponding layers: the most similar pair of layers."""
    cells = [
        (value, a, b, _on_input(results, level, first, second))
        for level in range(len(results.noise_levels))
        for a, row in zip(results.blocks[first], results.between(level, first, second), strict=True)
        for b, value in zip(results.blocks[second], row, strict=True)
        if value is not None
    ]
    pair = f"{results.names[first]} and {results.names[second]}"
    if not cells:
        return [f"{pair}: CKA is undefined, as all layers are constant over the images."]
    value, a, b, at = max(cells)
    return [f"{pair} have no corresponding layers; the most similar ones are {a} and {b} {at} (CKA {value:.2f})."]


def _method(results: SimilarityResults, args: argparse.Namespace) -> list[str]:
    return [
        f"{results.num_images} validation images. Each layer's map is averaged over the cells of a {args.grid_size} x "
        f"{args.grid_size} grid, and each cell of each image is an example. In maps smaller than the grid, several "
        "examples share a pixel, so these layers are compared on fewer distinct examples.",
        f"Unbiased HSIC estimate on batches of {results.batch_size} images "
        f"({results.batch_size * args.grid_size**2} examples), numerator and denominator averaged over batches, in "
        "float64. An unbiased estimate of unrelated layers can be negative. Cells of one image are correlated and form "
        "a larger fraction of the pairs in a smaller batch, so other batch or grid sizes are not comparable.",
        "An image's noise is a function of its name and the seed: the same in every network of one input size. A "
        "denoiser is unconditional; a network without a trained diffusion head sees clean images at every timestep.",
        "The baseline of a layer is its CKA with the same layer of a randomly initialized network of the same config "
        "(one seed) on the same input; a pair has two. A network that is closer to random weights than to the other "
        "run has kept what any such architecture computes from pixels. CKA of a network with itself is 1.",
        "A high CKA means that the same images are neighbors in both layers, not that the layers have the same use.",
    ]
