"""The Python examples of the README and of docs/ run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch

ROOT = Path(__file__).parents[1]


def run(page: str, section: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run a section's Python in an empty folder; the names that it leaves."""
    found = re.search(rf"## {section}\n.*?```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert found
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(compile(found[1], page, "exec"), names)
    return names


def test_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run("README.md", "In Python", tmp_path, monkeypatch)
    assert names["noise"].shape == (1, 3, 64, 64) and set(names["unet"].heads) == {"segmentation", "diffusion"}


def test_experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run("docs/experiments.md", "Your own", tmp_path, monkeypatch)
    # (0.81 + 0.84 + 0.83) / 3 = 0.82667 against (0.80 + 0.79 + 0.83) / 3 = 0.80667
    assert names["record"].findings == ["Horizontal flips improve pixel accuracy by 2.0 points (3 seeds)."]
    assert names["record"].findings[0] in names["page"].read_text()


def test_interop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run("docs/interop.md", "In Python", tmp_path, monkeypatch)
    assert names["logits"].shape == (1, 21, 32, 32) and len(names["images"]) == 2


def test_from_smp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(smp.Unet("resnet18", encoder_weights=None, classes=3).state_dict(), tmp_path / "best.pth")
    run("docs/interop.md", "From segmentation_models_pytorch", tmp_path, monkeypatch)
    assert (tmp_path / "mine" / "segmentation.json").is_file()
