"""Where PASCAL VOC 2012, and the masks that others add to it, keep things."""

from __future__ import annotations

from pathlib import Path

VOC_FOLDER = Path("VOCdevkit") / "VOC2012"  # below `data.root`; all others are below this
IMAGES = "JPEGImages"
MASKS = "SegmentationClass"
SPLITS = Path("ImageSets") / "Segmentation"

VOC_SPLITS = ("train", "trainval", "val")
AUGMENTED_SPLIT = "trainaug"  # VOC's train and SBD's images, built by `unetdiff data download sbd`
AUGMENTED_MASKS = "SegmentationClassAug"  # the masks of those of its images that VOC has none for
