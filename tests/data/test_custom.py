"""Datasets given in Python: what their items must be, and a run on each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unetdiff.config.reading import load
from unetdiff.config.schema import RunConfig
from unetdiff.data.config import AugmentConfig, DataConfig
from unetdiff.data.custom import CustomDataset
from unetdiff.data.sampling import SampleKey
from unetdiff.errors import UserError
from unetdiff.segmentation.config import SegmentationConfig
from unetdiff.training import train
from unetdiff.training.run_data import RunData, keys_of_items
from unetdiff.training.runtime import build_accelerator

CONFIG = DataConfig(name="custom", num_classes=3)


def items(count: int = 6) -> list[dict[str, Any]]:
    return [
        {
            "image": torch.full((3, 16, 16), i, dtype=torch.uint8),
            "mask": torch.full((16, 16), i % 3),
            "label": i % 3,
            "caption": f"number {i}",
        }
        for i in range(count)
    ]


def test_images_and_masks_of_every_kind_become_uint8_tensors() -> None:
    gray = np.arange(256, dtype=np.uint8).reshape(16, 16)
    mask = Image.fromarray(np.eye(16, dtype=np.uint8))
    for image in (Image.fromarray(gray), gray, np.stack([gray] * 3, -1), torch.from_numpy(gray)[None]):
        data = CustomDataset([{"image": image, "mask": mask}], "train_data", CONFIG, ("mask",))
        item = data[0]
        assert item["image"].dtype == item["mask"].dtype == torch.uint8
        assert item["image"][1].equal(torch.from_numpy(gray)) and item["mask"].equal(torch.eye(16, dtype=torch.uint8))
        assert item["labels"] == (1,) and item["name"] == "train_data/000000"
    named = [{"image": gray, "mask": np.eye(16, dtype=bool), "name": "a"}]
    assert CustomDataset(named, "train_data", CONFIG, ("mask",))[0]["name"] == "a"


def test_items_are_augmented_and_resized_as_configured() -> None:
    config = DataConfig(name="custom", num_classes=3, size=[8, 8], augment=AugmentConfig(crop=[4, 4]))
    train_data, val_data = (CustomDataset(items(), "x", config, ("mask",), flag) for flag in (True, False))
    assert train_data[SampleKey(1, 3, True)]["image"].shape == (3, 4, 4)
    assert val_data[SampleKey(1, 3, True)]["mask"].shape == (8, 8)
    assert val_data[1]["mask"].shape == (16, 16) and train_data.mask(1).shape == (16, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": torch.zeros(3, 16, 16)}, r'train_data\[1\]\["image"\]: must be uint8 .*got float32.*by 255'),
        ({"image": torch.zeros(16, 16, 3, dtype=torch.uint8)}, "it has 16 channels, the dataset 3"),
        ({"image": "a.png"}, "or a PIL image .got str"),
        (
            {"mask": torch.zeros(8, 8, dtype=torch.uint8)},
            r'"mask"\]: must have the image.s size \(16, 16\) .got \(8, 8',
        ),
        ({"mask": torch.zeros(16, 16)}, "must be integers of .H, W.*got float32"),
        ({"mask": torch.full((16, 16), 7)}, r"class indices 0\.\.2, or 255 = ignore .got 7"),
        ({"mask": torch.full((16, 16), -1)}, "got -1"),
        ({"label": 3}, r'"label"\]: must be an integer from 0 to 2 .got 3'),
        ({"caption": " "}, r'"caption"\]: must be a text'),
    ],
)
def test_a_wrong_item_is_named(change: dict[str, Any], message: str) -> None:
    wrong = items()
    wrong[1] |= change
    with pytest.raises(UserError, match=message):
        CustomDataset(wrong, "train_data", CONFIG, ("mask", "label", "caption"))


def test_what_is_not_a_dataset_of_dicts_is_refused() -> None:
    for source, message in (
        ([], "train_data: must have at least one item"),
        (iter(items()), "must be a map-style dataset .got list_iterator"),
        ([(1, 2)], r"train_data\[0\]: must be a dict with image, mask, label, caption, name .got tuple"),
        ([{"image": items()[0]["image"]}], r"train_data\[0\]: must have the key mask .got image"),
    ):
        with pytest.raises(UserError, match=message):
            CustomDataset(source, "train_data", CONFIG, ("mask",))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="data.num_classes=null: must be set for train_data"):
        CustomDataset(items(), "train_data", DataConfig(name="custom"), ("mask",))


TINY = {
    "model.encoder.channels": [8, 8],
    "training.steps": 2,
    "training.batch_size": 2,
    "training.num_workers": 0,
    "data.size": [16, 16],
    "data.num_classes": 3,
    "data.name": "custom",
}


def test_a_run_on_datasets_given_in_python(tmp_path: Path) -> None:
    config = load(None, {**TINY, "training.output_dir": str(tmp_path / "run")}, "segmentation")
    run = train(config, train_data=items(), val_data=items(2))
    assert (run / "summary.json").is_file()
    assert "name: custom" in (run / "config.yaml").read_text()
    config.training.overwrite = True
    with pytest.raises(UserError, match="val_data: must be given together"):
        train(config, train_data=items())
    with pytest.raises(UserError, match="data.name=custom: must be another dataset where no train_data is given"):
        train(config)
    config.data.name = "voc"
    with pytest.raises(UserError, match="data.name=voc: must be left out where train_data"):
        train(config, items(), items())


def test_the_fractions_of_the_config_hold_for_them_too(tmp_path: Path) -> None:
    options = {**TINY, "training.output_dir": str(tmp_path / "run")}
    half = load(None, options | {"data.train_fraction": 0.5}, "segmentation")
    data = RunData(half, build_accelerator(half.training), (items(), items(2)))
    assert (len(data.train), len(data.val)) == (3, 2)
    some = {"data.label_fraction": 0.5, "joint.segmentation_fraction": 0.5, "diffusion.condition": "none"}
    joint = load(None, options | some, "joint")
    data = RunData(joint, build_accelerator(joint.training), (items(), items(2)))
    assert len(data.train) == 6 and len(data.train.labelled or []) == 3


def test_a_segmenter_of_captions_reads_them() -> None:
    config = RunConfig(task="segmentation", segmentation=SegmentationConfig(context="caption"))
    assert keys_of_items(config, masks=True) == ("mask", "caption")
    assert keys_of_items(RunConfig(task="segmentation"), masks=True) == ("mask",)
