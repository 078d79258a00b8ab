"""The page: a tab for each thing that the runs can do, and the server on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from unetdiff.app import html
from unetdiff.app.compare_tab import build_compare_tab
from unetdiff.app.generate_tab import build_generate_tab
from unetdiff.app.port import FIRST_PORT, HOST, require_free_port
from unetdiff.app.runs import AppRun
from unetdiff.app.segment_tab import build_segment_tab
from unetdiff.errors import UserError

CSS = Path(__file__).with_name("page.css")
SWEEP_SECONDS, KEEP_SECONDS = 300, 3600
"""How often files of the page are deleted, and from which age; all of them are when it ends."""
SANS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "Arial", "sans-serif"]
MONO = ["ui-monospace", "Menlo", "Consolas", "Liberation Mono", "monospace"]


def missing_tabs(runs: Sequence[AppRun]) -> list[str]:
    """Why a tab is missing, one sentence for each."""
    names = ", ".join(run.name for run in runs)
    has = "has" if len(runs) == 1 else "have"
    sentences = []
    if not any(run.segmentation for run in runs):
        sentences.append(f"No tab “Segment”: {names} {has} no segmentation head.")
    if not any(run.generation for run in runs):
        sentences.append(f"No tab “Generate”: {names} {has} no diffusion head.")
    if len(runs) < 2:
        sentences.append("To compare two models: unetdiff app RUN RUN.")
    return sentences


def build_page(runs: Sequence[AppRun]) -> gr.Blocks:
    """The page of some runs; `serve` shows it."""
    with gr.Blocks(title="unetdiff", analytics_enabled=False, delete_cache=(SWEEP_SECONDS, KEEP_SECONDS)) as page:
        heads = " · ".join(f"<b>{escape(run.name)}</b> ({_heads(run)})" for run in runs)
        gr.HTML(f'<div class="app-head"><h1>unetdiff</h1><p>{heads}</p></div>')
        with gr.Tabs():
            segmenters = [run for run in runs if run.segmentation]
            if segmenters:
                with gr.Tab("Segment", id="segment"):
                    _per_run(segmenters, build_segment_tab, "segment")
            denoisers = [run for run in runs if run.generation]
            if denoisers:
                with gr.Tab("Generate", id="generate"):

                    def build(run: AppRun, api: str) -> None:
                        own = run if run.segmentation or not segmenters else segmenters[0]
                        build_generate_tab(run, own if own.segmentation else None, api)

                    _per_run(denoisers, build, "generate")
            if len(runs) > 1:
                with gr.Tab("Compare", id="compare"):
                    build_compare_tab(runs)
        if missing := missing_tabs(runs):
            gr.HTML(html.note(" ".join(missing)), elem_classes="missing-tabs")
    return page


def _per_run(runs: Sequence[AppRun], build: Callable[[AppRun, str], None], api: str) -> None:
    """One run's controls, or a tab for each of several."""
    if len(runs) == 1:
        build(runs[0], api)
        return
    with gr.Tabs():
        for number, run in enumerate(runs, 1):
            with gr.Tab(run.name):
                build(run, f"{api}_{number}")


def _heads(run: AppRun) -> str:
    heads = [name for name, pipeline in (("segmentation", run.segmentation), ("diffusion", run.generation)) if pipeline]
    return " and ".join(heads)


def theme() -> Any:
    """Fonts of the system: nothing is loaded from the web. Boxes to check are seen in the dark, too."""
    own = gr.themes.Default(primary_hue="teal", secondary_hue="teal", neutral_hue="slate", font=SANS, font_mono=MONO)
    return own.set(checkbox_border_color="*neutral_400", checkbox_border_color_dark="*neutral_400")


def launch(page: gr.Blocks, port: int | None = None, share: bool = False) -> str:
    """Serve the page in the background; returns its address.

    Args:
        page: of `build_page`.
        port: None: the first free one from 7860.
        share: also through a public address.

    Raises:
        UserError: the port is not free.
    """
    if port is not None:
        require_free_port(port)
    try:
        _, local, public = page.queue(default_concurrency_limit=8).launch(
            server_name=HOST,
            server_port=port,
            share=share,
            prevent_thread_lock=True,
            quiet=True,
            ssr_mode=False,
            _frontend=False,  # no check of the address, which fails where an answer takes more than three seconds
            enable_monitoring=False,
            footer_links=["settings"],
            theme=theme(),
            css_paths=CSS,
        )
    except OSError:
        raise UserError(f"--port: must be given, as {FIRST_PORT} and the ports after it are in use.") from None
    if share and not public:
        raise UserError("--share: the public address could not be made. Check your connection, or leave it out.")
    return str(public or local)


def serve(page: gr.Blocks, port: int | None = None, share: bool = False, say: Callable[[str], Any] = print) -> None:
    """Serve the page until Ctrl-C. Errors as of `launch`."""
    address = launch(page, port, share)
    say(f"{address.rstrip('/')} (open it in a browser; stop with Ctrl-C)")
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        pass
    finally:
        page.close(verbose=False)
