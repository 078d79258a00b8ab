"""The captions say what the network of the run does, and the images are there for whatever it puts out."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from unetdiff.config.reading import to_yaml
from unetdiff.config.schema import RunConfig
from unetdiff.data.build import build_dataset
from unetdiff.data.config import DataConfig
from unetdiff.diffusion.config import DiffusionConfig
from unetdiff.models.config import ConditioningConfig, EncoderConfig, ModelConfig
from unetdiff.reports.captions import changes
from unetdiff.reports.illustrations import illustrations
from unetdiff.reports.network_spec import read_network_spec
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


@pytest.mark.parametrize(
    ("task", "segmentation", "timestep", "tokens"),
    [
        ("joint", {}, "uses no timestep.", "uses a single zero token."),
        ("segmentation", {"context": "empty"}, "uses no timestep.", "attends to the tokens of the empty prompt."),
        (
            "joint",
            {"context": "classes", "timestep": 50},
            "timestep 50, of clean images.",
            "attends to one token per class",
        ),
        ("joint", {"context": "caption", "timestep": 9, "noised": True}, "timestep 9, of noised images.", "caption."),
        ("diffusion", {}, "features of every block.", "of dimension 8."),
    ],
)
def test_captions_of_what_the_segmentation_head_reads(
    task: str, segmentation: dict[str, Any], timestep: str, tokens: str, tmp_path: Path
) -> None:
    model: dict[str, Any] = {
        "encoder": {"name": "residual", "channels": [8, 16]},
        "residual": {"layers_per_block": 1, "norm_num_groups": 4},
        "conditioning": {"timestep": True, "cross_attention_dim": 8, "attention_levels": [1], "attention_head_dim": 8},
    }
    if task != "diffusion":
        model["heads"] = {"segmentation": {"num_classes": 3, "pyramid": 16}}
    config = {"task": task, "model": model, "segmentation": segmentation}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    run = read_run(tmp_path)
    first, second, third = changes(read_network_spec(run.model_config), run)
    assert ("The segmentation head is a feature pyramid to 3 classes" in third.text) == (task != "diffusion")
    assert timestep in first.text and tokens in second.text
    assert first.text.count("egmentation") == second.text.count("egmentation") == (task != "diffusion")
