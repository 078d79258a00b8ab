"""The README's Python example runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


def test_python_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text()
    found = re.search(r"## In Python\n\n```python\n(.*?)```", text, re.DOTALL)
    assert found
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(found[1], "README.md", "exec"), names)
    assert names["noise"].shape == (1, 3, 64, 64) and set(names["unet"].heads) == {"segmentation", "diffusion"}
