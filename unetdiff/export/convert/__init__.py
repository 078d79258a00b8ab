"""Weights and configs of other libraries: diffusers and segmentation_models_pytorch."""
