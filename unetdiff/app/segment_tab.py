"""The tab "Segment": an image, its mask, the noise in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from unetdiff.app import html, segmenting
from unetdiff.app.answers import Rejected, answered, answered_in_place, problem, read_source
from unetdiff.app.display import download, shown_image, shown_size
from unetdiff.app.events import NETWORK, QUIET, download_buttons
from unetdiff.app.runs import AppRun
from unetdiff.app.segmenting import Segmented, Source

HELP = "Drop an image, or choose one of the validation set: the network labels every pixel."
POINTER = "Click the image for the probabilities of the classes at a point."
NOISE_HELP = "Adds noise to the image, to see how the mask holds. 0 %: the image as it is; 100 %: nothing but noise."
RESULT = "Segmentation"


def example_sources(run: AppRun) -> list[Source]:
    """The validation images of a run, with their ground truth where it has the image's size."""
    sources = []
    for item in run.examples.items:
        mask = item.get("mask")
        truth = mask.numpy() if mask is not None and mask.shape == item["image"].shape[-2:] else None
        sources.append(Source(item["image"], str(item["name"]), truth))
    return sources


def example_gallery(sources: list[Source], label: str = "Validation images") -> Any:
    """A gallery of validation images to choose from."""
    return gr.Gallery(
        [shown_image(source.image) for source in sources],
        label=label,
        columns=6,
        height="auto",
        allow_preview=False,
        object_fit="cover",
        interactive=False,
        buttons=[],
        elem_classes="examples",
    )


def noise_slider(runs: Sequence[AppRun], percent: int = 0) -> Any:
    """A slider of the noise in %, folded away and at 0 if none of the runs was trained on noise."""
    trained = any(run.trained_on_noise for run in runs)
    with gr.Accordion("Noise", open=trained):
        gr.HTML(html.note(NOISE_HELP))
        return gr.Slider(0, 100, percent if trained else 0, step=1, label="Noise (%)")


def build_segment_tab(run: AppRun, api: str = "segment") -> None:
    """The components and events of one run, inside of a Blocks context.

    api: name of the event for `gradio_client`.
    """
    pipeline = run.segmentation
    assert pipeline is not None
    sources = example_sources(run)
    reads_captions = pipeline.segmenter.context is not None and pipeline.segmenter.context.reads_captions
    own = pipeline.inference

    gr.HTML(html.note(HELP))
    source, result = gr.State(sources[0] if sources else None), gr.State(None)
    with gr.Row(elem_classes="workspace"):
        with gr.Column(min_width=300):
            upload = gr.File(label="Drop an image", height=140, elem_classes="drop")
            if sources:
                gallery = example_gallery(sources)
            else:
                gr.HTML(html.note(f"No validation images: {run.examples.reason}."))
            prompt = gr.Textbox(label="Caption of the image", visible=reads_captions)
        with gr.Column(min_width=300):
            message = problem()
            view = gr.Image(label=RESULT, format="png", interactive=False, buttons=["fullscreen"])
            pointer = gr.HTML(html.note(POINTER))
            with gr.Row():
                opacity = gr.Slider(0, 1, 0.55, step=0.05, label="Opacity", min_width=200)
                kind = _views(sources[0] if sources else None)
        with gr.Column(min_width=300):
            facts = gr.HTML()
            with gr.Row(elem_classes="downloads", visible=False) as downloads:
                get_mask = download_buttons(f"{api}-mask", "mask")
                get_overlay = download_buttons(f"{api}-overlay", "overlay")
            noise = noise_slider([run])
            with gr.Accordion("Tiles and flips", open=False):
                tile = gr.Number(
                    own.tile[0] if own.tile else 0,
                    label="Side of the tiles",
                    info="In pixels; 0: the whole image at once. Large photos need tiles, e.g. 512.",
                    precision=0,
                    minimum=0,
                )
                overlap = gr.Slider(0, 0.9, own.overlap, step=0.05, label="Overlap of the tiles")
                flip = gr.Checkbox(own.flip, label="Average with the mirrored image")

    options = [noise, tile, overlap, flip, prompt, opacity, kind]

    def without_result(text: str = "") -> tuple[Any, ...]:
        hidden = gr.Row(visible=False)
        return None, gr.Image(None, label=RESULT, visible=not text), "", "", problem(text), hidden

    @answered_in_place(without_result)
    def update(
        source: Source | Rejected | None,
        noise: float,
        tile: float | None,
        overlap: float,
        flip: bool,
        prompt: str,
        opacity: float,
        kind: str,
    ) -> tuple[Any, ...]:
        if not isinstance(source, Source):
            return without_result("" if source is None else source.message)
        chosen = segmenting.inference_options(run, tile, overlap, flip)
        caption = prompt if reads_captions else None
        segmented = segmenting.segment(run, source, noise / 100, chosen, caption)
        kind = kind if source.truth is not None or kind in segmenting.VIEWS else segmenting.OVERLAY
        image = gr.Image(
            segmenting.render(segmented, pipeline, kind, opacity), label=f"{RESULT} of {source.name}", visible=True
        )
        shown = gr.Row(visible=True)
        return segmented, image, segmenting.summary(segmented, pipeline), html.note(POINTER), problem(), shown

    outputs = [result, view, facts, pointer, message, downloads]

    def choose_upload(path: str | None) -> tuple[Any, Any]:
        chosen = read_source(path, pipeline)
        return chosen, _views(chosen)

    def choose_example(event: gr.SelectData) -> tuple[Any, Any]:
        chosen = sources[event.index]
        return chosen, _views(chosen)

    @answered
    def redraw(result: Segmented | None, opacity: float, kind: str) -> Any:
        return gr.skip() if result is None else segmenting.render(result, pipeline, kind, opacity)

    def point(result: Segmented | None, event: gr.SelectData) -> Any:
        if result is None:
            return gr.skip()
        height, width = shown_size(*result.mask.shape)
        x, y = event.index
        return segmenting.at_pointer(result, pipeline, x, y, (width, height))

    @answered
    def save_mask(result: Segmented | None) -> Any:
        return None if result is None else download(segmenting.mask_file(result, pipeline), _stem(result, "mask"))

    @answered
    def save_overlay(result: Segmented | None, opacity: float) -> Any:
        if result is None:
            return None
        return download(segmenting.full_overlay(result, pipeline, opacity), _stem(result, "overlay"))

    dropped = upload.upload(choose_upload, upload, [source, kind], show_progress="hidden", api_name=f"{api}_upload")
    dropped.success(update, [source, *options], outputs, api_name=api, **NETWORK)
    dropped.then(lambda: None, None, upload, **QUIET)  # ready for the next one
    if sources:
        gallery.select(choose_example, None, [source, kind], **QUIET).success(
            update, [source, *options], outputs, api_visibility="private", **NETWORK
        )
    changes = [noise.input, tile.submit, tile.blur, overlap.release, flip.input, prompt.submit]
    gr.on(
        changes,
        update,
        [source, *options],
        outputs,
        trigger_mode="always_last",
        show_progress="hidden",
        api_visibility="private",
        **NETWORK,
    )
    gr.on([opacity.input, kind.input], redraw, [result, opacity, kind], view, trigger_mode="always_last", **QUIET)
    view.select(point, result, pointer, **QUIET)
    get_mask(save_mask, [result])
    get_overlay(save_overlay, [result, opacity])
    root = gr.context.Context.root_block
    assert root is not None
    root.load(update, [source, *options], outputs, api_visibility="private", show_progress="hidden", **NETWORK)


def _views(source: Source | Rejected | None) -> Any:
    """The choice of what is shown of an image."""
    truth = segmenting.TRUTH_VIEWS if isinstance(source, Source) and source.truth is not None else ()
    return gr.Radio([*segmenting.VIEWS, *truth], value=segmenting.OVERLAY, label="Show", min_width=280, scale=2)


def _stem(result: Segmented, kind: str) -> str:
    """street.jpg -> street-mask."""
    return f"{Path(result.source.name).stem or 'image'}-{kind}"
