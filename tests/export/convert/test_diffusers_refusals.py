"""What the other side cannot be is refused by key and value, both ways."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel

from unetdiff.errors import UserError
from unetdiff.export.convert.from_diffusers import CLASSES, IDLE, READ_BY_CLASS, from_theirs
from unetdiff.models.unet import UNet

SMALL: dict[str, Any] = {
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}
CONDITIONED: dict[str, Any] = {
    **SMALL,
    "cross_attention_dim": 8,
    "attention_head_dim": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
}
OTHER_KEYS = [
    (name, parameter.name)
    for name, cls in CLASSES.items()
    for parameter in inspect.signature(cls.__init__).parameters.values()
    if parameter.name not in READ_BY_CLASS[name] | IDLE | {"self"}
]


@pytest.mark.parametrize(("name", "key"), OTHER_KEYS)
def test_a_key_that_is_not_read_must_have_its_default(name: str, key: str) -> None:
    config = {**(SMALL if name == "UNet2DModel" else CONDITIONED), key: "something"}
    with pytest.raises(UserError, match=f"^here: {key} 'something' is not supported; only .* is$"):
        from_theirs(name, config, "here")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"down_block_types": ["SkipDownBlock2D", "AttnDownBlock2D"]}, "down_block_types .*; only DownBlock2D, Resnet"),
        ({"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "up_block_types .*; it must attend where down_block_types"),
        ({"downsample_type": "resnet", "down_block_types": ["AttnDownBlock2D"] * 2}, "up_block_types .* must attend"),
        (
            {"down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"]},
            "down_block_types .*; only one kind of resampling on every level",
        ),
        ({"downsample_type": "none"}, "downsample_type 'none' .*; only 'conv' or 'resnet' is"),
        ({"act_fn": "gelu"}, "act_fn 'gelu' .*; only 'silu' or 'swish' is"),
        ({"norm_num_groups": 3}, r"norm_num_groups 3 .*; it must divide every one of block_out_channels \[8, 16\]"),
        ({"norm_num_groups": None}, "norm_num_groups None .*; only one integer of 1 or more"),
        ({"attention_head_dim": 12}, "attention_head_dim 12 .*; it is the size of a head and must divide"),
        ({"attn_norm_num_groups": 3}, "attn_norm_num_groups 3 .*; it must divide the deepest level's 16 channels"),
        ({"time_embedding_dim": 48}, r"time_embedding_dim 48 .*; only four times the first level's width is \(32\)"),
        ({"class_embed_type": "projection"}, "class_embed_type 'projection' .*; only None or 'timestep' or 'identity'"),
        ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "mid_block_type .*; only 'UNetMidBlock2D' or None is"),
        ({"resnet_time_scale_shift": "ada_group"}, "resnet_time_scale_shift 'ada_group' .*; only 'default' or 'scale"),
        ({"block_out_channels": [8, 16, 16]}, "block_out_channels .*; give 2 values"),
    ],
)
def test_what_a_plain_network_may_not_say(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        from_theirs("UNet2DModel", {**SMALL, **change}, "here")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"down_block_types": SMALL["down_block_types"]}, "down_block_types .*; only DownBlock2D, .*CrossAttnDown"),
        ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "mid_block_type .*; only 'UNetMidBlock2DCrossAttn' or"),
        ({"cross_attention_dim": [8, 16]}, r"cross_attention_dim \[8, 16\] .*; only one integer"),
        ({"layers_per_block": [1, 2]}, r"layers_per_block \[1, 2\] .*; only one integer"),
        ({"attention_head_dim": [4, 5]}, r"attention_head_dim \[4, 5\] .*; it is the number of heads and must divide"),
        ({"attention_head_dim": 0}, "attention_head_dim 0 .*; it is the number of heads and must divide"),
        ({"attention_head_dim": [4, 4, 8]}, "attention_head_dim .*; give 2 values"),
        ({"transformer_layers_per_block": [[1, 2], 1]}, "transformer_layers_per_block .*; only one integer, or one"),
        ({"only_cross_attention": [False, True]}, r"only_cross_attention \[False, True\] .*; only False is"),
        ({"addition_embed_type": "text_time"}, "addition_embed_type 'text_time' .*; only None is"),  # SDXL
    ],
)
def test_what_a_told_network_may_not_say(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        from_theirs("UNet2DConditionModel", {**CONDITIONED, **change}, "here")


def test_the_source_is_named_and_keys_unknown_to_diffusers_do_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^from_diffusers: this UNet2DModel: center_input_sample True"):
        UNet.from_diffusers(UNet2DModel(**SMALL, attention_head_dim=8, center_input_sample=True))
    theirs = UNet2DConditionModel(**CONDITIONED)
    assert from_theirs("UNet2DConditionModel", {**theirs.config, "made_up": 3}, "here")["in_channels"] == 4


OURS: dict[str, Any] = {
    "encoder": {"channels": [8, 16]},
    "residual": {"norm_num_groups": 4, "layers_per_block": 1},
    "conditioning": {"attention_head_dim": 8},
    "heads": {"diffusion": {"out_channels": 3}},
}


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        (
            {"encoder": {"name": "classic", "channels": [8, 16]}},
            "encoder.name 'classic' .*; its networks are our fam",
        ),
        ({"heads": {"segmentation": {"num_classes": 2}}}, r"heads.diffusion None .*; .*add_head\(\"diffusion\"\)"),
        ({"patch_size": 2}, "patch_size 2 .*; train with model.patch_size 1"),
        (
            {"conditioning": {"cross_attention_dim": 8, "pooled_context": True}},
            "conditioning.pooled_context True .*; train with model.conditioning.pooled_context false",
        ),
        ({"encoder": {"channels": [8, 12]}, "residual": {"norm_num_groups": 8}}, "norm_num_groups 8 .*; train with 4"),
        (
            {"residual": {"resample": "resnet"}, "conditioning": {"cross_attention_dim": 8}},
            "residual.resample 'resnet' .*; with cross-attention train with model.residual.resample conv",
        ),
        (
            {"conditioning": {"cross_attention_dim": 8, "attention_levels": [0], "attention_head_dim": 8}},
            "residual.mid_block 'resnets' .*; with cross-attention train with model.residual.mid_block attention or resnet",
        ),
        ({"residual": {"middle": "resnet"}}, "residual.mid_block 'resnet' .*; without cross-attention .* or resnets"),
        ({"residual": {"middle_attention_groups": 0}}, "middle_attention_groups 0 .*; without time_scale_shift"),
        (
            {"encoder": {"channels": [16, 24]}, "conditioning": {"attention_head_dim": 12}},
            r"attention_head_dim 12 .*; the heads have \[12, 16\] channels",
        ),
        ({"residual": {"attention_heads": [2, 2]}}, r"attention_heads \[2, 2\] .*; the heads have \[4, 8\] channels"),
    ],
)
def test_what_diffusers_cannot_say(sections: dict[str, Any], says: str, tmp_path: Path) -> None:
    config = {**OURS, **sections}
    config["residual"] = {**OURS["residual"], **sections.get("residual", {})}
    with torch.device("meta"):
        unet = UNet(**config)
    with pytest.raises(UserError, match=f"^to_diffusers: .*{says}"):
        unet.to_diffusers(tmp_path)
    assert list(tmp_path.iterdir()) == []
