"""Which annotations and image sizes the datasets of each `data.name` have; plain data, read by config validation."""

from __future__ import annotations

VOC_LAYOUT = ("voc", "voc_folder")
VARYING_SIZES = (*VOC_LAYOUT, "image_folder", "captioned_folder", "parquet")
"""Datasets whose images may differ in size."""
WITH_BUCKETS = ("image_folder", "captioned_folder", "parquet")
"""Datasets whose images' sizes are read from the headers of their files."""
WITH_MASKS = ("scenes", *VOC_LAYOUT)
WITH_LABELS = ("scenes", "image_folder", "parquet", "fashion_mnist", "cifar10")
"""One class per image ("label")."""
WITH_CLASSES = (*WITH_LABELS, *VOC_LAYOUT)
"""Classes per image ("labels"): its one class, or those in its mask."""
WITH_CAPTIONS = ("scenes", "captioned_folder", "parquet")
"""parquet: only with data.caption_column."""
DOWNLOADABLE = ("voc", "fashion_mnist", "cifar10")
NATIVE_SIZE = {"scenes": 32, "fashion_mnist": 28, "cifar10": 32}
"""Height and width in pixels of datasets of square images of one size."""
