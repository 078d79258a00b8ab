"""The public name of `unetdiff.segmentation.losses`."""

from unetdiff.segmentation.losses import *  # noqa: F403
