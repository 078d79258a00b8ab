"""The network: one U-Net with a segmentation head, a diffusion head, or both, in plain PyTorch."""
