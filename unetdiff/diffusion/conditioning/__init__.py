"""Conditions of the denoiser: classes, text, layouts, images."""
