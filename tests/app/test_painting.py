"""Paintings become layouts and holes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("gradio", reason="the page needs gradio")

from unetdiff.app import painting
from unetdiff.app.conditions import ConditionFields, layout_classes
from unetdiff.app.generate_tab import image_start
from unetdiff.app.runs import AppRun
from unetdiff.errors import UserError

PALETTE = np.array([[0, 0, 0], [255, 0, 0], [128, 0, 0], [0, 0, 255]], np.uint8)


def as_value(image: Any) -> dict[str, Any]:
    array = np.asarray(image.convert("RGBA"))
    return {"background": array, "layers": [], "composite": array}


def test_a_mask_survives_the_canvas(runs: dict[str, AppRun]) -> None:
    mask = np.random.default_rng(0).integers(0, 4, (32, 24)).astype(np.uint8)
    canvas = painting.layout_canvas(mask, (32, 24), PALETTE)
    layout = painting.painted_layout(as_value(canvas["background"]), PALETTE, (32, 24))
    assert np.array_equal(layout, mask)
    empty = painting.layout_canvas(None, (32, 24), PALETTE)
    layout = painting.painted_layout(as_value(empty["background"]), PALETTE, (32, 24))
    assert layout is not None and layout.shape == (32, 24) and not layout.any()


def test_smooth_edges_give_no_third_class() -> None:
    """Between red and black there is a dark red, which is the color of another class."""
    value = as_value(painting.layout_canvas(None, (32, 32), PALETTE)["background"])
    value["composite"] = value["composite"].copy()
    value["composite"][:, 256:] = (255, 0, 0, 255)
    value["composite"][:, 255:257] = (128, 0, 0, 255)
    layout = painting.painted_layout(value, PALETTE, (32, 32))
    assert layout is not None and set(np.unique(layout)) == {0, 1}


def test_hole_and_start() -> None:
    background = np.full((64, 64, 4), 200, np.uint8)
    layer = np.zeros((64, 64, 4), np.uint8)
    value = {"background": background, "layers": [layer], "composite": background}
    assert painting.painted_hole(value) is None and image_start(None, 0.5) is None
    start = image_start(value, 0.5)
    assert start is not None and (start.mask_image, start.strength) == (None, 0.5)
    layer[10:20, 30:40] = (225, 29, 116, 255)
    start = image_start(value, 0.5)
    assert start is not None and start.strength == 1.0
    hole = np.asarray(start.mask_image)
    assert hole[10:20, 30:40].min() == 255 and hole.sum() == 255 * 100


def test_conditions_of_every_kind(runs: dict[str, AppRun]) -> None:
    import gradio as gr

    with gr.Blocks(analytics_enabled=False):
        fields = ConditionFields([runs["joint"], runs["layout"]])
    assert fields.names == ["class_labels", "negative_class_labels", "layout"]
    _, palette, size = layout_classes(runs["layout"])
    mask = np.full(size, 3, np.uint8)
    canvas = as_value(painting.layout_canvas(mask, size, palette)["background"])
    values = ["two", "(none)", canvas]
    assert fields.of(runs["joint"], values) == {"class_labels": "two"}
    assert fields.of(runs["joint"], ["two", "six", canvas])["negative_class_labels"] == "six"
    assert np.array_equal(fields.of(runs["layout"], values)["layout"], mask)
    with pytest.raises(UserError, match="layout: must be given"):
        fields.of(runs["layout"], ["two", "(none)", None])
    with pytest.raises(UserError, match="class: must be given"):
        fields.of(runs["joint"], [None, "(none)", canvas])
