"""unetdiff: one U-Net, two heads. Train a segmenter and a conditional DDPM from one backbone, and compare them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unetdiff.diffusion.pipeline import GenerationPipeline
    from unetdiff.models.unet import UNet
    from unetdiff.segmentation.pipeline import SegmentationPipeline

__version__ = "0.1.0"

# Imported on first use, so that `import unetdiff` and `unetdiff --help` are quick.
_WHERE = {
    "UNet": "unetdiff.models.unet",
    "SegmentationPipeline": "unetdiff.segmentation.pipeline",
    "GenerationPipeline": "unetdiff.diffusion.pipeline",
}


__all__ = ["UNet", "SegmentationPipeline", "GenerationPipeline", "__version__"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'unetdiff' has no attribute '{name}'")
