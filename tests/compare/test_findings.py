"""Sentences say what the figures say, and no more."""

from __future__ import annotations

import pytest

from unetdiff.compare.findings import findings
from unetdiff.compare.runs import read_runs
from unetdiff.compare.samples import Consistency
from unetdiff.compare.table import build_table


def sentences(runs, scores=None) -> str:
    scores = scores or {}
    return " ".join(finding.sentence for finding in findings(runs, build_table(runs, scores), scores, None))


@pytest.mark.parametrize(
    ("joint", "words"),
    [(0.83, "3.0 points more"), (0.77, "3.0 points less"), (0.805, "0.5 points apart, too little")],
)
def test_joint_against_alone(make_run, joint, words):
    runs = read_runs(
        [
            make_run("alone", task="segmentation", mean_iou=0.80, weights=False),
            make_run("both", task="joint", mean_iou=joint, weights=False),
        ]
    )
    assert words in sentences(runs)


@pytest.mark.parametrize("odd", [{"finished": False}, {"digits": 2}])
def test_unfinished_runs_and_other_sets_are_no_evidence(make_run, odd):
    runs = read_runs(
        [
            make_run("alone", task="segmentation", mean_iou=0.80, weights=False),
            make_run("both", task="joint", mean_iou=0.70, weights=False, **odd),
        ]
    )
    assert "when the network is shared" not in sentences(runs)


@pytest.mark.parametrize(("low", "words"), [(0.90, "within the chance of the draw"), (0.97, "more than chance")])
def test_overlapping_intervals_are_chance(make_run, low, words):
    runs = read_runs(
        [make_run("alone", task="diffusion", weights=False), make_run("both", task="joint", weights=False)]
    )
    scores = {0: Consistency(0.93, 300, 0.89, 0.95, {}), 1: Consistency(0.98, 300, low, 0.99, {})}
    assert words in sentences(runs, scores)


def test_time_of_one_network_against_two(make_run):
    runs = read_runs(
        [
            make_run("a", task="segmentation", minutes=1.0, weights=False),
            make_run("b", task="diffusion", minutes=2.5, weights=False),
            make_run("c", task="joint", minutes=3.0, weights=False),
        ]
    )
    assert "took 3.0 min; the two apart took 1.0 min and 2.5 min, together 3.5 min" in sentences(runs)
