"""The tab "Segment": an image, its mask, the noise in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from unetdiff.app import html, segmenting
from unetdiff.app.answers import answered, read_upload
from unetdiff.app.display import download, shown_image, shown_size
from unetdiff.app.events import NETWORK, QUIET, download_buttons
from unetdiff.app.runs import AppRun
from unetdiff.app.segmenting import Segmented, Source

HELP = (
    "Drop an image, or choose one of the validation set. The network labels every pixel. Move the noise slider to see "
    "how the mask holds up: the noise is the one that the denoiser learns to remove. Click the image for the "
    "probabilities at a point."
)
POINTER = "Click the image: the probabilities at that point appear here."


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
            view = gr.Image(label="Segmentation", format="png", interactive=False, buttons=["fullscreen"])
            noise = gr.Slider(0, 100, 0, step=1, label="Noise in % of the timesteps (0: the clean image)")
            with gr.Row():
                opacity = gr.Slider(0, 1, 0.55, step=0.05, label="Opacity", min_width=200)
                kind = _views(sources[0] if sources else None)
            pointer = gr.HTML(html.note(POINTER))
            facts = gr.HTML()
            with gr.Row(elem_classes="downloads"):
                get_mask = download_buttons(f"{api}-mask", "mask")
                get_overlay = download_buttons(f"{api}-overlay", "overlay")
        with gr.Column(min_width=300), gr.Accordion("Tiles and flips", open=False):
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

    @answered
    def update(
        source: Source | None,
        noise: float,
        tile: float | None,
        overlap: float,
        flip: bool,
        prompt: str,
        opacity: float,
        kind: str,
    ) -> tuple[Any, ...]:
        if source is None:
            return None, None, "", html.note(POINTER)
        chosen = segmenting.inference_options(run, tile, overlap, flip)
        caption = prompt if reads_captions else None
        segmented = segmenting.segment(run, source, noise / 100, chosen, caption)
        kind = kind if source.truth is not None or kind in segmenting.VIEWS else segmenting.OVERLAY
        image = segmenting.render(segmented, pipeline, kind, opacity)
        return segmented, image, segmenting.summary(segmented, pipeline), html.note(POINTER)

    outputs = [result, view, facts, pointer]

    @answered
    def choose_upload(path: str | None) -> tuple[Any, Any]:
        if path is None:
            return gr.skip(), gr.skip()
        chosen = Source(read_upload(path, pipeline), Path(path).name)
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


def _views(source: Source | None) -> Any:
    """The choice of what is shown of an image."""
    truth = segmenting.TRUTH_VIEWS if source is not None and source.truth is not None else ()
    return gr.Radio([*segmenting.VIEWS, *truth], value=segmenting.OVERLAY, label="Show", min_width=280, scale=2)


def _stem(result: Segmented, kind: str) -> str:
    """street.jpg -> street-mask."""
    return f"{Path(result.source.name).stem or 'image'}-{kind}"
