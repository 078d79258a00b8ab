"""The drawing shows the network of the config: checked against the maps of the real network."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
import torch

from unetdiff.models.unet import UNet
from unetdiff.reports.diagram import draw_network, lay_out
from unetdiff.reports.network_spec import read_network_spec

BOTH = {"segmentation": {"num_classes": 11}, "diffusion": {"out_channels": 3}}
CONFIGS = {
    "residual": {"encoder": {"channels": [8, 16, 24]}, "conditioning": {"cross_attention_dim": 16}, "heads": BOTH},
    "deep": {
        "encoder": {"channels": [8, 8, 16, 16]},
        "residual": {"layers_per_block": 1, "mid_block": "resnet"},
        "conditioning": {"attention_levels": [0, 2], "attention_head_dim": 8},
        "heads": {"diffusion": {"out_channels": 3}},
    },
    "attends below": {
        "encoder": {"channels": [8, 16]},
        "residual": {"layers_per_block": 1, "mid_block": "attention"},
        "conditioning": {"attention_levels": [0], "attention_head_dim": 8},
        "heads": {"diffusion": {"out_channels": 3}},
    },
    "no mid block": {
        "encoder": {"channels": [8, 16]},
        "residual": {"layers_per_block": 1, "mid_block": "none"},
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
    spec = read_network_spec(config, sample_size=64)
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
    drawn_down = {level.size: level.encoder_channels for level in spec.levels if level.encoder_layers}
    drawn_up = {level.size: level.decoder_channels for level in spec.levels}
    bottom = {spec.mid_block_size: spec.mid_block_channels}  # a trunk's deepest level is drawn as the middle
    assert {size: channels for size, (channels, _) in down.items()} == (
        {**drawn_down, **bottom} if "resnet" in name or "convnext" in name else drawn_down
    )
    assert {size: channels for size, (channels, _) in up.items()} == drawn_up
    if spec.name == "residual":
        assert spec.mid_block_layers == len(unet.mid_block.resnets)
        for level in spec.levels:
            assert level.decoder_layers == up[level.size or 0][1]
    assert maps["mid_block"].shape[1:3] == (spec.mid_block_channels, spec.mid_block_size)
    attended = [key for key in unet.state_dict() if key.endswith("to_q.weight")]
    assert bool(attended) == (any(level.attention for level in spec.levels) or spec.mid_block_attention)
    deepest = "encoder.attentions.5" if name == "resnet18" else "mid_block"
    assert spec.mid_block_attention == any(key.startswith(deepest) for key in attended)


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_drawing_is_whole_and_inside_its_frame(name, wide):
    spec = read_network_spec(CONFIGS[name], sample_size=64)
    drawing = lay_out(spec, wide)
    tree = ElementTree.fromstring(draw_network(spec, wide))
    assert tree.get("viewBox") == f"0 0 {drawing.width:.0f} {drawing.height:.0f}"
    for place in drawing.layouts:
        assert place.x > 0 and place.right < drawing.width and place.bottom < drawing.height
    left, right = zip(*((s.x, s.right) for s in sorted(drawing.layouts, key=lambda s: s.x)), strict=True)
    assert all(end < start for end, start in zip(right, left[1:], strict=False)), "blocks stand on each other"
    for bus in drawing.buses:
        half = float(bus["pill_width"]) / 2
        assert float(bus["pill"]) - half > 0 and float(bus["pill"]) + half < drawing.width


def badges(svg: str) -> list[str]:
    return [e.text or "" for e in ElementTree.fromstring(svg).iter() if e.get("class") == "badge-text"]


def test_the_three_changes_are_marked_where_they_are():
    assert badges(draw_network(read_network_spec(CONFIGS["residual"]), True)) == ["1", "2", "3"]
    assert badges(draw_network(read_network_spec(CONFIGS["deep"]), True)) == ["1", "3"]
    assert badges(draw_network(read_network_spec(CONFIGS["classic"]), False)) == []


def test_the_timestep_stops_everywhere_and_the_tokens_at_attention():
    drawing = lay_out(read_network_spec(CONFIGS["residual"]), True)
    assert all(place.timestep for place in drawing.layouts)
    # levels 1 and 2 on both sides, and the middle
    assert [place.tokens for place in drawing.layouts] == [False, True, True, True, False, True, True]


def test_text_follows_the_config():
    svg = draw_network(read_network_spec(CONFIGS["residual"], sample_size=32), True, shared="12 weights")
    for text in ("32×32 · 8 channels", "16×16 · 16", "8×8 · 24", "11 classes", "3 channels", "12 weights"):
        assert text in svg


def test_the_segmentation_head_is_drawn_as_it_is():
    heads = {"segmentation": {"num_classes": 11, "pyramid": 96}}
    for config, words in (
        (CONFIGS["classic"], "1×1 convolution"),
        ({**CONFIGS["residual"], "heads": heads}, "feature pyramid"),
    ):
        drawing = draw_network(read_network_spec(config, 64), True)
        assert words in drawing
    assert "1×1" not in drawing
