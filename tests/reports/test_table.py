"""The better value is marked where there is something to compare, and nowhere else."""

from __future__ import annotations

import pytest

from unetdiff.reports.runs import read_runs
from unetdiff.reports.samples import Consistency
from unetdiff.reports.table import best_of, build_table, compact, minutes, shown_validation

SAME = ["a", "a", "a"]


@pytest.mark.parametrize(
    ("numbers", "better", "groups", "marked"),
    [
        ([0.5, 0.7, 0.6], "higher", SAME, [False, True, False]),
        ([0.5, 0.7, 0.6], "lower", SAME, [True, False, False]),
        ([0.5, 0.7, 0.6], "neither", SAME, [False, False, False]),
        ([None, 0.7, 0.6], "lower", SAME, [False, False, True]),
        ([None, 0.7, None], "higher", SAME, [False, False, False]),  # nothing to compare with
        ([0.7, 0.7, 0.6], "higher", SAME, [True, True, False]),  # a tie has two winners
        ([0.7, 0.7, 0.7], "higher", SAME, [False, False, False]),
        ([0.5, 0.7, 0.6], "higher", ["a", "b", "a"], [False, False, False]),  # another set
        ([None, 0.7, 0.6], "higher", ["b", "a", "a"], [False, True, False]),  # only runs with the figure count
        ([0.0, -1.0, None], "lower", SAME, [False, True, False]),
    ],
)
def test_best_of(numbers, better, groups, marked):
    assert best_of(numbers, [str(number) for number in numbers], better, groups) == marked


def test_values_written_alike_are_marked_alike():
    assert best_of([0.87101, 0.87099, 0.5], ["0.871", "0.871", "0.500"], "higher", SAME) == [True, True, False]


def test_table_of_three_tasks(make_run):
    runs = read_runs(
        [
            make_run("segmentation", task="segmentation", mean_iou=0.85, minutes=1.0, weights=False),
            make_run("diffusion", task="diffusion", minutes=2.0, weights=False),
            make_run("joint", task="joint", mean_iou=0.81, minutes=4.0, weights=False),
        ]
    )
    table = build_table(runs, {1: Consistency(0.9, 300, 0.86, 0.93, {}), 2: Consistency(0.95, 300, 0.92, 0.97, {})})

    def cells(key: str) -> list[tuple[str, bool]]:
        row = table.row(key)
        assert row is not None
        return [(value.text, value.best) for value in row.values]

    assert cells("segmentation.mean_iou") == [("0.850", True), ("–", False), ("0.810", False)]
    assert cells("minutes") == [("1.0 min", False), ("2.0 min", False), ("4.0 min", False)]
    assert cells("images_per_second") == [("107", True), ("53", False), ("27", False)]
    assert cells("diffusion.class_consistency") == [("–", False), ("90.0 %", False), ("95.0 %", True)]
    assert [text for text, _ in cells("parameters.diffusion")][0] == "–"
    assert not any(best for _, best in cells("parameters.shared"))


def test_quality_is_not_compared_between_sets(make_run):
    runs = read_runs(
        [
            make_run("one", task="segmentation", mean_iou=0.9, digits=1, weights=False),
            make_run("two", task="segmentation", mean_iou=0.7, digits=2, weights=False),
        ]
    )
    row = build_table(runs).row("segmentation.mean_iou")
    assert row is not None and not any(value.best for value in row.values)


def test_samples_of_two_sizes_have_two_judges_and_are_not_compared(make_run):
    runs = read_runs([make_run("small", task="diffusion", size=[16, 16], weights=False),
                      make_run("large", task="diffusion", size=[32, 32], weights=False)])  # fmt: skip
    scores = {0: Consistency(0.9, 300, 0.86, 0.93, {}), 1: Consistency(0.95, 300, 0.92, 0.97, {})}
    row = build_table(runs, scores).row("diffusion.class_consistency")
    assert row is not None and not any(value.best for value in row.values)


@pytest.mark.parametrize(
    ("section", "changed"),
    [
        ("diffusion", {"target": "mask"}),
        ("latent", {"vae": "vae"}),
        ("diffusion", {"prediction_type": "epsilon"}),
        ("data", {"size": [16, 16]}),
    ],
)
def test_losses_of_another_kind_are_not_compared(make_run, section, changed):
    runs = read_runs([make_run(name, task="diffusion", weights=False) for name in ("one", "two")])
    for entry in runs[1].validation:
        entry["diffusion/loss"] /= 2

    def marked() -> list[bool]:
        row = build_table(runs).row("diffusion.loss")
        assert row is not None
        return [value.best for value in row.values]

    assert marked() == [False, True]
    runs[1].config[section] |= changed
    assert marked() == [False, False]


def test_figures_are_those_of_the_best_weights(make_run):
    path = make_run(task="segmentation", mean_iou=0.8)
    summary = path / "summary.json"
    summary.write_text(summary.read_text().replace('"step": 200', '"step": 100'))
    run = read_runs([path])[0]
    assert shown_validation(run)["step"] == 100
    row = build_table([run]).row("segmentation.mean_iou")
    assert row is not None and row.values[0].number == pytest.approx(0.4)  # half of the way at step 100


def test_no_figure_of_a_head_that_is_not_there(make_run):
    table = build_table(read_runs([make_run(task="segmentation", weights=False)]))
    assert table.row("diffusion.loss") is None


@pytest.mark.parametrize(
    ("number", "text"),
    [(7, "7"), (9999, "9,999"), (12_345, "12.3 k"), (999_700, "1.00 M"), (1_003_000, "1.00 M"), (43_930_000, "43.9 M")],
)
def test_compact(number, text):
    assert compact(number) == text


def test_minutes():
    assert [minutes(n) for n in (0.4, 2.5, 90)] == ["24 s", "2.5 min", "1.5 h"]
