"""The cards' sentences agree with the metrics."""

from __future__ import annotations

import pytest

from unetdiff.data.prompt import DIGITS
from unetdiff.evaluation.classifier import Classifier, ClassifierNetwork
from unetdiff.reports.consistency import Consistency, SampleClassifier
from unetdiff.reports.findings import findings
from unetdiff.reports.runs import read_runs
from unetdiff.reports.samples import SampleBlock
from unetdiff.reports.table import build_table


def sentences(runs, *scores) -> str:
    """The sentences for runs and the class consistencies {index: Consistency} of each block."""
    samples = [SampleBlock("scenes", sorted(each), [], [], each) for each in scores]
    together = {index: score for each in scores for index, score in each.items()}
    return " ".join(finding.sentence for finding in findings(runs, build_table(runs, together), samples))


@pytest.mark.parametrize(
    ("joint", "words"),
    [(0.83, "3.0 points higher"), (0.77, "3.0 points lower"), (0.805, "a difference of 0.5 points, too small")],
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
def test_unfinished_runs_and_other_datasets_are_not_compared(make_run, odd):
    runs = read_runs(
        [
            make_run("alone", task="segmentation", mean_iou=0.80, weights=False),
            make_run("both", task="joint", mean_iou=0.70, weights=False, **odd),
        ]
    )
    assert "Joint training" not in sentences(runs)


@pytest.mark.parametrize(("low", "words"), [(0.90, "intervals overlap"), (0.97, "intervals do not overlap")])
def test_overlapping_intervals(make_run, low, words):
    runs = read_runs(
        [make_run("alone", task="diffusion", weights=False), make_run("both", task="joint", weights=False)]
    )
    scores = {0: Consistency(0.93, 300, 0.89, 0.95, {}), 1: Consistency(0.98, 300, low, 0.99, {})}
    assert words in sentences(runs, scores)


def test_time_of_joint_and_separate_training(make_run):
    runs = read_runs(
        [
            make_run("a", task="segmentation", minutes=1.0, weights=False),
            make_run("b", task="diffusion", minutes=2.5, weights=False),
            make_run("c", task="joint", minutes=3.0, weights=False),
        ]
    )
    text = sentences(runs)
    assert "Separate training took 1.0 min (segmentation) and 2.5 min (diffusion), 3.5 min in total" in text
    assert "the joint run took 0.86 times that." in text


@pytest.mark.parametrize("odd", [{"digits": 2}, {"size": [16, 16]}])
def test_time_on_other_images_is_not_compared(make_run, odd):
    runs = read_runs(
        [
            make_run("a", task="segmentation", minutes=1.0, weights=False),
            make_run("b", task="diffusion", minutes=2.5, weights=False),
            make_run("c", task="joint", minutes=3.0, weights=False, **odd),
            make_run("d", task="joint", minutes=4.0, weights=False),
        ]
    )
    assert "Separate training took 1.0 min (segmentation) and 2.5 min (diffusion)" in sentences(runs)
    assert "Separate training" not in sentences(runs[:3])


def test_each_dataset_has_its_own_card(make_run):
    runs = read_runs(
        [
            make_run("one", task="diffusion", digits=1, weights=False),
            make_run("two", task="diffusion", digits=2, weights=False),
        ]
    )
    blocks = [
        SampleBlock("easy", [0], [], [], {0: Consistency(0.7, 300, 0.65, 0.75, {})}, classifier(0.99, 40)),
        SampleBlock("hard", [1], [], [], {1: Consistency(0.8, 300, 0.75, 0.85, {})}, classifier(0.85, 50)),
    ]
    table = build_table(runs, {index: score for block in blocks for index, score in block.scores.items()})
    cards = [card for card in findings(runs, table, blocks) if "class consistency" in card.label]
    assert [card.metric for card in cards] == ["70.0 %", "80.0 %"], "a best over two datasets"
    assert "“one”" in cards[0].sentence and "on 40 real images: 99.0 %" in cards[0].sentence
    assert "“two”" in cards[1].sentence and "on 50 real images: 85.0 %" in cards[1].sentence
    assert cards[0].label.endswith("(easy)") and cards[1].label.endswith("(hard)")
    (card,) = (card for card in findings(runs, table, blocks[1:]) if "class consistency" in card.label)
    assert card.label.endswith("samples")


def classifier(accuracy: float, n: int) -> SampleClassifier:
    """A classifier with this accuracy on n images."""
    return SampleClassifier(Classifier(ClassifierNetwork(10), 10, "any"), list(DIGITS), accuracy, n, 60)
