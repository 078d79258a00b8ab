"""What a run optimizes: the segmentation head, the diffusion head, or both."""
