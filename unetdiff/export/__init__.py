"""A trained network as a file, or a pipeline directory of diffusers, that runs without this package."""

from unetdiff.export.files import TOLERANCE, Exported, to_onnx, to_torch_export
from unetdiff.export.stock import to_diffusers

__all__ = ["TOLERANCE", "Exported", "to_diffusers", "to_onnx", "to_torch_export"]
