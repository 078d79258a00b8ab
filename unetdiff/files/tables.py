"""Tables as CSV files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from unetdiff.files.writing import write_text


def write_table(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write rows of cells, the header first, as CSV, atomically; None and nan become empty cells.

    Raises:
        OSError: e.g. a full disk; the old file stays.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    for row in rows:
        writer.writerow(["" if cell is None or cell != cell else cell for cell in row])
    write_text(path, text.getvalue())
