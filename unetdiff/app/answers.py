"""Errors of an event as messages on the page: the texts of the command line, and nothing crashes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder
from torch import Tensor

from unetdiff.app import html
from unetdiff.app.segmenting import Source
from unetdiff.errors import UserError, is_out_of_memory, printable
from unetdiff.files.writing import remove_tree
from unetdiff.segmentation.inference import load_image
from unetdiff.segmentation.pipeline import SegmentationPipeline

TOAST_SECONDS = 15
"""How long a message stays that has no place of its own on the page."""


@dataclass(frozen=True)
class Rejected:
    """A file that was dropped and could not be read."""

    message: str


def message_of(error: Exception) -> str:
    """What the page says of a UserError, and of running out of memory; raises any other error again."""
    if isinstance(error, UserError):
        return printable(str(error))
    if is_out_of_memory(error):
        return "out of memory. Use a smaller image, tiles, or fewer images at once."
    raise error


def problem(message: str = "") -> Any:
    """The place of a message, or what it is updated to: hidden without one."""
    return gr.HTML(html.error(message), visible=bool(message))


def answered(function: Callable[..., Any]) -> Callable[..., Any]:
    """An event's function whose errors (`message_of`) are shown for a while on top of the page."""
    return _answering(function, _toast)


def answered_in_place(show: Callable[[str], Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """As `answered`, with the message in place of the result, which would seem to be that of the new input.

    show: the event's outputs for a message.
    """
    return lambda function: _answering(function, show)


def _answering(function: Callable[..., Any], answer: Callable[[str], Any]) -> Callable[..., Any]:
    if inspect.isgeneratorfunction(function):

        @wraps(function)
        def generator(*args: Any, **kwargs: Any) -> Any:
            try:
                yield from function(*args, **kwargs)
            except Exception as error:
                yield answer(message_of(error))

        return generator

    @wraps(function)
    def plain(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            return answer(message_of(error))

    return plain


def _toast(message: str) -> Any:
    raise gr.Error(message, duration=TOAST_SECONDS, print_exception=False) from None


def read_source(path: str | None, pipeline: SegmentationPipeline | None = None) -> Source | Rejected:
    """An uploaded file, or why it cannot be read, as `read_upload`."""
    try:
        return Source(read_upload(path, pipeline), Path(str(path)).name)
    except Exception as error:
        return Rejected(message_of(error))


def read_upload(path: str | None, pipeline: SegmentationPipeline | None = None) -> Tensor:
    """An uploaded file as `predict` reads it, uint8 (C, H, W), the channels of a segmenter or RGB; it is not kept.

    Raises:
        UserError: the same as of `predict`, with the upload's own name in the place of its temporary path.
    """
    if path is None:
        raise UserError("image: must be given. Drop one, or choose one of the validation set.")
    try:
        return load_image(Path(path)) if pipeline is None else pipeline.load_image(Path(path))
    except UserError as error:
        raise UserError(str(error).replace(path, Path(path).name)) from None
    finally:
        if Path(path).is_relative_to(get_upload_folder()):
            remove_tree(Path(path))
