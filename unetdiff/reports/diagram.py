"""The network as SVG with the three changes marked: the geometry; `diagram.svg` is the template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from unetdiff.reports.diagram_layout import LevelLayout, place_levels
from unetdiff.reports.network_spec import NetworkSpec
from unetdiff.reports.templates import render


@dataclass
class Drawing:
    """All shapes of the diagram, in user units (1 = 1 CSS pixel at full size)."""

    wide: bool
    width: float
    height: float = 0.0
    panel: tuple[float, float, float, float] = (0, 0, 0, 0)
    layouts: list[LevelLayout] = field(default_factory=list)
    skips: list[dict[str, float | str]] = field(default_factory=list)
    flows: list[tuple[str, bool]] = field(default_factory=list)
    """Paths, and whether each has an arrowhead."""
    inputs: list[dict[str, float | str]] = field(default_factory=list)
    heads: list[dict[str, float | str]] = field(default_factory=list)
    buses: list[dict[str, float | str]] = field(default_factory=list)
    texts: list[dict[str, float | str]] = field(default_factory=list)


def draw_network(
    spec: NetworkSpec,
    wide: bool,
    tiles: Mapping[str, str] | None = None,
    shared: str = "",
    target: str = "noise ε",
) -> str:
    """The network as inline SVG, in the colors of the page.

    Args:
        spec: the network.
        wide: the layout for a screen (1100 units), otherwise for a phone (360 units).
        tiles: data URIs of "image", "noised", "mask", "noise"; missing ones are drawn as patterns.
        shared: size of the backbone, e.g. "1.21 M parameters".
        target: what the diffusion head predicts.
    """
    drawing = lay_out(spec, wide, shared, target)
    return render("diagram.svg", d=drawing, a=spec, tiles=tiles or {}, kind="wide" if wide else "narrow")


def lay_out(spec: NetworkSpec, wide: bool, shared: str = "", target: str = "noise ε") -> Drawing:
    """Compute all shapes of the diagram. See `draw_network`."""
    drawing = Drawing(wide=wide, width=1100.0 if wide else 360.0)
    left, right = (178.0, 782.0) if wide else (24.0, 336.0)
    top = 60.0 if wide else 286.0
    crown = 42.0 if wide else 60.0  # the panel above the first level
    downs, ups, middle = place_levels(spec, left, right, top, wide)
    drawing.layouts = [*downs.values(), middle, *ups.values()]

    lowest = middle.bottom
    _skips(drawing, spec, downs, ups, wide)
    _flows(drawing, downs, ups, middle)
    bus_bottom = _buses(drawing, spec, middle, wide)
    drawing.panel = (left - 18, top - crown, right - left + 36, lowest - top + crown + 20)
    both = spec.num_classes is not None and spec.out_channels is not None
    note = ("backbone, shared by both heads" if wide else "shared by both heads") if both else "backbone"
    note += f": {shared}" if shared else ""
    drawing.texts.append({"x": (left + right) / 2, "y": top - (20 if wide else 38), "text": note, "kind": "note"})
    side = min(downs.values(), key=lambda s: s.x)
    low = top - (20 if wide else 10)
    # in the narrow layout, arrows enter the first levels from above
    ends = (left - 4, right + 4) if wide else (side.right + 2, ups[0].x - 2)
    middle_y = middle.y + middle.height / 2 + 4
    for x, y, name, side_of in (
        (ends[0], low, "encoder", "start"),
        (ends[1], low, "decoder", "end"),
        (middle.right + 12, middle_y, "mid block" if wide else "mid", "start"),
    ):
        drawing.texts.append({"x": x, "y": y, "text": name, "kind": f"name {side_of}"})
    if wide:
        _sides_wide(drawing, spec, side, ups[0], target)
    else:
        _sides_narrow(drawing, spec, side, ups[0], target)
    drawing.height = bus_bottom + 8
    return drawing


def _skips(
    drawing: Drawing, spec: NetworkSpec, downs: dict[int, LevelLayout], ups: dict[int, LevelLayout], wide: bool
) -> None:
    """The skip connections, each with its level's resolution and channels."""
    for index, level in enumerate(spec.levels):
        up = ups[index]
        y = up.y + up.height * (0.34 if wide else 0.42)
        size = f"{level.size}\u00d7{level.size}" if level.size else f"1/{level.stride}"
        size = "full resolution" if not level.size and level.stride == 1 else size
        pair = [c for c in (level.encoder_channels, level.decoder_channels) if c]
        width = f"{pair[0]}" if len(set(pair)) == 1 else " \u2192 ".join(map(str, pair))
        text = f"{size} \u00b7 {width}{' channels' if wide and index == 0 else ''}"
        if index in downs:
            start = downs[index].right
            drawing.skips.append({"x1": start + 3, "x2": up.x - 4, "y": y, "text": text, "tx": (start + up.x) / 2})
        else:
            drawing.texts.append({"x": up.x - 8, "y": y + 4, "text": text, "kind": "level end"})


def _flows(drawing: Drawing, downs: dict[int, LevelLayout], ups: dict[int, LevelLayout], middle: LevelLayout) -> None:
    """The arrows down the encoder, into the mid block, and up the decoder."""
    chain = list(downs.values())
    for above, below in zip(chain, chain[1:], strict=False):
        drawing.flows.append((_elbow_down(above.right, above.bottom - 9, below.center, below.y), True))
    last = chain[-1]
    drawing.flows.append((_elbow_down(last.right, last.bottom - 7, middle.center - middle.width * 0.3, middle.y), True))
    rising = list(ups.values())[::-1]
    start = middle.center + middle.width * 0.3
    drawing.flows.append((_elbow_up(start, middle.y, rising[0].x, rising[0].bottom - 7), True))
    for below, above in zip(rising, rising[1:], strict=False):
        drawing.flows.append((_elbow_up(below.center, below.y, above.x, above.bottom - 9), True))


def _elbow_down(x1: float, y1: float, x2: float, y2: float) -> str:
    r = min(6.0, max(0.0, x2 - x1), max(0.0, y2 - y1))
    return f"M{x1 + 2:.1f} {y1:.1f}H{x2 - r:.1f}Q{x2:.1f} {y1:.1f} {x2:.1f} {y1 + r:.1f}V{y2 - 3:.1f}"


def _elbow_up(x1: float, y1: float, x2: float, y2: float) -> str:
    r = min(6.0, max(0.0, x2 - x1), max(0.0, y1 - y2))
    return f"M{x1:.1f} {y1 - 2:.1f}V{y2 + r:.1f}Q{x1:.1f} {y2:.1f} {x1 + r:.1f} {y2:.1f}H{x2 - 3:.1f}"


def _buses(drawing: Drawing, spec: NetworkSpec, middle: LevelLayout, wide: bool) -> float:
    """The lines of the timestep (to every block) and of the tokens (to every attention). Returns the lowest y."""
    y = middle.bottom + 42
    step = 16.0
    pill_y = y + (2 if spec.timestep and spec.cross_attention_dim else 1) * step + 14
    spans: list[tuple[int, str, list[LevelLayout]]] = []
    if spec.timestep:
        spans.append((1, "timestep", [s for s in drawing.layouts if s.timestep]))
    if spec.cross_attention_dim:
        spans.append((2, "tokens", [s for s in drawing.layouts if s.tokens]))
    center = middle.center if wide else drawing.width / 2
    offset = (132.0 if wide else 86.0) if len(spans) == 2 else 0.0
    for order, (number, kind, stops) in enumerate(spans):
        if not stops:
            continue
        half = 123.0 if wide else 80.0
        pill = min(max(center + (-offset if order == 0 else offset), half + 8), drawing.width - half - 8)
        xs = [stop.timestep_x if number == 1 else stop.tokens_x for stop in stops]
        drawing.buses.append(
            {
                "number": number,
                "kind": kind,
                "y": y + order * step,
                "x1": min(*xs, pill),
                "x2": max(*xs, pill),
                "pill": pill,
                "pill_y": pill_y,
                "pill_width": 2 * half,
            }
        )
    return pill_y + 34 if spans else middle.bottom + 30


def _sides_wide(drawing: Drawing, spec: NetworkSpec, entry: LevelLayout, exit_: LevelLayout, target: str) -> None:
    """Inputs at the left, heads at the right."""
    into, out = entry.y + entry.height / 2, exit_.y + exit_.height / 2
    tile, apart = 80.0, 132.0
    for order, (kind, title, note) in enumerate(_inputs(spec)):
        y = into + order * apart
        drawing.inputs.append({"kind": kind, "x": 24.0, "y": y - tile / 2, "size": tile, "title": title, "note": note})
        if order == 0:
            drawing.flows.append((f"M108 {y:.1f}H{entry.x - 5:.1f}", True))
        else:
            turn = f"Q134 {y:.1f} 134 {y - 8:.1f}V{into + 8:.1f}Q134 {into:.1f} 142 {into:.1f}"
            drawing.flows.append((f"M108 {y:.1f}H126{turn}", False))
    for order, head in enumerate(_heads(spec, target)):
        y = out + order * apart
        if order == 0:
            drawing.flows.append((f"M{exit_.right + 3:.1f} {y:.1f}H829", True))
        else:
            turn = f"Q820 {out:.1f} 820 {out + 8:.1f}V{y - 8:.1f}Q820 {y:.1f} 828 {y:.1f}"
            drawing.flows.append((f"M812 {out:.1f}{turn}H829", True))
        place = {"x": 834.0, "y": y - 33, "width": 132.0, "height": 66.0}
        drawing.heads.append({**head, **place, "tile_x": 996.0, "tile_y": y - tile / 2, "tile": tile})
        drawing.flows.append((f"M968 {y:.1f}H991", True))


def _sides_narrow(drawing: Drawing, spec: NetworkSpec, entry: LevelLayout, exit_: LevelLayout, target: str) -> None:
    """Inputs above the encoder, heads above the decoder."""
    tile, tile_y, join_y = 56.0, 117.0, 204.0
    for order, (kind, title, note) in enumerate(_inputs(spec)):
        x = 10.0 + order * (tile + 14)
        drawing.inputs.append({"kind": kind, "x": x, "y": tile_y, "size": tile, "title": title, "note": note})
        drawing.flows.append((f"M{x + tile / 2:.1f} {tile_y + tile + 4:.1f}V{join_y:.1f}H{entry.center:.1f}", False))
    drawing.flows.append((f"M{entry.center:.1f} {join_y:.1f}V{entry.y - 4:.1f}", True))

    heads = _heads(spec, target)
    for order, head in enumerate(heads):
        x = 352.0 - (len(heads) - order) * 98 + 2
        place = {"x": x, "y": 114.0, "width": 92.0, "height": 62.0}
        drawing.heads.append({**head, **place, "tile_x": x + 18, "tile_y": 24.0, "tile": tile})
        drawing.flows.append((f"M{x + 46:.1f} 112V{24 + tile + 5:.1f}", True))
        drawing.flows.append((f"M{exit_.center:.1f} {join_y:.1f}H{x + 46:.1f}V181", True))
    if heads:
        drawing.flows.append((f"M{exit_.center:.1f} {exit_.y - 3:.1f}V{join_y:.1f}", False))


def _inputs(spec: NetworkSpec) -> list[tuple[str, str, str]]:
    kinds = []
    if spec.num_classes is not None or spec.out_channels is None:
        kinds.append(("image", "image", "to segment"))
    if spec.out_channels is not None:
        kinds.append(("noised", "noisy image", "to denoise"))
    return kinds


def _heads(spec: NetworkSpec, target: str) -> list[dict[str, float | str]]:
    heads: list[dict[str, float | str]] = []
    if spec.num_classes is not None:
        heads.append(
            {
                "kind": "segmentation",
                "tile_kind": "mask",
                "title": "segmentation",
                "line1": spec.segmentation_head,
                "line2": f"\u2192 {spec.num_classes} classes",
                "note": "class per pixel",
            }
        )
    if spec.out_channels is not None:
        heads.append(
            {
                "kind": "diffusion",
                "tile_kind": "noise",
                "title": "diffusion",
                "line1": "3\u00d73 convolution",
                "line2": f"\u2192 {spec.out_channels} channels",
                "note": target,
            }
        )
    return heads
