"""Sentences say what the figures say, and no more."""

from __future__ import annotations

import pytest

from unetdiff.data.prompt import DIGITS
from unetdiff.evaluation.classifier import Classifier, ClassifierNetwork
from unetdiff.reports.evaluation import Judging
from unetdiff.reports.findings import findings
from unetdiff.reports.runs import read_runs
from unetdiff.reports.samples import Consistency, SampleBlock
from unetdiff.reports.table import build_table


def sentences(runs, *scores) -> str:
    """Of runs and the scores of each judge, {index: Consistency}."""
    samples = [SampleBlock("scenes", sorted(each), [], [], each) for each in scores]
    together = {index: score for each in scores for index, score in each.items()}
    return " ".join(finding.sentence for finding in findings(runs, build_table(runs, together), samples))


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


@pytest.mark.parametrize("odd", [{"digits": 2}, {"size": [16, 16]}])
def test_time_of_other_images_is_not_held_against_it(make_run, odd):
    runs = read_runs(
        [
            make_run("a", task="segmentation", minutes=1.0, weights=False),
            make_run("b", task="diffusion", minutes=2.5, weights=False),
            make_run("c", task="joint", minutes=3.0, weights=False, **odd),
            make_run("d", task="joint", minutes=4.0, weights=False),
        ]
    )
    assert "took 4.0 min; the two apart took 1.0 min and 2.5 min" in sentences(runs)
    assert "the two apart" not in sentences(runs[:3])


def test_each_judge_speaks_of_its_own_set(make_run):
    runs = read_runs(
        [
            make_run("one", task="diffusion", digits=1, weights=False),
            make_run("two", task="diffusion", digits=2, weights=False),
        ]
    )
    blocks = [
        SampleBlock("easy", [0], [], [], {0: Consistency(0.7, 300, 0.65, 0.75, {})}, judging(0.99, 40)),
        SampleBlock("hard", [1], [], [], {1: Consistency(0.8, 300, 0.75, 0.85, {})}, judging(0.85, 50)),
    ]
    table = build_table(runs, {index: score for block in blocks for index, score in block.scores.items()})
    cards = [card for card in findings(runs, table, blocks) if "asked for" in card.what]
    assert [card.figure for card in cards] == ["70.0 %", "80.0 %"], "no best over two sets"
    assert "“one”" in cards[0].sentence and "99.0 % of 40 real images" in cards[0].sentence
    assert "“two”" in cards[1].sentence and "85.0 % of 50 real images" in cards[1].sentence
    assert cards[0].what.endswith("(easy)") and cards[1].what.endswith("(hard)")
    (card,) = (card for card in findings(runs, table, blocks[1:]) if "asked for" in card.what)
    assert card.what.endswith("asked for")


def judging(accuracy: float, n: int) -> Judging:
    """A judge of so much accuracy on so many images."""
    return Judging(Classifier(ClassifierNetwork(10), 10, "any"), list(DIGITS), accuracy, n, 60)
