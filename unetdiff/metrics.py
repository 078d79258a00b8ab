"""The public name of `unetdiff.segmentation.metrics`."""

from unetdiff.segmentation.metrics import *  # noqa: F403
