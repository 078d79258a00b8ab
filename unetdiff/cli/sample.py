"""`unetdiff sample PATH`: images drawn from noise, a labelled grid, and the way from noise to image."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unetdiff.cli.parser import Parser
from unetdiff.diffusion.schedulers import SCHEDULERS, make_scheduler
from unetdiff.errors import UserError

BATCH = 64  # images drawn at once
STRIP = 8  # moments of the noise -> image strip
FILM = 25  # moments of the film
OPTIONS = {
    "class_labels": "--class",
    "prompt": "--prompt",
    "layout": "--layout",
    "condition_image": "--condition_image",
}
USAGE = "unetdiff sample PATH [--class NAME ...] [--prompt TEXT ...] [--n 4] [--steps 50] [--guidance 2] [--output DIR]"


@dataclass(frozen=True)
class Asked:
    """What to draw, a row each."""

    labels: list[str]
    """What each row is called; [""] where nothing is said."""
    conditions: Any = None
    """(rows, ...) as the model's conditioner takes them; None: nothing is said."""
    shown: Any = None
    """A layout or image before each row, (rows, 3, H, W) in [0, 1], or None."""


def main(argv: Sequence[str]) -> int:
    """Draw; prints the files that show all of it."""
    given = build_parser().parse_strictly(argv)
    if given.n < 1:
        raise UserError(f"--n: {given.n} draws nothing; use 1 or more")
    pipeline = load(given.path, given.scheduler, given.compile)
    asked = what_to_draw(pipeline, given)
    settings = settings_of(pipeline, given)
    if given.to_seed is not None:
        written = interpolate(pipeline, asked, given, settings)
    else:
        images, trajectory = draw(pipeline, asked, given.n, given.seed, settings, FILM if given.gif else STRIP)
        written = write(images, trajectory, asked, given.n, given.output, given.gif)
    for path in written:
        print(path)
    return 0


def build_parser() -> Parser:
    """What the command takes."""
    parser = Parser("unetdiff sample", "Draw images with a trained denoiser.", USAGE)
    parser.add_argument("path", type=Path, help="a run directory or a model directory")
    what = parser.add_argument_group("what to draw (as the model was trained; a row each)")
    what.add_argument(
        "--class", dest="classes", nargs="+", metavar="NAME", help="classes (cat+dog: both in one); none given: all"
    )
    what.add_argument("--prompt", nargs="+", metavar="TEXT", help="captions")
    what.add_argument("--layout", nargs="+", type=Path, metavar="FILE", help="masks of class indices (PNG)")
    what.add_argument("--condition_image", nargs="+", type=Path, metavar="FILE", help="images to restore")
    what.add_argument("--negative", metavar="NAME|TEXT", help="a class or a text to move away from")
    what.add_argument("--n", type=int, default=4, help="images of each")
    what.add_argument("--seed", type=int, default=0, help="of the noise")
    how = parser.add_argument_group("how")
    how.add_argument("--steps", type=int, default=50, help="denoising steps")
    how.add_argument("--guidance", type=float, default=2.0, help="1: none; larger: more typical, less varied")
    how.add_argument("--guidance_rescale", type=float, default=0.0, help="0 to 1: less overexposed")
    how.add_argument(
        "--guidance_interval", type=_interval, default=(0.0, 1.0), metavar="A,B", help="shares of the timesteps"
    )
    how.add_argument("--compile", action="store_true", help="compile the network first: for many images on a GPU")
    how.add_argument("--scheduler", choices=SCHEDULERS, help="sampler; none given: the model's own")
    start = parser.add_argument_group("from an image")
    start.add_argument("--image", type=Path, metavar="FILE", help="an image to start from")
    start.add_argument("--strength", type=float, help="0 to 1, how far from it; none given: 0.8, with a mask 1")
    start.add_argument("--mask", type=Path, metavar="FILE", help="where it is drawn anew (bright)")
    written = parser.add_argument_group("what is written")
    written.add_argument("--output", type=Path, default=Path("samples"), help="folder for the images")
    written.add_argument("--gif", action="store_true", help="the way from noise to images as a film, too")
    written.add_argument("--to_seed", type=int, help="instead: the way from the noise of --seed to that of this seed")
    written.add_argument("--frames", type=int, default=12, help="images on that way")
    return parser


def load(path: Path, scheduler: str | None, compile: bool = False) -> Any:
    """The GenerationPipeline in a run or model directory, with another sampler where one is named."""
    import torch

    from unetdiff.diffusion.pipeline import GenerationPipeline
    from unetdiff.kernels.accelerate import accelerate_inference_
    from unetdiff.training.checkpoints import model_directory
    from unetdiff.training.runtime import autocast_dtype

    pipeline = GenerationPipeline.from_pretrained(model_directory(path))
    if scheduler is not None:
        pipeline.scheduler = make_scheduler(pipeline.scheduler, scheduler)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    accelerate_inference_(pipeline.unet, autocast_dtype(), compile)
    return pipeline


def what_to_draw(pipeline: Any, given: argparse.Namespace) -> Asked:
    """The rows that the command line asks for.

    Raises:
        UserError: a condition that the model was not trained with, or none where it needs one.
    """
    by_option = {
        "class_labels": given.classes,
        "prompt": given.prompt,
        "layout": given.layout,
        "image": given.condition_image,
    }
    conditioner = pipeline.conditioner
    right: str | None = None if conditioner is None else conditioner.pipeline_arg
    for name, value in by_option.items():
        if value and name != right:
            instead = "without a condition" if right is None else f"with {OPTIONS[right]}"
            raise UserError(f"{OPTIONS[name]}: {str(value[0])!r} was asked for, but this model was trained {instead}")
    if right is None:
        return Asked([""])
    words = by_option[right]
    if right == "class_labels":
        conditions = conditioner.encode(words or list(conditioner.labels))
        return Asked(conditioner.names(conditions), conditions)
    if not words:
        raise UserError(f"{OPTIONS[right]}: nothing to draw was given, and this model needs it")
    if right == "prompt":
        return Asked(list(words), conditioner.encode(words))
    conditions = conditioner.encode([opened(path) for path in words], pipeline.size())
    return Asked([path.stem for path in words], conditions, conditioner.visualize(conditions))


def opened(path: Path) -> Any:
    """An image file, upright; a palette PNG stays indices."""
    from PIL import Image

    from unetdiff.data.decoding import upright

    try:
        with Image.open(path) as image:
            image.load()
            return upright(image)
    except (OSError, SyntaxError) as error:
        raise UserError(f"{path}: cannot be read as an image ({error})") from None


def settings_of(pipeline: Any, given: argparse.Namespace) -> dict[str, Any]:
    """What the pipeline is told beside conditions, noise and size of a batch."""
    from unetdiff.training.runtime import autocast_dtype

    settings: dict[str, Any] = {
        "num_inference_steps": given.steps,
        "guidance_scale": given.guidance,
        "guidance_rescale": given.guidance_rescale,
        "guidance_interval": given.guidance_interval,
        "autocast_dtype": autocast_dtype(),
    }
    if given.negative is not None:
        kinds = {"class_labels": "negative_class_labels", "prompt": "negative_prompt"}
        right = "" if pipeline.conditioner is None else pipeline.conditioner.pipeline_arg
        if right not in kinds:
            raise UserError(f"--negative: {given.negative!r}, but this model was trained without classes and texts")
        settings[kinds[right]] = given.negative
    if given.image is not None:
        settings |= {"image": opened(given.image), "strength": given.strength}
    elif given.strength is not None:
        raise UserError(f"--strength: {given.strength} of what? give --image as well")
    if given.mask is not None:
        settings["mask_image"] = opened(given.mask)
    return settings


def draw(
    pipeline: Any, asked: Asked, n: int, seed: int, settings: dict[str, Any], moments: int = STRIP
) -> tuple[list[Any], Any]:
    """`n` PIL images of each row, row by row, and the trajectory of the first batch.

    Image i has its own generator (seed + i): it does not depend on how many are drawn with it.
    """
    import torch

    total = n * len(asked.labels)
    images: list[Any] = []
    trajectory = None
    for start in range(0, total, BATCH):
        numbers = range(start, min(start + BATCH, total))
        rows = [number // n for number in numbers]
        output = pipeline(
            conditions=None if asked.conditions is None else asked.conditions[rows],
            batch_size=len(numbers),
            generator=[torch.Generator().manual_seed(seed + number) for number in numbers],
            return_trajectory=0 if trajectory is not None else moments,
            **settings,
        )
        images += output.images
        trajectory = trajectory or output.trajectory
    return images, trajectory


def write(images: Sequence[Any], trajectory: Any, asked: Asked, n: int, output: Path, film: bool = False) -> list[Path]:
    """A PNG for each image, one grid with a row each, and the way of the first image from noise."""
    from unetdiff.diffusion.images import grid, save_film, strip, table

    folder = output / "images"
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        name = asked.labels[index // n]
        stem = f"{index:04d}" if not name else f"{_file_name(name)}-{index % n:03d}"
        image.save(folder / f"{stem}.png")
    written = [folder, output / "grid.png", output / "noise_to_image.png"]
    if asked.shown is not None:
        table(images, asked.shown).save(written[1])
    else:
        grid(images, rows=asked.labels if any(asked.labels) else None).save(written[1])
    strip(trajectory).save(written[2])
    if film:
        written.append(output / "noise_to_image.gif")
        save_film(trajectory, written[-1])
    return written


def interpolate(pipeline: Any, asked: Asked, given: argparse.Namespace, settings: dict[str, Any]) -> list[Path]:
    """Images of the noises between two seeds, a row each."""
    import torch

    from unetdiff.diffusion.editing import slerp
    from unetdiff.diffusion.images import grid, save_frames

    shape = pipeline.noise_shape()
    first, last = (
        torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in (given.seed, given.to_seed)
    )
    noises = slerp(first, last, given.frames)  # (frames, C, H, W)
    given.output.mkdir(parents=True, exist_ok=True)
    images: list[Any] = []
    for row in range(len(asked.labels)):
        images += pipeline(
            conditions=None if asked.conditions is None else asked.conditions[row : row + 1],
            latents=noises,
            generator=[torch.Generator().manual_seed(given.seed) for _ in range(given.frames)],
            **settings,
        ).images
    written = [given.output / "interpolation.png", given.output / "interpolation.gif"]
    named = asked.labels if any(asked.labels) else [f"{given.seed} to {given.to_seed}"]
    grid(images, rows=named).save(written[0])
    columns = [[images[row * given.frames + frame] for row in range(len(named))] for frame in range(given.frames)]
    save_frames([grid(column, columns=[""] * len(column)) for column in columns], written[1], back=True)
    return written


def _interval(word: str) -> tuple[float, float]:
    try:
        first, last = (float(part) for part in word.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is no interval; give two shares such as 0.2,0.8") from None
    return first, last


def _file_name(name: str) -> str:
    """A class name or a prompt as part of a file name ("T-shirt/top" -> "T-shirt_top")."""
    return re.sub(r"[^\w.+-]+", "_", name)[:80]
