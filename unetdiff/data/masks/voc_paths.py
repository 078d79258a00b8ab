"""Paths of PASCAL VOC 2012 and of masks added to it."""

from __future__ import annotations

from pathlib import Path

VOC_FOLDER = Path("VOCdevkit") / "VOC2012"  # below `data.root`; the others are below this
IMAGES = "JPEGImages"
MASKS = "SegmentationClass"
SPLITS = Path("ImageSets") / "Segmentation"

VOC_SPLITS = ("train", "trainval", "val")
AUGMENTED_SPLIT = "trainaug"  # VOC's train and SBD's images, built by `unetdiff data download sbd`
AUGMENTED_MASKS = "SegmentationClassAug"  # masks of the images that VOC has no mask for
