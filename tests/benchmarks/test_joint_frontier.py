"""Ways to train both heads: every step has as many image passes as one of a separate run."""

from __future__ import annotations

from pathlib import Path

import pytest
from joint_frontier import WAYS, Way

from unetdiff.config.quickstart import quickstart_configs
from unetdiff.config.schema import RunConfig
from unetdiff.config.validation.run import validate
from unetdiff.data.labelled import segmented_count
from unetdiff.experiments.runs import variant


def quickstart(folder: Path) -> RunConfig:
    config = quickstart_configs(folder)["joint"]
    config.training.batch_size = 16
    return config


@pytest.mark.parametrize(("name", "clean"), [("one network", 4), ("one network, half clean", 8), ("two decoders", 4)])
def test_a_step_has_the_passes_of_a_separate_run(tmp_path: Path, name: str, clean: int) -> None:
    base = quickstart(tmp_path)
    config = variant(base, "joint", tmp_path / "run", WAYS[name].changes(base))
    validate(config)
    images = config.training.batch_size
    assert (images, segmented_count(config.joint.segmentation_fraction, images)) == (16 - clean, clean)


def test_labels_of_noisy_images_and_the_head_are_the_configs_or_left_out(tmp_path: Path) -> None:
    base = quickstart(tmp_path)
    assert Way(0.25, noisy=True).changes(base)["joint.segment_noise_below"] == base.joint.segment_noise_below > 0
    assert Way(0.25).changes(base)["joint.segment_noise_below"] == 0
    assert Way(0.25).changes(base)["model.heads.segmentation"].pyramid
    assert Way(0.25, last_map=True).changes(base)["model.heads.segmentation"].pyramid is None
