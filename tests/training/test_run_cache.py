"""Runs as cached results: new, interrupted, finished, or of a different config."""

from __future__ import annotations

from pathlib import Path

import pytest

from unetdiff.config.quickstart import quickstart_configs
from unetdiff.config.reading import override, to_yaml
from unetdiff.config.schema import RunConfig
from unetdiff.errors import UserError
from unetdiff.training.run_cache import first_difference, run_state


def _written(folder: Path, config: RunConfig) -> None:
    """A run of this config that was started."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n')


def test_first_difference():
    requested = {"task": "joint", "training": {"steps": 5, "output_dir": "a", "epochs": None}, "list": [1], "new": None}
    found = {"task": "joint", "training": {"steps": 5, "output_dir": "b", "epochs": None}, "list": [1]}
    assert first_difference(requested, found) is None
    found["training"]["steps"] = 6
    assert first_difference(requested, found) == "training.steps is 6, not 5"
    assert first_difference({"a": {"b": None}}, {"a": {"b": 1}}) == "a.b is 1, not None"
    assert first_difference({"a": {}}, {"a": {"b": 1}}) == "a.b is 1, not None"
    assert first_difference({"a": None}, {"a": {"b": None}}) == "a is {'b': None}, not None"
    assert first_difference({"a": {"b": None}}, {"a": None}) == "a is None, not {'b': None}"


def test_state_of_a_part(tmp_path):
    config = quickstart_configs(tmp_path, tiny=True)["joint"]
    folder = tmp_path / "joint"
    assert run_state(folder, config) == "new"
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(config))
    assert run_state(folder, config) == "new", "it did not finish a step"
    _written(folder, config)
    assert run_state(folder, config) == "interrupted"
    (folder / "summary.json").write_text("{}")
    assert run_state(folder, config) == "finished"
    config.training.steps = 99
    with pytest.raises(UserError, match="training.steps is 4, not 99.*Delete it"):
        run_state(folder, config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.augment.scale", [0.5, 2.0]),
        ("data.augment.crop", [16, 16]),
        ("data.size", [24, 24]),
        ("segmentation.ohem", {"threshold": 0.7, "min_fraction": 0.2}),
        ("segmentation.losses", {"cross_entropy": 1.0, "dice": 1.0, "lovasz": 0.5}),
        ("segmentation.class_weights_anneal_until", 0.5),
        ("training.init_from", "elsewhere"),
    ],
)
def test_what_was_set_and_no_longer_is_makes_another_config(tmp_path, key, value):
    config = quickstart_configs(tmp_path, tiny=True)["segmentation"]
    before = override(config, {key: value})
    _written(tmp_path / "segmentation", before)
    assert run_state(tmp_path / "segmentation", before) == "interrupted"
    with pytest.raises(UserError, match=f"a different config .{key}"):
        run_state(tmp_path / "segmentation", config)


def test_computed_class_weights_are_those_that_the_run_came_to(tmp_path):
    config = quickstart_configs(tmp_path, tiny=True)["segmentation"]
    config.segmentation.class_weights = [1.0] * 11
    _written(tmp_path / "segmentation", config)
    config.segmentation.class_weights = "median_frequency"
    assert run_state(tmp_path / "segmentation", config) == "interrupted"
    config.segmentation.class_weights = None
    _written(tmp_path / "segmentation", config)
    for other in ([2.0] * 11, "median_frequency"):
        config.segmentation.class_weights = other
        with pytest.raises(UserError, match="class_weights"):
            run_state(tmp_path / "segmentation", config)


def test_how_losses_are_weighed_is_of_no_account_to_one_head(tmp_path):
    configs = quickstart_configs(tmp_path, tiny=True)
    for task in ("diffusion", "joint"):
        _written(tmp_path / task, configs[task])
        configs[task].joint.diffusion_weight = 3.0
    assert run_state(tmp_path / "diffusion", configs["diffusion"]) == "interrupted"
    with pytest.raises(UserError, match="joint.diffusion_weight"):
        run_state(tmp_path / "joint", configs["joint"])
