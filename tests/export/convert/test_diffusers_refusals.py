"""What the other side cannot be is refused by key and value, both ways."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel

from unetdiff.errors import UserError
from unetdiff.export.convert.from_diffusers import CLASSES, IDLE, READ_BY_CLASS, config_from_diffusers
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
    with pytest.raises(UserError, match=f"^here: {key}=something: must be .*$"):
        config_from_diffusers(name, config, "here")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"down_block_types": ["SkipDownBlock2D", "AttnDownBlock2D"]},
            "down_block_types=.*: must be among DownBlock2D, Resnet",
        ),
        (
            {"up_block_types": ["UpBlock2D", "UpBlock2D"]},
            "up_block_types=.*: must be attending at the levels of down_block_types",
        ),
        (
            {"downsample_type": "resnet", "down_block_types": ["AttnDownBlock2D"] * 2},
            "up_block_types=.*: must be attending",
        ),
        ({"downsample_type": "none"}, "downsample_type=none: must be conv or resnet"),
        ({"act_fn": "gelu"}, "act_fn=gelu: must be silu or swish"),
        ({"norm_num_groups": 3}, r"norm_num_groups=3: must be a divisor of every one of block_out_channels \[8, 16\]"),
        ({"norm_num_groups": None}, "norm_num_groups=null: must be one integer of at least 1"),
        ({"attention_head_dim": 12}, "attention_head_dim=12: must be a divisor of .*size of a head"),
        ({"attn_norm_num_groups": 3}, "attn_norm_num_groups=3: must be a divisor of the deepest level's 16 channels"),
        ({"time_embedding_dim": 48}, "time_embedding_dim=48: must be 32, four times the first level's width"),
        ({"class_embed_type": "projection"}, "class_embed_type=projection: must be null or timestep or identity"),
        ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "mid_block_type=.*: must be UNetMidBlock2D or null"),
        ({"resnet_time_scale_shift": "ada_group"}, "resnet_time_scale_shift=ada_group: must be default or scale"),
        ({"block_out_channels": [8, 16, 16]}, "block_out_channels=.*: must be 2 values"),
    ],
)
def test_what_a_plain_network_may_not_say(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        config_from_diffusers("UNet2DModel", {**SMALL, **change}, "here")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"down_block_types": SMALL["down_block_types"]},
            "down_block_types=.*: must be among DownBlock2D, .*CrossAttnDown",
        ),
        ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "mid_block_type=.*: must be UNetMidBlock2DCrossAttn or"),
        ({"cross_attention_dim": [8, 16]}, r"cross_attention_dim=\[8, 16\]: must be one integer"),
        ({"layers_per_block": [1, 2]}, r"layers_per_block=\[1, 2\]: must be one integer"),
        ({"attention_head_dim": [4, 5]}, r"attention_head_dim=\[4, 5\]: must be divisors of .*number of heads"),
        ({"attention_head_dim": 0}, "attention_head_dim=0: must be divisors of .*number of heads"),
        ({"attention_head_dim": [4, 4, 8]}, "attention_head_dim=.*: must be 2 values"),
        (
            {"transformer_layers_per_block": [[1, 2], 1]},
            "transformer_layers_per_block=.*: must be one positive integer, or one",
        ),
        ({"only_cross_attention": [False, True]}, r"only_cross_attention=\[false, true\]: must be false"),
        ({"addition_embed_type": "image"}, "addition_embed_type=image: must be null or text_time"),
        ({"addition_embed_type": "text_time"}, "addition_time_embed_dim=null: must be one integer"),
    ],
)
def test_what_a_told_network_may_not_say(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        config_from_diffusers("UNet2DConditionModel", {**CONDITIONED, **change}, "here")


def test_the_source_is_named_and_keys_unknown_to_diffusers_do_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^from_diffusers: this UNet2DModel: center_input_sample=true"):
        UNet.from_diffusers(UNet2DModel(**SMALL, attention_head_dim=8, center_input_sample=True))
    reference = UNet2DConditionModel(**CONDITIONED)
    assert config_from_diffusers("UNet2DConditionModel", {**reference.config, "made_up": 3}, "here")["in_channels"] == 4


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
            "model.encoder.name=classic: must be residual in diffusers",
        ),
        ({"heads": {"segmentation": {"num_classes": 2}}}, r"heads.diffusion=null: must be a head .*add_head"),
        ({"patch_size": 2}, "model.patch_size=2: must be 1 in diffusers"),
        (
            {"conditioning": {"cross_attention_dim": 8, "pooled_context": True}},
            "conditioning.pooled_context=true: must be false in diffusers",
        ),
        (
            {"encoder": {"channels": [8, 12]}, "residual": {"norm_num_groups": 8}},
            "norm_num_groups=8: must be a divisor .*e.g. 4",
        ),
        (
            {"imported": {"resample": "resnet"}, "conditioning": {"cross_attention_dim": 8}},
            "imported.resample=resnet: must be conv with cross-attention",
        ),
        (
            {"conditioning": {"cross_attention_dim": 8, "attention_levels": [0], "attention_head_dim": 8}},
            "residual.mid_block=resnets: must be attention or resnet with cross-attention",
        ),
        (
            {"residual": {"mid_block": "resnet"}},
            "mid_block=resnet: must be attention or resnets without cross",
        ),
        ({"imported": {"mid_block_attention_groups": 0}}, "mid_block_attention_groups=0: must be null or positive"),
        (
            {"encoder": {"channels": [16, 24]}, "conditioning": {"attention_head_dim": 12}},
            r"attention_head_dim=12: must be one head size .*\[12, 16\]",
        ),
        ({"imported": {"attention_heads": [2, 2]}}, r"attention_heads=\[2, 2\]: must be one head size .*\[4, 8\]"),
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
