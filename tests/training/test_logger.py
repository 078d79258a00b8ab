"""Reading metrics.jsonl."""

from __future__ import annotations

from pathlib import Path

import pytest

from unetdiff.errors import UserError
from unetdiff.training.logger import read_lines


def test_a_cut_line_ends_the_reading_or_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n\n{"step": 2}\n{"st')
    assert read_lines(file) == [{"step": 1}]
    assert read_lines(file, strict=True) == [{"step": 1}, {"step": 2}]
    file.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    assert read_lines(file) == [{"step": 1}]
    with pytest.raises(UserError, match="line 2: not valid JSON .* Remove the line"):
        read_lines(file, strict=True)
