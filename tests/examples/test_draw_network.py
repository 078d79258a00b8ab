"""The diagram of docs/three_changes.md is what the example draws."""

from __future__ import annotations

import runpy
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]


def test_the_diagram_in_docs_is_up_to_date(tmp_path: Path) -> None:
    names = runpy.run_path(str(ROOT / "examples" / "draw_network.py"))
    names["main"](str(tmp_path / "drawing.svg"))
    drawn = (tmp_path / "drawing.svg").read_text(encoding="utf-8")
    assert drawn == (ROOT / "docs" / "images" / "three_changes.svg").read_text(encoding="utf-8")
    texts = " ".join(ElementTree.fromstring(drawn).itertext())
    assert "segmentation" in texts and "diffusion" in texts and "timestep" in texts
