"""Reading metrics.jsonl."""

from __future__ import annotations

from pathlib import Path

import pytest

from unetdiff.errors import UserError
from unetdiff.training.logger import read_lines


def test_a_cut_line_ends_the_reading(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    one, two = '{"kind": "train", "step": 1}', '{"kind": "train", "step": 2}'
    file.write_text(f'{one}\n\n{two}\n{{"st')
    assert [line["step"] for line in read_lines(file)] == [1, 2]


@pytest.mark.parametrize(
    "line", ['{"st', "[]", '{"step": 1}', '{"kind": "train", "step": -1}', '{"kind": 1, "step": 1}']
)
def test_b8_a_line_that_is_wrong_is_refused(tmp_path: Path, line: str) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(f'{{"kind": "train", "step": 1}}\n{line}\n{{"kind": "train", "step": 3}}\n')
    with pytest.raises(UserError, match="(line|entry) 2: must .* Remove"):
        read_lines(file)
