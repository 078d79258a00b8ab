"""One network as the start of another: the same answers on clean images, and another backbone refused by key."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from unetdiff.errors import UserError
from unetdiff.models.transfer import transfer
from unetdiff.models.unet import UNet

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SEGMENTATION, DIFFUSION = {"segmentation": {"num_classes": 5}}, {"diffusion": {"out_channels": 3}}
RESIDUAL: dict[str, Any] = {
    "encoder": {"channels": [8, 16]},
    "residual": {"norm_num_groups": 4, "layers_per_block": 1},
}
CONDITIONING_PARAMS: dict[str, Any] = {"cross_attention_dim": 8, "pooled_context": True, "attention_levels": [1]}
CLASSIC: dict[str, Any] = {"encoder": {"name": "classic", "channels": [4, 8]}}
ENCODERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # the denoiser; what the segmenter says otherwise
    "residual, added": (RESIDUAL, {}),
    "residual, scale_shift and resampling blocks": (
        {
            **RESIDUAL,
            "residual": {**RESIDUAL["residual"], "time_scale_shift": "scale_shift"},
            "imported": {"resample": "resnet"},
        },
        {},
    ),
    "residual, conditioned": ({**RESIDUAL, "conditioning": CONDITIONING_PARAMS}, {}),
    "classic, group": (CLASSIC, {"encoder": {"norm": "group"}, "decoder": {"norm": "group"}}),
    "classic, frozen": (
        {"encoder": {**CLASSIC["encoder"], "norm": "frozen"}, "decoder": {"norm": "frozen"}},
        {"encoder": {"norm": "batch"}, "decoder": {"norm": "batch"}},
    ),
    "classic, no norm": (
        {"encoder": {**CLASSIC["encoder"], "norm": "none"}, "decoder": {"norm": "none"}},
        {"encoder": {"norm": "none"}, "decoder": {"norm": "none"}},
    ),
}


def _with(config: dict[str, Any], heads: dict[str, Any], **sections: dict[str, Any]) -> UNet:
    """A network whose every tensor is random: nothing in it is zero, so nothing is the identity."""
    merged = {**config, **{name: {**config.get(name, {}), **keys} for name, keys in sections.items()}}
    network = UNet(**merged, heads=heads)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            values = 0.3 * torch.randn(tensor.shape, generator=generator)
            tensor.copy_(values.abs() + 0.1 if "running_var" in name else values)
    return network.eval()


def _last(network: UNet) -> Tensor:
    with torch.no_grad():
        return network.eval().features(X)["last"]


@pytest.mark.parametrize("name", ENCODERS)
def test_without_a_time_embedding_the_backbone_answers_as_at_timestep_0(name: str) -> None:
    config, other = ENCODERS[name]
    denoiser = _with(config, DIFFUSION)
    conditioned = {"timestep": False, "pooled_context": False}
    segmenter = _with(config, SEGMENTATION, conditioning=conditioned, **other)
    fresh = {key: tensor.clone() for key, tensor in segmenter.heads.state_dict().items()}
    expected, before = _last(denoiser), _last(segmenter)
    weights = {key: tensor.clone() for key, tensor in denoiser.state_dict().items()}
    moved = transfer(denoiser, segmenter, "run")
    assert all(torch.equal(tensor, weights[key]) for key, tensor in denoiser.state_dict().items())
    assert moved.folded and all(key.startswith("heads.segmentation.") for key in moved.initialized)
    assert {key.split(".")[0] for key in moved.unused} >= {"time_embedding", "heads"}
    torch.testing.assert_close(_last(segmenter), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, expected, rtol=0.1, atol=0.1)
    assert all(torch.equal(tensor, fresh[key]) for key, tensor in segmenter.heads.state_dict().items())


def test_with_a_time_embedding_the_backbone_is_the_same_bit_for_bit() -> None:
    config = {**RESIDUAL, "conditioning": {**CONDITIONING_PARAMS, "timestep": True}}
    denoiser, segmenter = _with(config, DIFFUSION), _with(config, SEGMENTATION)
    nn.init.ones_(segmenter.time_embedding.linear_1.weight)
    moved = transfer(denoiser, segmenter, "run")
    assert torch.equal(_last(segmenter), _last(denoiser)) and not moved.folded
    assert not any(name.startswith("heads.") for name in moved.copied)


@pytest.mark.parametrize(
    ("config", "more"),
    [
        ({"encoder": {"name": "resnet18"}, "decoder": {"channels": [8] * 5}}, {"cross_attention_dim": 8}),
        (CLASSIC, {"cross_attention_dim": 8}),
        ({**RESIDUAL, "conditioning": {"attention_levels": [1]}}, {"attention_levels": [1]}),
    ],
    ids=["resnet18", "classic", "residual"],
)
def test_a_time_embedding_and_attention_that_are_new_start_as_the_identity(
    config: dict[str, Any], more: dict[str, Any]
) -> None:
    segmenter = _with(config, SEGMENTATION)
    if config["encoder"].get("name"):  # BatchNorm, which a diffusion head has frozen
        config = {**config, "encoder": {**config["encoder"], "norm": "frozen"}}
        config["decoder"] = {**config.get("decoder", {}), "norm": "frozen"}
    joint = UNet(**{**config, "conditioning": more}, heads=SEGMENTATION | DIFFUSION)
    moved = transfer(segmenter, joint, "run")
    with torch.no_grad():
        expected = segmenter.segment(X)
        for timestep in (0, 700):
            torch.testing.assert_close(joint.eval().segment(X, timestep), expected, rtol=1e-4, atol=1e-5)
    diffusion = {name for name in joint.state_dict() if name.startswith("heads.diffusion.")}
    assert {name for name in moved.initialized if name.startswith("heads.")} == diffusion


def test_dropout_may_differ() -> None:
    source = _with(CLASSIC, SEGMENTATION)
    target = _with({**CLASSIC, "encoder": {**CLASSIC["encoder"], "dropout": 0.5}}, SEGMENTATION)
    transfer(source, target, "run")
    assert torch.equal(target.eval().segment(X), source.eval().segment(X))


def test_a_head_of_another_size_starts_fresh_as_a_whole() -> None:
    five = _with(RESIDUAL, SEGMENTATION | DIFFUSION)
    seven = _with(RESIDUAL, {"segmentation": {"num_classes": 7}} | DIFFUSION)
    with torch.no_grad():
        for parameter in seven.parameters():
            parameter.add_(1.0)
    before = {name: tensor.clone() for name, tensor in seven.state_dict().items()}
    moved = transfer(five, seven, "run")
    after = seven.state_dict()
    for name, tensor in after.items():
        expected = before if name.startswith("heads.segmentation.") else five.state_dict()
        assert torch.equal(tensor, expected[name])
    assert set(moved.initialized) == {name for name in after if name.startswith("heads.segmentation.")}


def test_a_diffusers_network() -> None:
    torch.manual_seed(0)
    reference = UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        in_channels=3,
        out_channels=3,
        cross_attention_dim=8,
        attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    residual, imported = {**RESIDUAL["residual"], "dropout": 0.1}, {"attention_heads": [2, 2]}
    conditioning = {"timestep": True, "cross_attention_dim": 8, "attention_levels": [1]}
    changes = {"residual": residual, "imported": imported, "conditioning": conditioning}
    network = UNet(**{**RESIDUAL, **changes}, heads=SEGMENTATION | DIFFUSION).eval()
    moved = transfer(UNet.from_diffusers(reference), network, "reference")
    assert all(name.startswith("heads.segmentation.") for name in moved.initialized) and moved.initialized
    tokens = torch.randn(2, 4, 8)
    with torch.no_grad():
        expected = reference.eval()(X, 300, tokens).sample
        torch.testing.assert_close(network(X, 300, tokens).sample, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("actual", "reference", "message"),
    [
        (
            {**RESIDUAL, "encoder": {"channels": [8, 24]}},
            RESIDUAL,
            "model.encoder.channels=[8, 24]: must be [8, 16], as in the network of training.init_from=run. Set it, or "
            "initialize from another network.",
        ),
        (
            RESIDUAL,
            {**RESIDUAL, "conditioning": {"cross_attention_dim": 8}},
            "model.conditioning.cross_attention_dim=null: must be 8, as in the network",
        ),
        (
            {**CLASSIC, "decoder": {"norm": "group"}, "encoder": {**CLASSIC["encoder"], "norm": "batch"}},
            {**CLASSIC, "decoder": {"norm": "group"}, "encoder": {**CLASSIC["encoder"], "norm": "group"}},
            "model.encoder.norm=batch: must be group, as in the network",
        ),
        (
            {**RESIDUAL, "conditioning": {"attention_levels": [1], "attention_head_dim": 8}},
            {
                **RESIDUAL,
                "imported": {"attention_heads": [1, 4]},
                "conditioning": {"attention_levels": [1], "attention_head_dim": 8},
            },
            "model.imported.attention_heads=null: must be [1, 4], as in the network",
        ),
        (
            {
                "encoder": {**CLASSIC["encoder"], "norm": "group"},
                "decoder": {"norm": "group"},
                "conditioning": {"cross_attention_dim": 8, "attention_head_dim": 8},
            },
            {**CLASSIC, "conditioning": {"cross_attention_dim": 8}},
            "model.conditioning.attention_head_dim=8: must be 32, as in the network",
        ),
        (
            RESIDUAL,
            {**RESIDUAL, "in_channels": 11},
            "model.in_channels=3: must be 11, as in the network of training.init_from=run",
        ),
        (
            {"encoder": {"name": "resnet18", "norm": "group"}, "decoder": {"norm": "group", "channels": [8] * 5}},
            {"encoder": {"name": "resnet18"}, "decoder": {"channels": [8] * 5}},
            "model.conditioning.timestep=false: must be true: the pretrained encoder of training.init_from=run",
        ),
    ],
)
def test_another_backbone_is_refused_by_key(actual: dict[str, Any], reference: dict[str, Any], message: str) -> None:
    target = UNet(**actual, heads=SEGMENTATION)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(UserError, match=re.escape(message)):
        transfer(UNet(**reference, heads=DIFFUSION), target, "run")
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


def test_batch_norm_that_a_diffusion_head_cannot_have_is_to_be_frozen() -> None:
    joint = UNet(**CLASSIC, heads=SEGMENTATION | DIFFUSION)
    with pytest.raises(UserError, match="model.encoder.norm=group: must be frozen, as in the network"):
        transfer(UNet(**CLASSIC, heads=SEGMENTATION), joint, "run")
