"""Export of a trained network to ONNX, torch.export or diffusers, for use without this package."""
