"""Stable Diffusion XL's and Latent Consistency Models' conditions, and resampling that differs by level: both ways, in
float64, so that a difference is not rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import Tensor

from unetdiff.errors import UserError
from unetdiff.export.convert.from_diffusers import config_from_diffusers
from unetdiff.export.convert.to_diffusers import config_to_diffusers
from unetdiff.models.loading import plain
from unetdiff.models.resolve import parse, resolve
from unetdiff.models.unet import UNet

DIM, TEXT, SIZES = 12, 10, 4
SMALL: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (8, 16, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
CONDITION = {
    **SMALL,
    "cross_attention_dim": DIM,
    "attention_head_dim": (1, 2, 4),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
XL = {
    **CONDITION,
    "transformer_layers_per_block": (1, 1, 2),
    "use_linear_projection": True,
    "upcast_attention": None,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": SIZES,
    "projection_class_embeddings_input_dim": TEXT + 6 * SIZES,
}
MIXED_PLAIN = {
    **SMALL,
    "attention_head_dim": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}
NETWORKS: dict[str, tuple[type, dict[str, Any]]] = {
    "sdxl": (UNet2DConditionModel, XL),
    "sdxl_sines_first": (UNet2DConditionModel, {**XL, "flip_sin_to_cos": False, "freq_shift": 1}),
    "lcm": (UNet2DConditionModel, {**CONDITION, "time_cond_proj_dim": 6}),
    "lcm_sdxl": (UNet2DConditionModel, {**XL, "time_cond_proj_dim": 6}),
    "attention_by_resnet": (UNet2DModel, {**MIXED_PLAIN, "downsample_type": "resnet"}),
    "up_by_resnet": (UNet2DModel, {**MIXED_PLAIN, "upsample_type": "resnet"}),
    "names": (
        UNet2DModel,
        {
            **MIXED_PLAIN,
            "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        },
    ),
    "condition": (
        UNet2DConditionModel,
        {**CONDITION, "down_block_types": ("ResnetDownsampleBlock2D", *CONDITION["down_block_types"][1:])},
    ),
}


def inputs(cls: type, config: dict[str, Any]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    given: dict[str, Any] = {"sample": noise(2, 4, 8, 12), "timestep": torch.tensor([3, 700])}
    if cls is UNet2DConditionModel:
        given["encoder_hidden_states"] = noise(2, 5, DIM)
    if config.get("time_cond_proj_dim"):
        given["timestep_cond"] = noise(2, 6)
    if config.get("addition_embed_type"):
        sizes = torch.tensor([[512, 640, 0, 16, 512, 512], [64, 64, 0, 0, 512, 640]])
        given["added_cond_kwargs"] = {"text_embeds": noise(2, TEXT), "time_ids": sizes}
    return given


@pytest.mark.parametrize("name", NETWORKS)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    cls, config = NETWORKS[name]
    torch.manual_seed(0)
    reference = cls(**config).double().eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    unet = UNet.from_diffusers(reference)
    given = inputs(cls, config)
    with torch.no_grad():
        expected = reference(**given).sample
        torch.testing.assert_close(unet(**given).sample, expected, rtol=0, atol=1e-6)
        unet.to_diffusers(tmp_path)
        again = cls.from_pretrained(tmp_path, torch_dtype=torch.float64)
        torch.testing.assert_close(again(**given).sample, expected, rtol=0, atol=1e-6)
    assert UNet.from_diffusers(tmp_path).config == unet.config
    unet.save_pretrained(tmp_path / "ours")
    assert UNet.from_pretrained(tmp_path / "ours").config["imported"] == unet.config["imported"]


def test_the_real_sizes_of_stable_diffusion_xl() -> None:
    config = {
        **XL,
        "block_out_channels": (320, 640, 1280),
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "sample_size": 128,
    }
    with torch.device("meta"):
        unet = UNet(**config_from_diffusers("UNet2DConditionModel", config, "SDXL"))
    assert sum(parameter.numel() for parameter in unet.parameters()) == 2_567_463_684
    assert sum(unet.parameter_counts().values()) == 2_567_463_684


@pytest.fixture(scope="module")
def xl() -> UNet:
    return UNet.from_diffusers(UNet2DConditionModel(**XL))


@pytest.mark.parametrize(
    ("added", "says"),
    [
        (None, r"must be text_embeds and time_ids, as of imported.addition_embed_type=text_time \(got \[\]\)"),
        ({"text_embeds": 1, "image_embeds": 1}, r"got \[text_embeds, image_embeds\]\). Image prompts .* not supported"),
        (
            {"text_embeds": torch.zeros(1, TEXT), "time_ids": torch.zeros(1, 5)},
            r"with D \+ 4 N = 34 \(got \(1, 10\) and \(1, 5\)\)",
        ),
    ],
)
def test_an_added_condition_that_does_not_fit(xl: UNet, added: Any, says: str) -> None:
    with pytest.raises(UserError, match=f"added_cond_kwargs: .*{says}"):
        xl(torch.zeros(1, 4, 8, 8), 0, added_cond_kwargs=added)


OURS: dict[str, Any] = {
    "encoder": {"channels": [8, 16, 16]},
    "residual": {"norm_num_groups": 4},
    "conditioning": {"attention_head_dim": 8, "attention_levels": [0, 1]},
    "heads": {"diffusion": {}},
}


@pytest.mark.parametrize(
    ("imported", "says"),
    [
        ({"time_cond_proj_dim": 4}, "imported.time_cond_proj_dim=4: must be null without cross-attention in diffusers"),
        ({"resnet_downsample_levels": [0]}, r"resnet_downsample_levels=\[0\]: must be all or none of the attending"),
    ],
)
def test_what_diffusers_cannot_say(imported: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        config_to_diffusers(resolve(parse(**OURS, imported=imported)))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            {"imported": {"resnet_downsample_levels": [2]}},
            r"resnet_downsample_levels=\[2\]: must be .* levels \[0, 1\]",
        ),
        ({"imported": {"resnet_upsample_levels": [0]}}, r"resnet_upsample_levels=\[0\]: must be .* levels \[1, 2\]"),
        ({"imported": {"addition_embed_type": "text_time"}}, "addition_time_embed_dim=null: must be set with"),
        (
            {"imported": {"time_cond_proj_dim": 4}, "heads": {"segmentation": {}}},
            "time_cond_proj_dim=4: must be null without conditioning.timestep",
        ),
    ],
)
def test_impossible_configs(config: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        UNet(**{**OURS, **config})


def test_options_that_a_saved_network_lacks_have_their_defaults(tmp_path: Path) -> None:
    from unetdiff.files import records

    unet = UNet(**OURS)
    unet.save_pretrained(tmp_path)
    config = records.read_object(tmp_path / "config.json")
    del config["imported"]["time_cond_proj_dim"]
    records.write_json(tmp_path / "config.json", config)
    assert plain(UNet.from_pretrained(tmp_path).config) == plain(unet.config)
