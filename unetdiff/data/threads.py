"""Files read side by side, with a progress bar."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

_Task = TypeVar("_Task")
_Found = TypeVar("_Found")


def map_in_threads(
    examine: Callable[[_Task], _Found], tasks: Sequence[_Task], what: str, progress: bool = True
) -> Iterator[_Found]:
    """`examine` of every task, in order; decoding runs outside Python's lock, so threads are enough.

    `what` stands before the bar, which is shown in a terminal; `progress=False` shows none. What `examine` raises ends
    it.
    """
    with ThreadPoolExecutor(max_workers=min(16, 2 * (os.cpu_count() or 1))) as pool:
        found = pool.map(examine, tasks)
        yield from tqdm(found, total=len(tasks), desc=what, disable=None if progress else True)
