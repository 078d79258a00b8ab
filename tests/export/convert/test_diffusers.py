"""diffusers' networks loaded here, and networks saved for diffusers: equal tensors, outputs equal to 1e-5."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import Tensor

from unetdiff.models.unet import UNet

Reference = UNet2DModel | UNet2DConditionModel
CONTEXT = 12
GRID = range(28)


def configured(seed: int) -> tuple[type[Reference], dict[str, Any], tuple[int, int]]:
    """A random tiny network: its class, its config, and a size of image that it takes."""
    pick = random.Random(seed)
    condition, levels = bool(seed % 2), pick.choice([1, 2, 3])
    channels = [pick.choice([8, 16, 24]) for _ in range(levels)]
    groups = pick.choice([4, 8])
    attends = [pick.random() < 0.6 for _ in channels]
    old = pick.random() < 0.3  # the settings of google/ddpm-*
    in_channels, out_channels = pick.choice([(3, 3), (4, 4), (1, 2)])
    embed = pick.choice([None, None, "classes", "timestep", "identity"])
    config: dict[str, Any] = {
        "sample_size": pick.choice([None, 16, [16, 24]]),
        "in_channels": in_channels,
        "out_channels": out_channels,
        "block_out_channels": channels,
        "layers_per_block": pick.choice([1, 2]),
        "norm_num_groups": groups,
        "norm_eps": 1e-6 if old else pick.choice([1e-5, 0.05]),
        "flip_sin_to_cos": not old,
        "freq_shift": int(old),
        "downsample_padding": int(not old),
        "dropout": pick.choice([0.0, 0.2]),
        "resnet_time_scale_shift": pick.choice(["default", "scale_shift"]),
        "num_class_embeds": 5 if embed == "classes" else None,
        "class_embed_type": None if embed == "classes" else embed,
    }
    if condition:
        resample = "conv" if any(attends) else pick.choice(["conv", "resnet"])
        attend = "CrossAttn"
        config |= {
            "mid_block_type": pick.choice(
                ["UNetMidBlock2DCrossAttn", "UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None]
            ),
            "cross_attention_dim": CONTEXT,
            "attention_head_dim": pick.choice([1, 4, [pick.choice([1, 2, 4, 8]) for _ in channels]]),
            "transformer_layers_per_block": pick.choice([1, 2, [pick.choice([1, 2]) for _ in channels]]),
            "use_linear_projection": pick.random() < 0.5,
            "upcast_attention": pick.random() < 0.5,
        }
    else:
        resample = pick.choice(["conv", "resnet"])
        attend = "Attn"
        config |= {
            "mid_block_type": pick.choice(["UNetMidBlock2D", "UNetMidBlock2D", "UNetMidBlock2D", None]),
            "add_attention": pick.random() < 0.7,
            "attn_norm_num_groups": pick.choice([None, groups, 2]),
            "attention_head_dim": pick.choice([None, 2, 8]),
            "downsample_type": resample,
            "upsample_type": resample,
        }
    names = {"conv": ("DownBlock2D", "UpBlock2D"), "resnet": ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")}
    down, up = names[resample]
    config["down_block_types"] = [f"{attend}DownBlock2D" if a else down for a in attends]
    config["up_block_types"] = [f"{attend}UpBlock2D" if a else up for a in reversed(attends)]
    unit = 2 ** (levels - 1)
    whole = (unit * pick.choice([2, 3, 5]), unit * pick.choice([2, 4]))
    size = (pick.choice([13, 18]), 21) if condition and resample == "conv" else whole
    return (UNet2DConditionModel if condition else UNet2DModel), config, size


def made(seed: int) -> Reference:
    """The network of a seed; no tensor is where an initialisation has put it, so that every one matters."""
    cls, config, _ = configured(seed)
    torch.manual_seed(seed)
    reference = cls(**config).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return reference


def inputs(seed: int) -> dict[str, Tensor]:
    """A batch of two for the network of a seed, by the names of diffusers' arguments."""
    cls, config, size = configured(seed)
    generator = torch.Generator().manual_seed(seed)
    given = {
        "sample": torch.randn(2, config["in_channels"], *size, generator=generator),
        "timestep": torch.tensor([4, 800]),
    }
    if cls is UNet2DConditionModel:
        given["encoder_hidden_states"] = torch.randn(2, 5, CONTEXT, generator=generator)
    if config["num_class_embeds"]:
        given["class_labels"] = torch.tensor([4, 1])
    elif config["class_embed_type"] == "timestep":
        given["class_labels"] = torch.tensor([20.0, 7.5])
    elif config["class_embed_type"] == "identity":
        given["class_labels"] = torch.randn(2, 4 * config["block_out_channels"][0], generator=generator)
    return given


@torch.no_grad()
def answer(unet: Reference | UNet, seed: int) -> Tensor:
    return unet(**inputs(seed)).sample


@pytest.mark.parametrize("seed", GRID)
def test_a_network_of_diffusers_is_one_of_ours_and_goes_back(seed: int, tmp_path: Path) -> None:
    reference = made(seed)
    actual = UNet.from_diffusers(reference)
    assert not actual.training and set(actual.heads) == {"diffusion"}
    torch.testing.assert_close(answer(actual, seed), answer(reference, seed), rtol=1e-5, atol=1e-5)

    actual.to_diffusers(tmp_path)
    again = type(reference).from_pretrained(tmp_path)
    state, before = again.state_dict(), reference.state_dict()
    assert list(state) == list(before) and all(torch.equal(state[k], v) for k, v in before.items())
    assert torch.equal(answer(again, seed), answer(reference, seed))
    for key in ("sample_size", "dropout", "upcast_attention"):  # what an answer in float32 does not show
        assert again.config.get(key) == reference.config.get(key)

    read = UNet.from_diffusers(tmp_path)
    assert read.config == actual.config
    assert all(torch.equal(read.state_dict()[k], v) for k, v in actual.state_dict().items())


def test_the_grid_has_every_setting() -> None:
    grid = [(cls.__name__, config, size) for cls, config, size in map(configured, GRID)]
    seen = {(name, key, str(value)) for name, config, _ in grid for key, value in config.items()}
    for name, key, values in (
        ("UNet2DModel", "attention_head_dim", [None, 2, 8]),
        ("UNet2DModel", "add_attention", [True, False]),
        ("UNet2DModel", "attn_norm_num_groups", [None, 2]),
        ("UNet2DModel", "downsample_type", ["conv", "resnet"]),
        ("UNet2DModel", "mid_block_type", ["UNetMidBlock2D", None]),
        ("UNet2DConditionModel", "mid_block_type", ["UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None]),
        ("UNet2DConditionModel", "attention_head_dim", [1, 4]),
        ("UNet2DConditionModel", "transformer_layers_per_block", [1, 2]),
        ("UNet2DConditionModel", "use_linear_projection", [True, False]),
    ):
        assert all((name, key, str(value)) in seen for value in values), (name, key)
    for name in ("UNet2DModel", "UNet2DConditionModel"):
        for key, values in (
            ("class_embed_type", [None, "timestep", "identity"]),
            ("num_class_embeds", [None, 5]),
            ("resnet_time_scale_shift", ["default", "scale_shift"]),
            ("freq_shift", [0, 1]),
        ):
            assert all((name, key, str(value)) in seen for value in values), (name, key)
    without_norm = {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": None, "add_attention": True}
    assert any(
        config["mid_block_type"] and without_norm.items() <= config.items()
        for name, config, _ in grid
        if "Cond" not in name
    )
    conditioned = [config for name, config, _ in grid if name == "UNet2DConditionModel"]
    assert any(isinstance(config["attention_head_dim"], list) for config in conditioned)
    assert any("ResnetDownsampleBlock2D" in config["down_block_types"] for config in conditioned)
    assert any(size[1] % 2 for name, _, size in grid)
