"""The tab "Compare": several runs on the same image, the same noise and the same condition."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr
import numpy as np

from unetdiff.app import html, sampling, segmenting
from unetdiff.app.answers import Rejected, answered_in_place, read_source
from unetdiff.app.conditions import ConditionFields
from unetdiff.app.display import as_pixels, montage, shown_image
from unetdiff.app.events import NETWORK, QUIET
from unetdiff.app.generate_tab import sampling_fields
from unetdiff.app.runs import AppRun
from unetdiff.app.sampling import Options
from unetdiff.app.segment_tab import example_gallery, example_sources, noise_slider
from unetdiff.app.segmenting import Segmented, Source
from unetdiff.errors import UserError

HELP = "All runs see the same image, with the same noise."
DENOISER_HELP = "Denoisers predict, in one pass and without a condition, the clean image behind the noise."
NOISE = 30
"""Of denoisers and segmenters that know noise, at first, in %."""
SAMPLE_HELP = "All denoisers start from the same noise, with the same condition, seed and options."


def build_compare_tab(runs: Sequence[AppRun], api: str = "compare") -> None:
    """The components and events of at least two runs, inside of a Blocks context.

    api: name of the event for `gradio_client`; that of sampling is api_sample.
    """
    _build_image(runs, api)
    denoisers = [run for run in runs if run.generation is not None]
    if len(denoisers) > 1:
        _build_sampling(denoisers, f"{api}_sample")


def _build_image(runs: Sequence[AppRun], api: str) -> None:
    first = next((run for run in runs if run.examples.items), runs[0])
    sources = example_sources(first)
    denoises = any(run.generation is not None for run in runs)
    gr.HTML(html.note(f"{HELP} {DENOISER_HELP}" if denoises else HELP))
    source = gr.State(sources[0] if sources else None)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            upload = gr.File(label="Drop an image", height=140)
        with gr.Column(scale=3, min_width=300):
            if sources:
                gallery = example_gallery(sources, f"Validation images of {first.name}")
            noise = noise_slider(runs, NOISE)
    outputs: list[Any] = [gr.HTML()]
    with gr.Row():
        for run in runs:
            with gr.Column(min_width=260):
                gr.HTML(html.heading(run.name))
                if run.segmentation is not None:
                    outputs.append(_image("Mask"))
                if run.generation is not None:
                    outputs.append(_image("Denoised in one pass"))
                if run.segmentation is not None:
                    outputs.append(gr.HTML())

    def without_result(text: str) -> list[Any]:
        return [text] + [None] * (len(outputs) - 1)

    @answered_in_place(lambda message: without_result(html.error(message)))
    def update(source: Source | Rejected | None, noise: float) -> list[Any]:
        if source is None:
            return without_result(html.note("Drop an image to compare the runs on it."))
        if isinstance(source, Rejected):
            return without_result(html.error(source.message))
        return compared(runs, first, source, noise / 100)

    dropped = upload.upload(read_source, upload, source, show_progress="hidden", api_name=f"{api}_upload")
    dropped.success(update, [source, noise], outputs, api_visibility="private", **NETWORK)
    dropped.then(lambda: None, None, upload, **QUIET)
    if sources:

        def choose(event: gr.SelectData) -> Source:
            return sources[event.index]

        gallery.select(choose, None, source, **QUIET).success(
            update, [source, noise], outputs, api_visibility="private", **NETWORK
        )
    noise.input(
        update, [source, noise], outputs, trigger_mode="always_last", show_progress="hidden", api_name=api, **NETWORK
    )
    root = gr.context.Context.root_block
    assert root is not None
    root.load(update, [source, noise], outputs, api_visibility="private", show_progress="hidden", **NETWORK)


def compared(runs: Sequence[AppRun], first: AppRun, source: Source, noise: float) -> list[Any]:
    """What the tab shows of an image: a sentence, then for each run its mask, its denoised image and its legend.

    Args:
        runs: the runs, in order.
        first: the run that the image and its ground truth are from.
        source: the image.
        noise: fraction of the timesteps in [0, 1].
    """
    results: list[Segmented] = []
    shown: list[Any] = []
    for run in runs:
        pipeline, result = run.segmentation, None
        if pipeline is not None:
            same = first.segmentation is not None and pipeline.classes == first.segmentation.classes
            image = source if pipeline.segmenter.image_channels == source.image.shape[0] else _converted(source, run)
            result = segmenting.segment(run, image if same else replace(image, truth=None), noise)
            shown.append(segmenting.render(result, pipeline, segmenting.OVERLAY, 0.55))
            results.append(result)
        if run.generation is not None:
            shown.append(_denoised(run, source, noise))
        if pipeline is not None and result is not None:
            shown.append(segmenting.summary(result, pipeline))
    return [html.note(_agreement(runs, results, noise)), *shown]


def _converted(source: Source, run: AppRun) -> Source:
    """An image with the channels that a segmenter reads."""
    assert run.segmentation is not None
    pixels = np.moveaxis(source.image.numpy(), 0, -1)
    return replace(source, image=run.segmentation.load_image(pixels))


def _denoised(run: AppRun, source: Source, noise: float) -> Any:
    if noise == 0:
        return shown_image(source.image)
    try:
        image = sampling.denoised_once(run, source.image, noise)
    except UserError:
        return None
    return shown_image(as_pixels(image[None])[0])


def _agreement(runs: Sequence[AppRun], results: Sequence[Segmented], noise: float) -> str:
    """How many pixels get the same class from all segmenters, if they have the same classes."""
    classes = [run.segmentation.classes for run in runs if run.segmentation is not None]
    at = segmenting.noise_text(noise)
    if len(results) < 2 or any(names != classes[0] for names in classes):
        return at
    masks = np.stack([result.mask for result in results])
    same = float((masks == masks[0]).all(axis=0).mean())
    return f"{at} · the segmenters agree on {html.percent(same)} of the pixels"


def _build_sampling(denoisers: Sequence[AppRun], api: str) -> None:
    gr.HTML(html.heading("Generate") + html.note(SAMPLE_HELP))
    with gr.Row():
        with gr.Column(min_width=300):
            condition = ConditionFields(denoisers)
        with gr.Column(min_width=300):
            fields = sampling_fields(denoisers)
            with gr.Row():
                start, stop = gr.Button("Generate", variant="primary"), gr.Button("Stop", min_width=80, scale=0)
    status = gr.HTML()
    with gr.Row():
        images = []
        for run in denoisers:
            with gr.Column(min_width=260):
                images.append(_image(run.name))

    @answered_in_place(lambda message: [html.error(message), *[None] * len(denoisers)])
    def generate(*values: Any) -> Iterator[list[Any]]:
        options = Options.of(*values[len(condition.components) :])
        chosen = [condition.of(run, values[: len(condition.components)]) for run in denoisers]
        shown: list[Any] = [None] * len(denoisers)
        yield [html.note("Starting …"), *shown]
        for number, (run, arguments) in enumerate(zip(denoisers, chosen, strict=True)):
            for preview in sampling.sample(run, arguments, options, indices=range(options.num_images)):
                shown[number] = montage(as_pixels(preview.predicted))
                text = f"{run.name}: step {preview.step} of {preview.num_steps}"
                yield [html.note(text), *(image if at == number else gr.skip() for at, image in enumerate(shown))]
        yield [html.note(f"Finished, seed {options.seed}"), *[gr.skip()] * len(shown)]

    outputs = [status, *images]
    inputs = [*condition.components, *fields]
    running = start.click(generate, inputs, outputs, api_name=api, show_progress="hidden", **NETWORK)
    stop.click(lambda: html.note("Stopped."), None, status, cancels=[running], **QUIET)


def _image(label: str) -> Any:
    return gr.Image(label=label, format="png", interactive=False, buttons=["fullscreen"])
