"""The masks that a search for images leaves out, by the layout of their dataset."""

from __future__ import annotations

from pathlib import Path

import pytest

from unetdiff.data.config import DataConfig
from unetdiff.data.masks.mask_files import masks_in_layout


@pytest.mark.parametrize(
    "config, mask",
    [
        (DataConfig(name="folders", masks="train/*_mask.png"), "train/a_mask.png"),
        (DataConfig(name="voc"), "VOCdevkit/VOC2012/SegmentationClass/a.png"),
        (DataConfig(name="voc"), "VOCdevkit/VOC2012/SegmentationObject/a.png"),
        (DataConfig(name="voc_folder"), "SegmentationClass/a.png"),
        (DataConfig(name="cityscapes"), "gtFine/val/aachen/a_gtFine_color.png"),
        (DataConfig(name="ade20k"), "ADEChallengeData2016/annotations/training/a.png"),
    ],
)
def test_layouts(config: DataConfig, mask: str, tmp_path: Path) -> None:
    for name in (mask, "images/a.png", "train/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert masks_in_layout(config, (tmp_path, tmp_path / "nowhere", None)) == {str((tmp_path / mask).resolve())}


def test_without_mask_files(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    for name in ("scenes", "coco"):
        assert not masks_in_layout(DataConfig(name=name), (tmp_path,))
