"""The segmentation head: losses, metrics, inference, masks as pictures, and the pipeline around them."""

from unetdiff.segmentation.config import OHEMConfig, SegmentationConfig
from unetdiff.segmentation.losses import LOSSES, combined, cross_entropy, dice, focal, lovasz
from unetdiff.segmentation.metrics import ConfusionMatrix

__all__ = [
    "LOSSES",
    "ConfusionMatrix",
    "OHEMConfig",
    "SegmentationConfig",
    "combined",
    "cross_entropy",
    "dice",
    "focal",
    "lovasz",
]
