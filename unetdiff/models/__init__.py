"""The network: one U-Net on three encoder families, with a segmentation head, a diffusion head, or both."""

from unetdiff.models.config import ModelConfig
from unetdiff.models.unet import UNet

__all__ = ["ModelConfig", "UNet"]
