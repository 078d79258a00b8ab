"""Forward processes: how noise is added to an image, and what the network predicts from the noisy image."""
