"""The segmentation head: losses, metrics, inference, overlays and the pipeline around them."""
