"""The tab "Generate": from noise, or from an image, to images, step by step."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unetdiff.app import html, sampling, segmenting
from unetdiff.app.answers import answered, answered_in_place, problem, read_upload
from unetdiff.app.conditions import ConditionFields
from unetdiff.app.display import as_pixels, download, montage
from unetdiff.app.events import NETWORK, QUIET, download_buttons
from unetdiff.app.painting import painted_hole, start_canvas, start_editor, start_image
from unetdiff.app.runs import AppRun
from unetdiff.app.sampling import MAX_IMAGES, Options, Preview
from unetdiff.app.segment_tab import example_gallery
from unetdiff.app.segmenting import Source
from unetdiff.diffusion.editing import ImageStart

HELP = (
    "The network starts with noise and removes a little of it at every step: from the noisy input it predicts the "
    "clean image."
)
START_HELP = (
    "Image to image: all of it changes, the more the larger the strength. Inpainting: paint over a part, and only that "
    "is repainted."
)
KINDS = {
    "class_labels": "Choose a class.",
    "prompt": "Describe the image.",
    "layout": "Paint where each class should be.",
    "condition_image": "Drop an image to restore.",
    None: "This model has no condition: every seed gives another image of its dataset.",
}


def build_generate_tab(run: AppRun, segmenter: AppRun | None = None, api: str = "generate") -> None:
    """The components and events of one run, inside of a Blocks context.

    Args:
        run: with a diffusion head.
        segmenter: a run whose segmentation head labels the images; None: they are not labeled.
        api: name of the event for `gradio_client`.
    """
    gr.HTML(html.note(f"{KINDS[run.condition]} {HELP}"))
    with gr.Row(elem_classes="workspace"):
        with gr.Column(min_width=300):
            condition = ConditionFields([run])
            with gr.Row():
                start, stop = gr.Button("Generate", variant="primary"), gr.Button("Stop", min_width=80, scale=0)
        with gr.Column(min_width=300):
            with gr.Row():
                noisy = gr.Image(label="Noisy input", format="png", interactive=False, buttons=["fullscreen"])
                clean = gr.Image(label="Predicted image", format="png", interactive=False, buttons=["fullscreen"])
            status, images = gr.HTML(), gr.State(None)
            with gr.Row(elem_classes="downloads", visible=False) as downloads:
                get_images = download_buttons(f"{api}-images", "images")
            seen = gr.Image(
                label=f"What the segmenter of {segmenter.name} sees" if segmenter else "",
                visible=False,  # until there is an image
                format="png",
                interactive=False,
                buttons=["fullscreen"],
            )
            legend = gr.HTML()
        with gr.Column(min_width=300):
            fields = sampling_fields([run])
            with gr.Accordion("Start from an image", open=False):
                editor, strength = _start_fields(run)

    count = len(condition.components)

    @answered_in_place(lambda message: (None, None, html.error(message), None, None, ""))
    def generate(*values: Any) -> Iterator[tuple[Any, ...]]:
        chosen = condition.of(run, values[:count])
        *numbers, painting, strength = values[count:]
        options = Options.of(*numbers)
        yield None, None, html.note("Starting …"), None, None, ""
        for preview in sampling.sample(run, chosen, options, image_start(painting, strength)):
            given, predicted = (montage(as_pixels(one)) for one in (preview.noisy, preview.predicted))
            if not preview.finished:
                yield given, predicted, html.note(_progress(preview)), gr.skip(), gr.skip(), gr.skip()
                continue
            pixels = as_pixels(preview.predicted)
            labeled, classes = None, ""
            if segmenter is not None:
                labeled, classes = what_is_seen(segmenter, pixels)
            yield given, predicted, html.note(_finished(preview, options)), pixels, labeled, classes

    outputs = [noisy, clean, status, images, seen, legend]

    def show_results() -> tuple[Any, Any]:
        return gr.Row(visible=True), gr.Image(visible=segmenter is not None)

    start.click(show_results, None, [downloads, seen], **QUIET)
    running = start.click(
        generate,
        [*condition.components, *fields, editor, strength],
        outputs,
        api_name=api,
        show_progress="hidden",
        **NETWORK,
    )
    stop.click(lambda: html.note("Stopped."), None, status, cancels=[running], **QUIET)

    @answered
    def save(images: list[NDArray[np.uint8]] | None) -> Any:
        return None if not images else download(montage(images, enlarged=False), "generated")

    get_images(save, [images])


def sampling_fields(runs: Sequence[AppRun]) -> list[Any]:
    """The fields of `Options.of`, in its order, for runs that are sampled together."""
    guided = [run.guidance_scale for run in runs if run.condition is not None]
    with gr.Accordion("Sampling", open=True):
        with gr.Row():
            steps = gr.Slider(1, 250, 25, step=1, label="Steps", min_width=140)
            guidance = gr.Slider(
                1, 15, guided[0] if guided else 1.0, step=0.5, label="Guidance", min_width=140, visible=bool(guided)
            )
        with gr.Row():
            images = gr.Slider(1, MAX_IMAGES, 1, step=1, label="Images", min_width=140)
            names = sampling.sampler_names(*runs)
            sampler = gr.Dropdown(names, value=names[0], label="Sampler", min_width=140)
        with gr.Row(elem_classes="seed"):
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=120)
            new = gr.Button("New seed", size="sm", min_width=90, scale=0)
    new.click(lambda: secrets.randbelow(10**6), None, seed, **QUIET)
    return [images, steps, guidance, sampler, seed]


def _start_fields(run: AppRun) -> tuple[Any, Any]:
    """The editor of the image to start from, and the strength."""
    gr.HTML(html.note(START_HELP))
    upload = gr.File(label="Drop an image", height=140)
    items = run.examples.items
    if items:
        gallery = example_gallery([Source(item["image"], str(item["name"])) for item in items])
    message, editor = problem(), start_editor()
    strength = gr.Slider(0.05, 1, 0.6, step=0.05, label="Strength of image to image")
    remove = gr.Button("Start from noise again", size="sm")

    def empty(text: str = "") -> tuple[Any, Any]:
        return gr.ImageEditor(None, visible=False), problem(text)

    @answered_in_place(empty)
    def choose_upload(path: str | None) -> tuple[Any, Any]:
        return start_canvas(read_upload(path)), problem()

    def choose_example(event: gr.SelectData) -> tuple[Any, Any]:
        return start_canvas(items[event.index]["image"]), problem()

    upload.upload(choose_upload, upload, [editor, message], **QUIET).then(lambda: None, None, upload, **QUIET)
    if items:
        gallery.select(choose_example, None, [editor, message], **QUIET)
    remove.click(empty, None, [editor, message], **QUIET)
    return editor, strength


def image_start(painting: dict[str, Any] | None, strength: float) -> ImageStart | None:
    """Where sampling starts: a painted part is repainted from pure noise, as `unetdiff sample` does."""
    image, hole = start_image(painting), painted_hole(painting)
    if image is None:
        return None
    return ImageStart(image, hole, strength if hole is None else 1.0)


def what_is_seen(segmenter: AppRun, images: Sequence[NDArray[np.uint8]]) -> tuple[Image.Image, str]:
    """The overlays of a segmenter for some images, and the legend of all of them."""
    pipeline = segmenter.segmentation
    assert pipeline is not None
    results = [segmenting.segment(segmenter, Source(pipeline.load_image(image), "generated")) for image in images]
    overlays = [np.asarray(segmenting.full_overlay(result, pipeline, 0.55)) for result in results]
    masks = np.concatenate([result.mask.ravel() for result in results])[None]
    return montage(overlays), html.legend(masks, pipeline.classes, pipeline.palette)


def _progress(preview: Preview) -> str:
    return f"Step {preview.step} of {preview.num_steps}, timestep {preview.timestep:.4g}"


def _finished(preview: Preview, options: Options) -> str:
    return f"{preview.num_steps} steps, seed {options.seed}"
