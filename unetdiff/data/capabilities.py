"""Which annotations and image sizes the datasets of each `data.name` have; plain data, read by config validation."""

from __future__ import annotations

WITH_SHAPES = ("coco", "labelme", "label_studio")
"""Datasets whose masks are drawn from annotations."""
WITH_MASK_FILES = ("folders", "voc", "voc_folder", *WITH_SHAPES, "cityscapes", "ade20k", "huggingface")
"""Datasets of the readers in `unetdiff.data.masks`."""
WITH_ENCODINGS = ("folders", "voc_folder", "huggingface")
"""Datasets whose masks may be stored in any way: data.mask_encoding, mask_values, mask_colors and class names."""
WITH_VAL_FRACTION = ("folders", *WITH_SHAPES, "huggingface")
"""Datasets that hold out data.val_fraction."""
WITH_PATTERNS = ("folders",)
"""Datasets of data.images and data.masks."""
CUSTOM = "custom"
"""Datasets given in Python, which have what their items have."""
VARYING_SIZES = (*WITH_MASK_FILES, CUSTOM, "image_folder", "captioned_folder", "parquet")
"""Datasets whose images may differ in size."""
WITH_BUCKETS = ("image_folder", "captioned_folder", "parquet")
"""Datasets whose images' sizes are read from the headers of their files."""
WITH_MASKS = ("scenes", *WITH_MASK_FILES, CUSTOM)
WITH_LABELS = ("scenes", "image_folder", "parquet", "fashion_mnist", "cifar10", CUSTOM)
"""One class per image ("label")."""
WITH_CLASSES = (*WITH_LABELS, *WITH_MASK_FILES)
"""Classes per image ("labels"): its one class, or those in its mask."""
WITH_CAPTIONS = ("scenes", "captioned_folder", "parquet", CUSTOM)
"""parquet: only with data.caption_column."""
DOWNLOADABLE = ("voc", "fashion_mnist", "cifar10")
NATIVE_SIZE = {"scenes": 32, "fashion_mnist": 28, "cifar10": 32}
"""Height and width in pixels of datasets of square images of one size."""
