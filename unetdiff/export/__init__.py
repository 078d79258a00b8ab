"""A trained network as one file that runs without this package."""

from unetdiff.export.files import TOLERANCE, Exported, to_onnx, to_torch_export

__all__ = ["TOLERANCE", "Exported", "to_onnx", "to_torch_export"]
