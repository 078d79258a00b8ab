"""The images in the diagram are there for whatever a network puts out."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from unetdiff.config.reading import to_yaml
from unetdiff.config.schema import RunConfig
from unetdiff.data.build import build_dataset
from unetdiff.data.config import DataConfig
from unetdiff.diffusion.config import DiffusionConfig
from unetdiff.models.config import ConditioningConfig, EncoderConfig, ModelConfig
from unetdiff.reports.illustrations import illustrations
from unetdiff.reports.runs import read_run
from unetdiff.training.tasks.build import build_task
from unetdiff.training.tasks.diffusion import DiffusionTask


@pytest.mark.parametrize("side", [32, 104])
def test_masks_of_two_classes(voc_layout, tmp_path, side):
    """Two channels are no image: a JPEG refuses them, and a PNG shows the second as transparency."""
    mask = np.eye(8, dtype=np.uint8)
    root = voc_layout(["background", "line"], {"train": {"a": mask}, "val": {"b": mask}})
    config = RunConfig(
        task="diffusion",
        model=ModelConfig(
            encoder=EncoderConfig(channels=[8, 16]), conditioning=ConditioningConfig(attention_levels=[])
        ),
        data=DataConfig(name="voc_folder", root=str(root), size=[side, side]),
        diffusion=DiffusionConfig(target="mask", condition="none"),
    )
    train, val = (build_dataset(config.data, split, False, layout=True) for split in ("train", "val"))
    task = build_task(config, train, val)
    assert isinstance(task, DiffusionTask) and task.codec.channels == 2
    task.save(tmp_path / "run" / "best")
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(config))
    found = illustrations(read_run(tmp_path / "run"))
    assert set(found) == {"image", "noised", "noise"}
    image = Image.open(io.BytesIO(base64.b64decode(found["noise"].partition(",")[2])))
    assert image.mode == "RGB" and image.size == (side, side)
