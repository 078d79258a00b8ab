"""The diagrams of docs/three_changes.md are what the example draws."""

from __future__ import annotations

import runpy
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]


def test_the_diagrams_in_docs_are_up_to_date(tmp_path: Path) -> None:
    names = runpy.run_path(str(ROOT / "examples" / "draw_network.py"))
    names["main"](str(tmp_path / "three_changes.svg"))
    page = (ROOT / "docs" / "three_changes.md").read_text(encoding="utf-8")
    for name in ("three_changes.svg", "three_changes_narrow.svg"):
        drawn = (tmp_path / name).read_text(encoding="utf-8")
        assert drawn == (ROOT / "docs" / "images" / name).read_text(encoding="utf-8")
        assert f"images/{name}" in page
        assert "display: none" not in drawn  # an image of its own is shown at every width
        texts = " ".join(ElementTree.fromstring(drawn).itertext())
        assert "segmentation" in texts and "diffusion" in texts and "timestep" in texts
