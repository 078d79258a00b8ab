"""A trained network as a file, or as a diffusers directory, that runs without this package."""
