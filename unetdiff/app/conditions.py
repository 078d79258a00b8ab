"""The fields for a condition: class, prompt, painted layout or image, as the runs were trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from numpy.typing import NDArray

from unetdiff.app import html
from unetdiff.app.answers import answered_in_place, problem, read_upload
from unetdiff.app.display import shown_image
from unetdiff.app.events import QUIET
from unetdiff.app.painting import layout_brush, layout_canvas, layout_editor, painted_layout
from unetdiff.app.runs import AppRun
from unetdiff.data.masks.classes import voc_colormap
from unetdiff.errors import UserError

NONE = "(none)"


class ConditionFields:
    """The fields for the conditions of some runs, built inside of a Blocks context.

    Attributes:
        components: inputs of an event.
    """

    def __init__(self, runs: Sequence[AppRun]) -> None:
        self.names: list[str] = []
        self.components: list[Any] = []
        kinds = {run.condition: run for run in reversed(runs)}  # the first run of a kind
        if "class_labels" in kinds:
            self._add_classes([run for run in runs if run.condition == "class_labels"])
        if "prompt" in kinds:
            self._add("prompt", gr.Textbox(label="Prompt", placeholder="a red three", lines=2))
            self._add("negative_prompt", gr.Textbox(label="Negative prompt (guidance moves away from it)"))
        if "layout" in kinds:
            self._add_layout(kinds["layout"])
        if "condition_image" in kinds:
            self._add_image()

    def _add(self, name: str, component: Any) -> None:
        self.names.append(name)
        self.components.append(component)

    def _add_classes(self, runs: Sequence[AppRun]) -> None:
        conditioners = [run.generation.conditioner for run in runs if run.generation is not None]
        labels = list(dict.fromkeys(label for one in conditioners for label in one.labels))
        several = max(one.max_classes for one in conditioners)
        with gr.Row():
            if several > 1:
                field = gr.Dropdown(
                    labels, value=labels[:1], multiselect=True, max_choices=several, label="Classes in the image"
                )
            else:
                field = gr.Dropdown(labels, value=labels[0], label="Class", min_width=140)
            self._add("class_labels", field)
            negative = gr.Dropdown([NONE, *labels], value=NONE, label="Negative class", min_width=140)
            self._add("negative_class_labels", negative)

    def _add_layout(self, run: AppRun) -> None:
        classes, palette, size = layout_classes(run)
        with gr.Group():
            brush = gr.Dropdown(list(classes), value=classes[min(1, len(classes) - 1)], label="Brush paints")
            editor = layout_editor(palette, size)
        gr.HTML(html.chips(classes, list(palette)))
        items = [item for item in run.examples.items if "mask" in item]
        if items:
            gallery = gr.Gallery(
                [layout_canvas(item["mask"].numpy(), size, palette)["background"] for item in items],
                label="Or start with a mask of the validation set",
                columns=6,
                height="auto",
                allow_preview=False,
                interactive=False,
                buttons=[],
                elem_classes="examples",
            )

            def choose(event: gr.SelectData) -> Any:
                return layout_canvas(items[event.index]["mask"].numpy(), size, palette)

            gallery.select(choose, None, editor, **QUIET)
        brush.input(
            lambda name: gr.ImageEditor(brush=layout_brush(palette, classes.index(name), size)), brush, editor, **QUIET
        )
        self._add("layout", editor)

    def _add_image(self) -> None:
        upload = gr.File(label="Drop the image to restore", height=140)
        shown = gr.Image(label="Condition", interactive=False, visible=False, format="png")
        message, image = problem(), gr.State(None)

        @answered_in_place(lambda text: (None, gr.Image(None, visible=False), problem(text)))
        def read(path: str | None) -> tuple[Any, Any, Any]:
            pixels = read_upload(path)
            return pixels, gr.Image(shown_image(pixels), visible=True, label=Path(str(path)).name), problem()

        upload.upload(read, upload, [image, shown, message], **QUIET).then(lambda: None, None, upload, **QUIET)
        self._add("condition_image", image)

    def of(self, run: AppRun, values: Sequence[Any]) -> dict[str, Any]:
        """The arguments of a run's `GenerationPipeline` from the components' values.

        Raises:
            UserError: a field that is empty.
        """
        given = dict(zip(self.names, values, strict=True))
        if run.condition == "class_labels":
            classes, negative = given["class_labels"], given["negative_class_labels"]
            if not classes:
                raise UserError("class: must be given. Choose one.")
            chosen: dict[str, Any] = {"class_labels": [classes] if isinstance(classes, list) else classes}
            return chosen if negative in (None, NONE) else chosen | {"negative_class_labels": negative}
        if run.condition == "prompt":
            chosen = {"prompt": given["prompt"] or ""}
            negative = given["negative_prompt"]
            return chosen | {"negative_prompt": negative} if negative else chosen
        if run.condition == "layout":
            _, palette, size = layout_classes(run)
            layout = painted_layout(given["layout"], palette, size)
            if layout is None:
                raise UserError("layout: must be given. Paint one, or choose a mask of the validation set.")
            return {"layout": layout}
        if run.condition == "condition_image":
            if given["condition_image"] is None:
                raise UserError("condition_image: must be given. Drop one.")
            return {"condition_image": given["condition_image"]}
        return {}


def layout_classes(run: AppRun) -> tuple[list[str], NDArray[np.uint8], tuple[int, int]]:
    """Names and colors (classes, 3) of a layout's classes, and its height and width."""
    assert run.generation is not None
    conditioner = run.generation.conditioner
    palette = voc_colormap(conditioner.num_classes) if conditioner.palette is None else conditioner.palette
    return list(conditioner.labels), np.asarray(palette, np.uint8), run.generation.size()
