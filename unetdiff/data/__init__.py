"""Datasets of images, masks, classes and captions: readers, transforms, sampling order, checks and statistics."""
