"""Channels, mean and deviation of a segmenter's input: from its data, or from the network that it starts from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from unetdiff.config.reading import parse
from unetdiff.config.schema import RunConfig
from unetdiff.models.unet import UNet
from unetdiff.training.pixel_statistics import follow_source, needs_statistics, resolve_pixel_statistics

CLASSIC = {"model.encoder.name": "classic", "model.encoder.channels": [4, 8]}


def config_of(**keys: Any) -> RunConfig:
    return parse(None, {"data.name": "scenes", **CLASSIC, **{k.replace("__", "."): v for k, v in keys.items()}})


class Images:
    """Two images of two channels."""

    images = np.random.default_rng(0).integers(0, 256, (2, 2, 8, 9), np.uint8)

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": torch.from_numpy(self.images[index])}


def test_mean_and_deviation_are_those_of_all_pixels() -> None:
    process: Any = SimpleNamespace(is_main_process=True)
    encoder = resolve_pixel_statistics(config_of(), Images(), process).model.encoder  # type: ignore[arg-type]
    pixels = Images.images.transpose(1, 0, 2, 3).reshape(2, -1) / 255
    np.testing.assert_allclose(encoder.mean, pixels.mean(axis=1), atol=1e-4)
    np.testing.assert_allclose(encoder.std, pixels.std(axis=1), atol=1e-4)


@pytest.mark.parametrize(
    ("keys", "needed"),
    [
        ({}, True),
        ({"model__encoder__name": "residual", "model__encoder__channels": None}, False),
        ({"model__encoder__mean": [0.5] * 3, "model__encoder__std": [0.5] * 3}, False),
        ({"training__init_from": "runs/x"}, False),
        ({"task": "joint"}, False),
        ({"model__encoder__name": "resnet18", "model__encoder__channels": None}, True),
        ({"model__encoder__name": "resnet18", "model__encoder__channels": None, "model__encoder__weights": "x"}, False),
    ],
)
def test_who_needs_statistics(keys: dict[str, Any], needed: bool) -> None:
    assert needs_statistics(config_of(**keys)) == needed


def test_pretrained_encoders_of_other_than_rgb_need_them() -> None:
    keys = {"model__encoder__name": "resnet18", "model__encoder__channels": None, "model__encoder__weights": "x"}
    assert needs_statistics(config_of(data__channels=4, **keys))


def test_a_run_from_another_network_has_its_input(tmp_path: Path) -> None:
    encoder = {"name": "classic", "channels": [4, 8]}
    statistics = {"mean": [0.3], "std": [0.2]}
    segmenter = UNet(in_channels=1, encoder=encoder | statistics, heads={"segmentation": {"num_classes": 2}})
    segmenter.save_pretrained(tmp_path / "segmenter")
    UNet(in_channels=4, encoder=encoder, heads={"diffusion": {}}).save_pretrained(tmp_path / "denoiser")
    found = follow_source(config_of(training__init_from=str(tmp_path / "segmenter")))
    assert found.data.channels == 1 and (found.model.encoder.mean, found.model.encoder.std) == ([0.3], [0.2])
    found = follow_source(config_of(training__init_from=str(tmp_path / "denoiser")))
    assert found.data.channels == 3 and found.model.encoder.mean is None  # the fourth channel is its condition
    missing = config_of(training__init_from=str(tmp_path / "none"))
    assert follow_source(missing) == missing
