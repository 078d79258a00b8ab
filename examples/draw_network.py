"""Draw a U-Net with its three changes marked, as the comparison page does, into an SVG file of its own, and into one
more for the width of a phone.

python examples/draw_network.py docs/images/three_changes.svg
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

from unetdiff.reports.diagram import draw_network
from unetdiff.reports.network_spec import read_network_spec

# the 2015 network with both heads; any `model:` section or config.json of a UNet works
MODEL: dict[str, Any] = {
    "encoder": {"name": "classic", "channels": [32, 64, 128]},
    "conditioning": {"cross_attention_dim": 64},
    "heads": {"segmentation": {"num_classes": 11}, "diffusion": {"out_channels": 3}},
}


def standalone_svg(model: dict[str, Any], size: int = 32, wide: bool = True) -> str:
    """The drawing of a network for images of `size` pixels a side, with the page's style sheet in it; not `wide`: for a
    phone."""
    svg = draw_network(read_network_spec(model, size), wide)
    style = files("unetdiff.reports").joinpath("page.css").read_text(encoding="utf-8")
    colors = style.partition("\n* {")[0]  # light, and dark where the reader prefers it
    own = (line for line in style.splitlines() if line.startswith(".net") and "display: none" not in line)
    rules = "\n".join(own)
    head, body = svg.split(">", 1)
    head = head.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    ground = '<rect width="100%" height="100%" style="fill: var(--paper)"/>'
    return f"{head}>\n<style>\n{colors}\n{rules}\n</style>\n{ground}{body}"


def main(output: str = "three_changes.svg") -> None:
    wide = Path(output)
    narrow = wide.with_stem(f"{wide.stem}_narrow")
    wide.write_text(standalone_svg(MODEL), encoding="utf-8")
    narrow.write_text(standalone_svg(MODEL, wide=False), encoding="utf-8")
    print(f"wrote {wide} and {narrow}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
