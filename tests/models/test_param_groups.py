"""Every shared parameter in one group: the level whose map its layer makes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from unetdiff.models.param_groups import parameters_by_level
from unetdiff.models.unet import UNet

ENCODERS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "residual": (
        {
            "encoder": {"channels": [4, 8, 8]},
            "residual": {"norm_num_groups": 4, "layers_per_block": 1},
            "conditioning": {"cross_attention_dim": 8, "pooled_context": True},
        },
        ["encoder.0", "encoder.1", "encoder.2", "mid_block", "decoder.2", "decoder.1", "decoder.0", "conditioning"],
    ),
    "classic": (
        {"encoder": {"name": "classic", "channels": [4, 4, 8]}, "conditioning": {"cross_attention_dim": 8}},
        ["encoder.0", "encoder.1", "mid_block", "decoder.1", "decoder.0", "conditioning"],
    ),
    "resnet18": (
        {"encoder": {"name": "resnet18"}, "decoder": {"channels": [8] * 5}},
        [*(f"encoder.{k}" for k in range(1, 6)), *(f"decoder.{k}" for k in (4, 3, 2, 1, 0)), "conditioning"],
    ),
    "mobilenet_v2": (
        {"encoder": {"name": "mobilenet_v2"}, "decoder": {"channels": [8] * 5}},
        [*(f"encoder.{k}" for k in range(1, 6)), *(f"decoder.{k}" for k in (4, 3, 2, 1, 0)), "conditioning"],
    ),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_every_shared_parameter_is_in_one_group(name: str) -> None:
    config, expected = ENCODERS[name]
    unet = UNet(**config, heads={"segmentation": {"num_classes": 3}, "diffusion": {}})
    groups = parameters_by_level(unet)
    assert list(groups) == expected
    names = [key for members in groups.values() for key in members]
    shared = [key for key, _ in unet.named_parameters() if not key.startswith("heads.")]
    assert sorted(names) == sorted(shared)
    counts = unet.parameter_counts()
    assert sum(p.numel() for p in groups["conditioning"].values()) == counts["conditioning"]


@pytest.mark.parametrize("name", ENCODERS)
def test_a_level_reaches_the_map_of_its_name_and_none_before_it(name: str) -> None:
    """The gradient of a level's map is not zero in its own group, and nothing in the groups after it."""
    config, _ = ENCODERS[name]
    unet = UNet(**config, heads={"segmentation": {"num_classes": 3}, "diffusion": {}}).eval()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(
                0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    groups = {group: list(members.values()) for group, members in parameters_by_level(unet).items()}
    del groups["conditioning"]
    maps = unet.features(torch.randn(1, 3, 32, 32), 3)
    for index, group in enumerate(groups):
        own = [h for key, h in maps.items() if key == group or key.startswith(f"{group}.")][-1].square().sum()
        reached = [
            any(
                gradient.any()
                for gradient in torch.autograd.grad(own, members, retain_graph=True, allow_unused=True)
                if gradient is not None
            )
            for members in groups.values()
        ]
        assert reached[index] and not any(reached[index + 1 :])
