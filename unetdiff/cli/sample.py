"""`unetdiff sample PATH`: pictures drawn from noise, a labelled grid, and the way from noise to picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unetdiff.cli.parser import Parser
from unetdiff.diffusion.schedulers import SCHEDULERS, swap
from unetdiff.errors import UserError

BATCH = 64  # pictures drawn at once
STRIP = 8  # moments of the noise -> picture strip


def main(argv: Sequence[str]) -> int:
    """Draw; prints the files that show all of it."""
    parser = Parser("unetdiff sample", "Draw pictures with a trained denoiser.")
    parser.add_argument("path", type=Path, help="a run directory or a model directory")
    parser.add_argument("--class", dest="classes", nargs="+", metavar="NAME", help="classes; none given: all")
    parser.add_argument("--n", type=int, default=4, help="pictures of each class")
    parser.add_argument("--steps", type=int, default=50, help="denoising steps")
    parser.add_argument("--guidance", type=float, default=2.0, help="1: none; larger: more typical, less varied")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--scheduler", choices=SCHEDULERS, help="sampler; none given: the model's own")
    parser.add_argument("--output", type=Path, default=Path("samples"), help="folder for the pictures")
    given = parser.parse_strictly(argv)
    if given.n < 1:
        raise UserError(f"--n: {given.n} draws nothing; use 1 or more")
    pipeline = load(given.path, given.scheduler)
    names = class_names(pipeline, given.classes)
    images, trajectory = draw(pipeline, names, given.n, given.steps, given.guidance, given.seed)
    for path in write(images, trajectory, names, given.n, given.output):
        print(path)
    return 0


def load(path: Path, scheduler: str | None) -> Any:
    """The GenerationPipeline in a run or model directory, with another sampler where one is named."""
    import torch

    from unetdiff.diffusion.pipeline import GenerationPipeline
    from unetdiff.training.checkpoints import model_directory

    pipeline = GenerationPipeline.from_pretrained(model_directory(path))
    if scheduler is not None:
        pipeline.scheduler = swap(pipeline.scheduler, scheduler)
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def class_names(pipeline: Any, asked: Sequence[str] | None) -> list[str | None]:
    """The classes to draw, each once; [None] for a model without classes."""
    if pipeline.conditioner is None:
        if asked:
            raise UserError(f"--class: {asked[0]!r} was asked for, but this model was trained without classes")
        return [None]
    labels = pipeline.conditioner.labels
    return [labels[int(i)] for i in pipeline.conditioner.encode(list(asked))] if asked else list(labels)


def draw(
    pipeline: Any, names: Sequence[str | None], n: int, steps: int, guidance: float, seed: int
) -> tuple[list[Any], Any]:
    """`n` PIL pictures of each class, class by class, and the trajectory of the first batch.

    Picture i has its own generator (seed + i): it does not depend on how many are drawn with it.
    """
    import torch

    from unetdiff.training.machine import autocast_dtype

    wanted = [name for name in names for _ in range(n)]
    images: list[Any] = []
    trajectory = None
    for start in range(0, len(wanted), BATCH):
        part = wanted[start : start + BATCH]
        output = pipeline(
            class_labels=None if part[0] is None else part,
            batch_size=len(part),
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(seed + start + i) for i in range(len(part))],
            autocast_dtype=autocast_dtype(),
            return_trajectory=0 if trajectory is not None else STRIP,
        )
        images += output.images
        trajectory = trajectory or output.trajectory
    return images, trajectory


def write(
    images: Sequence[Any], trajectory: Any, names: Sequence[str | None], n: int, output: Path
) -> tuple[Path, Path, Path]:
    """A PNG for each picture, one grid with a row a class, and the way of the first picture from noise."""
    from unetdiff.diffusion.pictures import grid, strip

    folder = output / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        name = names[index // n]
        stem = f"{index:04d}" if name is None else f"{_file_name(name)}-{index % n:03d}"
        image.save(folder / f"{stem}.png")
    rows = None if names[0] is None else [str(name) for name in names]
    grid(images, rows=rows).save(output / "grid.png")
    strip(trajectory).save(output / "noise_to_picture.png")
    return folder, output / "grid.png", output / "noise_to_picture.png"


def _file_name(name: str) -> str:
    """A class name as part of a file name ("T-shirt/top" -> "T-shirt_top")."""
    return re.sub(r"[^\w.-]+", "_", name)
