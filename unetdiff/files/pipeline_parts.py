"""The folders of a pipeline directory's parts, which diffusers calls otherwise in its oldest text to image pipeline."""

from __future__ import annotations

from pathlib import Path

LATENT_DIFFUSION = {"vae": "vqvae", "text_encoder": "bert"}
"""Name of a part -> that of `LDMTextToImagePipeline` (Rombach et al. 2022)."""


def part(directory: Path, name: str) -> Path:
    """The folder of a part, which need not exist: of its own name, or of Latent Diffusion's if there is one."""
    other = directory / LATENT_DIFFUSION.get(name, name)
    return other if other.is_dir() and not (directory / name).is_dir() else directory / name
