"""Channels, mean and deviation of a segmenter's input: from its data, or from the network that it starts from."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unetdiff.config.reading import load, parse
from unetdiff.config.schema import RunConfig
from unetdiff.errors import UserError
from unetdiff.models.unet import UNet
from unetdiff.models.widen_input import gray_to_rgb
from unetdiff.training.pixel_statistics import follow_source, needs_statistics, resolve_pixel_statistics
from unetdiff.training.trainer import train

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
    noisy = follow_source(config_of(task="joint", training__init_from=str(tmp_path / "segmenter")))
    assert noisy.data.channels is None and noisy.model.encoder.mean == [0.3] * 3  # gray images, read as RGB
    missing = config_of(training__init_from=str(tmp_path / "none"))
    assert follow_source(missing) == missing


SOURCE = {"name": "classic", "channels": [4, 8], "mean": [0.3], "std": [0.2]}


@pytest.mark.parametrize(
    ("network", "patch"),
    [(SOURCE, 1), ({"name": "classic", "channels": [4, 8]}, 2), ({"name": "resnet18", "mean": [0.3], "std": [0.2]}, 1)],
)
def test_a_network_of_gray_images_as_one_of_rgb(network: dict[str, Any], patch: int) -> None:
    """The same images, read as RGB, have the same logits."""
    torch.manual_seed(0)
    gray = UNet(in_channels=1, patch_size=patch, encoder=network, heads={"segmentation": {"num_classes": 2}}).eval()
    pixels = torch.rand(2, 1, 64, 64) * 2 - 1
    with torch.no_grad():
        found, expected = gray_to_rgb(gray).segment(pixels.expand(2, 3, 64, 64)), gray.segment(pixels)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # sums in another order


def gray_folder(root: Path) -> dict[str, Any]:
    for index in range(5):
        for name, most in (("images", 256), ("masks", 2)):
            (root / name).mkdir(parents=True, exist_ok=True)
            values = np.random.default_rng(index).integers(0, most, (16, 16), np.uint8)
            Image.fromarray(values).save(root / name / f"{index}.png")
    keys = {
        "name": "folders",
        "root": str(root),
        "images": "images",
        "masks": "masks",
        "num_classes": 2,
        "size": [16, 16],
    }
    training = {"steps": 1, "batch_size": 2, "log_with": [], "output_dir": str(root / "run")}
    return {f"data.{key}": value for key, value in (keys | {"val_fraction": 0.4}).items()} | {
        f"training.{key}": value for key, value in training.items()
    }


@pytest.mark.parametrize(
    ("task", "key"),
    [("segmentation", "model.pretrained"), ("joint", "model.pretrained"), ("joint", "training.init_from")],
)
def test_runs_that_start_from_a_segmenter_of_gray_images(task: Any, key: str, tmp_path: Path) -> None:
    """Its mean and deviation were counted over one channel; these runs read RGB."""
    heads = {"segmentation": {"num_classes": 2}}
    norms = {"encoder": SOURCE | {"norm": "batch"}, "decoder": {"norm": "batch"}}
    UNet(in_channels=1, heads=heads, **norms).save_pretrained(tmp_path / "gray")
    keys = gray_folder(tmp_path / "data") | {key: str(tmp_path / "gray")}
    if key == "training.init_from":
        keys |= CLASSIC | {"model.encoder.norm": "frozen", "model.decoder.norm": "frozen"}
    run = train(parse(None, keys | {"diffusion.condition": "none", "diffusion.preview_steps": 2}, task))
    config = UNet.read_config(run / "best" / "unet")
    assert config["in_channels"] == 3 and config["encoder"]["mean"] == [0.3] * 3
    report = json.loads((run / "summary.json").read_text())["init_from"]
    assert "backbone" in report["loaded"]["parts"] and "backbone" not in report["fresh"]["parts"]
    load(run / "config.yaml", ["--training.resume"], task)  # it is accepted again


def test_pretrained_segmenters_of_other_images_are_for_init_from(tmp_path: Path) -> None:
    encoder = {"name": "classic", "channels": [4, 8], "mean": [0.3] * 4, "std": [0.2] * 4}
    UNet(in_channels=4, encoder=encoder, heads={"segmentation": {"num_classes": 2}}).save_pretrained(tmp_path / "bands")
    with pytest.raises(
        UserError, match=r"must be a network of RGB or gray images \(got 4 channels\). Set training.init"
    ):
        config_of(model__pretrained=str(tmp_path / "bands"))
    assert follow_source(config_of(training__init_from=str(tmp_path / "bands"))).data.channels == 4
