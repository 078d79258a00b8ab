"""Arrays as numpy's compressed files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unetdiff.files.writing import write_file


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write named arrays as a compressed .npz, atomically.

    Raises:
        OSError: e.g. a full disk; the old file stays.
    """

    def write(aside: Path) -> None:
        with aside.open("wb") as file:  # numpy would append its suffix to a name
            np.savez_compressed(file, allow_pickle=False, **arrays)

    write_file(path, write)
