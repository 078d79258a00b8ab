"""Curves hold every run's points and belong to the page: its colours, its font, no file outside it."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from unetdiff.reports.curves import points, smoothed, training_curves
from unetdiff.reports.runs import read_run, read_runs


def test_smoothed_by_hand():
    # weights of the second: 0.2 new, 0.16 old, over their sum
    assert smoothed([1.0, 2.0], 0.8) == pytest.approx([1.0, (0.2 * 2 + 0.16 * 1) / 0.36])
    assert smoothed([3.0] * 5) == pytest.approx([3.0] * 5)


def test_points_are_the_logged_ones(make_run):
    run = read_run(make_run(task="joint", mean_iou=0.8, minutes=2.0, weights=False))
    assert points(run, "validation", "segmentation/mean_iou", "images") == ([3200, 6400], pytest.approx([0.4, 0.8]))
    assert points(run, "validation", "segmentation/mean_iou", "minutes")[0] == pytest.approx([1.0, 2.0])


def test_a_single_tasks_loss_may_be_called_loss(make_run):
    run = read_run(make_run(task="diffusion", weights=False))
    for entry in run.train:
        del entry["diffusion/loss"]
    assert points(run, "train", "diffusion/loss", "images")[1] == [entry["loss"] for entry in run.train]
    assert points(run, "train", "segmentation/loss", "images") == ([], [])


def test_drawings(make_run):
    runs = read_runs([make_run(task, task=task, weights=False) for task in ("segmentation", "diffusion", "joint")])
    curves = training_curves(runs)
    assert [(c.title, c.across) for c in curves[:2]] == [
        ("Segmentation loss", "images seen"),
        ("Segmentation loss", "minutes"),
    ]
    assert len(curves) == 8
    ids: list[str] = []
    for curve in curves:
        tree = ElementTree.fromstring(curve.svg)
        assert tree.get("viewBox") and tree.get("width") is None
        ids += [element.attrib["id"] for element in tree.iter() if "id" in element.attrib]
        assert not re.search(r"#[0-9a-f]{6}", curve.svg), "a colour that the page does not know"
        assert "<style" not in curve.svg and "font-family" not in curve.svg
    assert len(ids) == len(set(ids))
    assert "--run-0" in curves[0].svg and "--run-2" in curves[0].svg and "--run-1" not in curves[0].svg
