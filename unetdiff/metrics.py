"""The public names of `unetdiff.segmentation`'s metrics: the matrix, boundary IoU, calibration."""

from unetdiff.segmentation.boundary import BoundaryIoU
from unetdiff.segmentation.metrics import ConfusionMatrix
from unetdiff.segmentation.reliability import Calibration

__all__ = ["BoundaryIoU", "Calibration", "ConfusionMatrix"]
