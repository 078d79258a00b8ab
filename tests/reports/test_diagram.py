"""The drawing shows the network of the config: checked against the maps of the real network."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
import torch

from unetdiff.models.unet import UNet
from unetdiff.reports.diagram import draw_network, lay_out
from unetdiff.reports.network_spec import read_anatomy

BOTH = {"segmentation": {"num_classes": 11}, "diffusion": {"out_channels": 3}}
CONFIGS = {
    "residual": {"encoder": {"channels": [8, 16, 24]}, "conditioning": {"cross_attention_dim": 16}, "heads": BOTH},
    "deep": {
        "encoder": {"channels": [8, 8, 16, 16]},
        "residual": {"layers_per_block": 1, "middle": "resnet"},
        "conditioning": {"attention_levels": [0, 2], "attention_head_dim": 8},
        "heads": {"diffusion": {"out_channels": 3}},
    },
    "attends below": {
        "encoder": {"channels": [8, 16]},
        "residual": {"layers_per_block": 1, "middle": "attention"},
        "conditioning": {"attention_levels": [0], "attention_head_dim": 8},
        "heads": {"diffusion": {"out_channels": 3}},
    },
    "no middle": {
        "encoder": {"channels": [8, 16]},
        "residual": {"layers_per_block": 1, "middle": "none"},
        "heads": {"diffusion": {"out_channels": 3}},
    },
    "classic": {
        "encoder": {"name": "classic", "channels": [4, 8, 16, 32]},
        "decoder": {"channels": [12, 8, 6]},
        "heads": {"segmentation": {"num_classes": 2}},
    },
    "resnet18": {
        "encoder": {"name": "resnet18"},
        "decoder": {"channels": [16, 16, 8, 8, 8]},
        "conditioning": {"cross_attention_dim": 16},
        "heads": BOTH,
    },
    "convnext_tiny": {"encoder": {"name": "convnext_tiny"}, "heads": {"segmentation": {"num_classes": 2}}},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_levels_are_those_of_the_real_network(name):
    config = CONFIGS[name]
    anatomy = read_anatomy(config, sample_size=64)
    unet = UNet(**config).eval()
    with torch.no_grad():
        maps = unet.features(torch.zeros(1, 3, 64, 64))
    down: dict[int, tuple[int, int]] = {}
    up: dict[int, tuple[int, int]] = {}
    for key, value in maps.items():
        part, _, level = key.partition(".")
        if part in ("encoder", "decoder"):
            side = down if part == "encoder" else up
            side[value.shape[-1]] = (value.shape[1], side.get(value.shape[-1], (0, 0))[1] + 1)
    drawn_down = {level.size: level.encoder_channels for level in anatomy.levels if level.encoder_layers}
    drawn_up = {level.size: level.decoder_channels for level in anatomy.levels}
    bottom = {anatomy.middle_size: anatomy.middle_channels}  # a trunk's deepest level is drawn as the middle
    assert {size: channels for size, (channels, _) in down.items()} == (
        {**drawn_down, **bottom} if "resnet" in name or "convnext" in name else drawn_down
    )
    assert {size: channels for size, (channels, _) in up.items()} == drawn_up
    if anatomy.name == "residual":
        assert anatomy.middle_layers == len(unet.mid_block.resnets)
        for level in anatomy.levels:
            assert level.decoder_layers == up[level.size or 0][1]
    assert maps["middle"].shape[1:3] == (anatomy.middle_channels, anatomy.middle_size)
    attended = [key for key in unet.state_dict() if key.endswith("to_q.weight")]
    assert bool(attended) == (any(level.attention for level in anatomy.levels) or anatomy.middle_attention)
    deepest = "encoder.attentions.5" if name == "resnet18" else "middle"
    assert anatomy.middle_attention == any(key.startswith(deepest) for key in attended)


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_drawing_is_whole_and_inside_its_frame(name, wide):
    anatomy = read_anatomy(CONFIGS[name], sample_size=64)
    drawing = lay_out(anatomy, wide)
    tree = ElementTree.fromstring(draw_network(anatomy, wide))
    assert tree.get("viewBox") == f"0 0 {drawing.width:.0f} {drawing.height:.0f}"
    for station in drawing.stations:
        assert station.x > 0 and station.right < drawing.width and station.bottom < drawing.height
    left, right = zip(*((s.x, s.right) for s in sorted(drawing.stations, key=lambda s: s.x)), strict=True)
    assert all(end < start for end, start in zip(right, left[1:], strict=False)), "blocks stand on each other"
    for bus in drawing.buses:
        half = float(bus["pill_width"]) / 2
        assert float(bus["pill"]) - half > 0 and float(bus["pill"]) + half < drawing.width


def badges(svg: str) -> list[str]:
    return [e.text or "" for e in ElementTree.fromstring(svg).iter() if e.get("class") == "badge-text"]


def test_the_three_changes_are_marked_where_they_are():
    assert badges(draw_network(read_anatomy(CONFIGS["residual"]), True)) == ["1", "2", "3"]
    assert badges(draw_network(read_anatomy(CONFIGS["deep"]), True)) == ["1", "3"]
    assert badges(draw_network(read_anatomy(CONFIGS["classic"]), False)) == []


def test_the_timestep_stops_everywhere_and_the_tokens_at_attention():
    drawing = lay_out(read_anatomy(CONFIGS["residual"]), True)
    assert all(station.timestep for station in drawing.stations)
    # levels 1 and 2 on both sides, and the middle
    assert [station.tokens for station in drawing.stations] == [False, True, True, True, False, True, True]


def test_text_follows_the_config():
    svg = draw_network(read_anatomy(CONFIGS["residual"], sample_size=32), True, shared="12 weights")
    for text in ("32×32 · 8 channels", "16×16 · 16", "8×8 · 24", "11 classes", "3 channels", "12 weights"):
        assert text in svg
