"""The tutorials: every code block runs, in order, with the smaller numbers that the page itself lists."""

from __future__ import annotations

import re
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from suite.stable_diffusion import write_stable_diffusion
from unetdiff.cli.main import main
from unetdiff.reports import report
from unetdiff.reports.samples import Budget

TUTORIALS = Path(__file__).parents[2] / "docs" / "tutorials"
WRITTEN = {
    "segmenter": [
        "digits.yaml",
        "runs/digits/best/segmentation.json",
        "runs/digits/evaluation-val/metrics.json",
        "predictions/masks/00000.png",
        "predictions/overlays/00000.png",
    ],
    "denoiser": ["numerals.yaml", "runs/numerals/evaluation-val/metrics.json", "samples/grid.png", "three.png"],
    "stable_diffusion_segmenter": [
        "runs/digits-sd/best/unet/segmentation_head.safetensors",
        "runs/digits-sd/evaluation-val/metrics.json",
        "predictions/masks/00000.png",
    ],
    "two_heads": ["two_heads.html", "pretraining.html", "runs/joint/best/segmentation.json"],
}
"""Files that each tutorial leaves."""
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\| `([^`]+)` \| `([^`]+)` \|$", re.MULTILINE)


def blocks(page: str) -> list[tuple[str, str, str]]:
    """(language, title, code) of every block, with the replacements of the page's section "Tested"."""
    text, _, tested = (TUTORIALS / f"{page}.md").read_text(encoding="utf-8").partition("\n## Tested\n")
    found = BLOCK.findall(text)
    assert len(found) == len(re.findall(r"^```\w", text, re.MULTILINE)), "a block that the test does not read"
    replacements = ROW.findall(tested)
    for old, _ in replacements:
        assert any(old in code for _, _, code in found), f"{old}: is in no block"
    for old, new in sorted(replacements, key=lambda pair: -len(pair[0])):  # all at once, the longest first
        found = [(language, title, code.replace(old, new)) for language, title, code in found]
    return found


def run(language: str, title: str, code: str, names: dict[str, Any]) -> None:
    """Run one block; `names` are those of the Python blocks before."""
    if language == "python":
        exec(compile(code, title or "python", "exec"), names)
    elif language == "yaml" and title:
        Path(title).write_text(code, encoding="utf-8")
    elif language == "bash":
        for line in filter(None, code.replace("\\\n", " ").splitlines()):
            words = shlex.split(line, comments=True)
            assert words[0] == "unetdiff", f"only unetdiff is run here: {line}"
            assert main(words[1:]) == 0, line
    else:
        assert language == "text", f"a block of {language}"  # what a command prints


def test_every_tutorial_is_run() -> None:
    assert set(WRITTEN) == {path.stem for path in TUTORIALS.glob("*.md")}


@pytest.mark.parametrize("page", WRITTEN)
def test_tutorial(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNETDIFF_NO_BAR", "1")
    monkeypatch.setattr(report, "Budget", partial(Budget, images=10, steps=2, classifier_steps=3))
    if page == "stable_diffusion_segmenter":
        write_stable_diffusion(tmp_path / "stable-diffusion")
    names: dict[str, Any] = {}
    for block in blocks(page):
        run(*block, names)
    missing = [name for name in WRITTEN[page] if not (tmp_path / name).is_file()]
    assert not missing, sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*"))
