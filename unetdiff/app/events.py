"""How the page's events run, and buttons that make a file when they are pressed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

NETWORK: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "network"}
"""Of every event that computes with a network: one at a time, since its speed is that of the whole machine."""
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""Of events that take no time."""


def download_buttons(key: str, what: str) -> Callable[[Callable[..., Any], Sequence[Any]], None]:
    """A button "Download WHAT" whose file is made when it is pressed.

    Returns:
        A function that connects it: (function that returns the file's path or None, its inputs).
    """
    button = gr.Button(f"Download {what}", size="sm", min_width=140)
    link = gr.DownloadButton(elem_id=f"download-{key}", elem_classes="file-link")

    def connect(function: Callable[..., Any], inputs: Sequence[Any]) -> None:
        button.click(function, list(inputs), link, **QUIET).success(None, js=_pressing(key))

    return connect


def _pressing(key: str) -> str:
    """JavaScript that presses the hidden link once it has its file."""
    return f"""() => setTimeout(() => {{
        const link = document.querySelector("#download-{key}");
        const anchor = link && (link.closest("a") || link.querySelector("a") || link);
        if (anchor) anchor.click();
    }}, 50)"""
