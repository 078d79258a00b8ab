"""A function mapped over files by threads, with a progress bar."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from unetdiff.console import progress_bar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def map_in_threads(
    function: Callable[[_Item], _Result], items: Sequence[_Item], description: str, progress: bool = True
) -> Iterator[_Result]:
    """`function` of every item, in order. Threads suffice, as decoding releases Python's lock.

    Args:
        function: its exceptions are raised here.
        items: its arguments.
        description: of the progress bar.
        progress: show the bar in a terminal.
    """
    with ThreadPoolExecutor(max_workers=min(16, 2 * (os.cpu_count() or 1))) as pool:
        results = pool.map(function, items)
        yield from progress_bar(results, total=len(items), desc=description, enabled=progress)
