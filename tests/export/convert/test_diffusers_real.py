"""The published configs of Stable Diffusion 1.5 and 2.1 and of google/ddpm-cifar10-32, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel

from unetdiff.export.convert.from_diffusers import config_from_diffusers
from unetdiff.export.convert.to_diffusers import config_to_diffusers
from unetdiff.models.diffusers_names import to_diffusers_name
from unetdiff.models.loading import plain
from unetdiff.models.resolve import parse
from unetdiff.models.unet import UNet

PARAMETERS = {
    "stable_diffusion_1_5": 859_520_964,
    "stable_diffusion_2_1": 865_910_724,
    "ddpm_cifar10_32": 35_746_307,
}


def published(name: str) -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "diffusers_configs" / f"{name}.json").read_text())


@pytest.mark.parametrize("name", PARAMETERS)
def test_names_shapes_and_config(name: str) -> None:
    config = published(name)
    cls = getattr(diffusers, config["_class_name"])
    with torch.device("meta"):
        reference = cls.from_config(config)
        actual = UNet(**config_from_diffusers(config["_class_name"], config, name))
    shapes = {to_diffusers_name(key): tensor.shape for key, tensor in actual.state_dict().items()}
    assert shapes == {key: tensor.shape for key, tensor in reference.state_dict().items()}
    assert sum(parameter.numel() for parameter in actual.parameters()) == PARAMETERS[name]

    class_name, back = config_to_diffusers(parse(**plain(actual.config)))
    assert class_name == config["_class_name"]
    assert {**reference.config, **back} == reference.config


def test_ddpm_cifar10_answers_the_same() -> None:
    torch.manual_seed(0)
    reference = UNet2DModel.from_config(published("ddpm_cifar10_32")).eval()
    actual = UNet.from_diffusers(reference)
    x, t = torch.randn(1, 3, 32, 32), torch.tensor([700])
    with torch.no_grad():
        torch.testing.assert_close(actual(x, t).sample, reference(x, t).sample, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_stable_diffusion_answers_the_same() -> None:
    """860 million parameters, 3.4 GB on each side."""
    torch.manual_seed(0)
    reference = UNet2DConditionModel.from_config(published("stable_diffusion_1_5")).eval()
    actual = UNet.from_diffusers(reference)
    x, t, context = torch.randn(1, 4, 16, 16), torch.tensor([700]), torch.randn(1, 77, 768)
    with torch.no_grad():
        expected, found = reference(x, t, context).sample, actual(x, t, context).sample
    print(f"\nlargest difference {(found - expected).abs().max():.1e}, of outputs up to {expected.abs().max():.2g}")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
