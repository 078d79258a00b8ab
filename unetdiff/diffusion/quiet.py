"""Without the warnings of diffusers and transformers, where a message of ours says the same or nothing is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def errors_only(logging: Any) -> Iterator[None]:
    """Errors of a library alone inside; `logging` is `diffusers.utils.logging` or `transformers.utils.logging`."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
