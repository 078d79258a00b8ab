"""Conditioners: classes, text, layouts and images as tokens for cross-attention and as input channels."""
