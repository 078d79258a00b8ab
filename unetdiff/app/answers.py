"""Errors of an event as messages on the page: the texts of the command line, and nothing crashes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder
from torch import Tensor

from unetdiff.errors import UserError, is_out_of_memory, printable
from unetdiff.files.writing import remove_tree
from unetdiff.segmentation.inference import load_image
from unetdiff.segmentation.pipeline import SegmentationPipeline


def shown(message: str) -> gr.Error:
    """The message as the page shows it, without a traceback in the terminal."""
    return gr.Error(printable(message), duration=None, print_exception=False)


@contextmanager
def _answers() -> Iterator[None]:
    """UserErrors, and running out of memory, as messages."""
    try:
        yield
    except UserError as error:
        raise shown(str(error)) from None
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise shown("out of memory. Use a smaller image, tiles, or fewer images at once.") from None


def answered(function: Callable[..., Any]) -> Callable[..., Any]:
    """An event's function whose UserErrors, and running out of memory, are answered by a message."""
    if inspect.isgeneratorfunction(function):

        @wraps(function)
        def generator(*args: Any, **kwargs: Any) -> Any:
            with _answers():
                yield from function(*args, **kwargs)

        return generator

    @wraps(function)
    def plain(*args: Any, **kwargs: Any) -> Any:
        with _answers():
            return function(*args, **kwargs)

    return plain


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
