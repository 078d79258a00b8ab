"""The three tasks of the training loop: segmentation, diffusion, joint."""
