"""A flag wins over the file: alternatives replace each other, and options that contradict it are left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from unetdiff.config.precedence import ALTERNATIVES, FOLLOWERS, OPTIONS, value_of
from unetdiff.config.reading import load, parse
from unetdiff.config.schema import KEYS, RunConfig
from unetdiff.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"
FILE = """
task: segmentation
model:
  encoder: {name: mobilenet_v2, weights: imagenet}
  decoder: {channels: [32, 16], upsample: bilinear}
data: {name: voc, root: ., longest_side: 320, repeat_factor_threshold: 0.3, augment: {crop: [64, 64]}}
segmentation: {class_weights: median_frequency, class_weights_anneal_until: 0.5, ohem: {threshold: 0.6}}
training: {epochs: 3, freeze_encoder: 0.5, frozen_levels: 1, optimizer: {lr: 1.0e-3, encoder_lr: 5.0e-4}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(FILE)
    return path


def test_keys_exist() -> None:
    assert {key for pair in ALTERNATIVES for key in pair} | set(OPTIONS) | set(FOLLOWERS) <= set(KEYS)


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["--training.steps", "7"], {"training.steps": 7, "training.epochs": None}),
        (["--data.size", "[64, 64]"], {"data.size": [64, 64], "data.longest_side": None}),
        (
            ["--training.freeze_backbone"],
            {"training.freeze_encoder": 0, "training.frozen_levels": 0},
        ),
        (["--segmentation.noise", "0.5"], {"segmentation.noise": 0.5, "segmentation.timestep": 0}),
    ],
)
def test_alternatives_replace_each_other_without_a_word(file: Path, words: list[str], values: dict[str, Any]) -> None:
    notes: list[str] = []
    config = load(file, words, "segmentation", notes)
    assert {key: value_of(config, key) for key in values} == values and notes == []


@pytest.mark.parametrize(
    ("words", "left_out"),
    [
        (["--segmentation.class_weights", "null"], ["segmentation.class_weights_anneal_until=0.5"]),
        (
            ["--segmentation.losses", "{dice: 1}"],
            ["segmentation.class_weights=median_frequency", "segmentation.ohem"],
        ),
        (["--data.name", "scenes"], ["data.longest_side=320", "data.repeat_factor_threshold=0.3"]),
        (
            ["--model.encoder.weights", "null"],
            ["training.optimizer.encoder_lr=0.0005", "training.frozen_levels=1", "training.freeze_encoder=0.5"],
        ),
        (["--model.encoder.name", "residual"], ["model.decoder.channels=[32, 16]", "model.decoder.upsample=bilinear"]),
    ],
)
def test_options_that_contradict_a_flag_are_left_out_with_a_word(
    file: Path, words: list[str], left_out: list[str]
) -> None:
    notes: list[str] = []
    config = load(file, words, "segmentation", notes)
    for start in left_out:
        assert any(note.startswith(start) and " of the config is left out: " in note for note in notes)
        key = start.partition("=")[0]
        assert value_of(config, key) == value_of(RunConfig(), key)


def test_what_is_refused_nevertheless(file: Path, tmp_path: Path) -> None:
    both = ["--training.steps", "5", "--training.epochs", "2"]  # two flags
    with pytest.raises(UserError, match="training.steps=5: must be null with training.epochs=2"):
        load(file, both, "segmentation")
    other = ["--segmentation.class_weights", "null", "--segmentation.class_weights_anneal_until", "0.5"]
    with pytest.raises(UserError, match="class_weights_anneal_until=0.5: must be null without"):
        load(file, other, "segmentation")
    with pytest.raises(UserError, match="data.name=voc: must be a dataset with captions"):  # never another dataset
        words = ["--task", "diffusion", "--diffusion.condition", "text", "--data.size", "[64, 64]"]
        load(file, words, None)
    broken = tmp_path / "broken.yaml"  # the file alone is wrong
    broken.write_text(FILE.replace("class_weights: median_frequency, ", ""))
    with pytest.raises(UserError, match="class_weights_anneal_until=0.5: must be null without"):
        load(broken, ["--training.steps", "5"], "segmentation")


def test_a_pretrained_model_replaces_the_networks_options_of_a_default(stable_diffusion: Path) -> None:
    path = CONFIGS / "segmentation" / "default.yaml"
    flags = {"model.pretrained": str(stable_diffusion), "data.name": "voc_folder", "data.root": "."}
    config = parse(path, flags, "segmentation", is_default=True)
    assert config.model.encoder.name == "residual" and config.model.encoder.weights is None
