"""`unetdiff sample PATH`: images sampled from noise, a labeled grid, and the trajectory from noise to image."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unetdiff.cli.file_names import file_names
from unetdiff.cli.model_path import HELP, local_model
from unetdiff.cli.parser import Parser, finite
from unetdiff.diffusion.scheduler_names import SCHEDULER_NAMES
from unetdiff.errors import UserError, printable
from unetdiff.files.images import open_image, save_image
from unetdiff.files.writing import file_errors, make_folder, require_writable

IMAGES = "images"  # folder of the output
BATCH = 64  # images sampled at once
STRIP_ENTRIES = 8  # of the trajectory in noise_to_image.png
GIF_FRAMES = 25  # of the trajectory in noise_to_image.gif
OPTIONS = {
    "class_labels": "--class",
    "prompt": "--prompt",
    "layout": "--layout",
    "condition_image": "--condition_image",
}
USAGE = """unetdiff sample PATH [--class NAME ... | --prompt TEXT ...] [--num_images 4] [--num_inference_steps 50]
                       [--guidance_scale 2] [--output DIR]"""


@dataclass(frozen=True)
class Rows:
    """The conditions that are sampled, one per row."""

    labels: list[str]
    """Label of each row; [""] for an unconditional model."""
    conditions: Any = None
    """Encoded by the model's conditioner, (rows, ...); None: unconditional."""
    shown: Any = None
    """A layout or image before each row, (rows, 3, H, W) in [0, 1], or None."""


def main(argv: Sequence[str]) -> int:
    """Sample; prints the files that show all images."""
    args = build_parser().parse_strictly(argv)
    path = local_model(args.path)
    require_writable("--output", args.output, folder=True)
    require_writable("--output", args.output / IMAGES, folder=True)
    pipeline = load(path, args.scheduler, args.compile)
    rows = rows_of(pipeline, args)
    options = options_of(pipeline, args)
    if args.interpolate_to_seed is not None:
        written = interpolate(pipeline, rows, args, options)
    else:
        entries = GIF_FRAMES if args.gif else STRIP_ENTRIES
        images, trajectory = sample(pipeline, rows, args.num_images, args.seed, options, entries)
        written = write(images, trajectory, rows, args.num_images, args.output, args.gif)
    for path in written:
        print(printable(str(path)))
    return 0


def build_parser() -> Parser:
    """The command's options."""
    parser = Parser("unetdiff sample", "Sample images with a trained denoiser.", USAGE)
    parser.add_argument("path", type=Path, help=HELP)
    condition = parser.add_argument_group("condition (as the model was trained; one row each)")
    condition.add_argument(
        "--class", dest="classes", nargs="+", metavar="NAME", help="classes (cat+dog: both in one image); default: all"
    )
    condition.add_argument("--prompt", nargs="+", metavar="TEXT", help="captions")
    condition.add_argument("--layout", nargs="+", type=Path, metavar="FILE", help="masks of class indices (PNG)")
    condition.add_argument("--condition_image", nargs="+", type=Path, metavar="FILE", help="images to restore")
    condition.add_argument("--negative_class", metavar="NAME", help="a class that guidance moves away from")
    condition.add_argument("--negative_prompt", metavar="TEXT", help="a text that guidance moves away from")
    condition.add_argument("--num_images", type=int, default=4, help="images per condition")
    condition.add_argument("--seed", type=int, default=0, help="seed of the noise")
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--num_inference_steps", type=int, default=50, help="denoising steps")
    sampling.add_argument(
        "--guidance_scale", type=float, default=2.0, help="1: none; larger: more typical, less varied"
    )
    sampling.add_argument("--guidance_rescale", type=float, default=0.0, help="0 to 1: against overexposure")
    sampling.add_argument(
        "--guidance_interval",
        type=_interval,
        default=(0.0, 1.0),
        metavar="A,B",
        help="fractions of the steps",
    )
    sampling.add_argument("--scheduler", choices=SCHEDULER_NAMES, help="sampler; default: the model's own")
    sampling.add_argument("--compile", action="store_true", help="compile the network first: for many images on a GPU")
    start = parser.add_argument_group("image-to-image and inpainting")
    start.add_argument("--image", type=Path, metavar="FILE", help="an image to start from")
    start.add_argument("--strength", type=float, help="0 to 1, how far from it; default: 0.8, with a mask 1")
    start.add_argument("--mask_image", type=Path, metavar="FILE", help="repainted where bright, kept where dark")
    output = parser.add_argument_group("output")
    output.add_argument("--output", type=Path, default=Path("samples"), help="folder for the images")
    output.add_argument("--gif", action="store_true", help="the trajectory from noise to images as a GIF, too")
    output.add_argument(
        "--interpolate_to_seed", type=int, help="interpolate from the noise of --seed to that of this seed instead"
    )
    output.add_argument("--frames", type=int, default=12, help="images of the interpolation")
    return parser


def load(path: Path, scheduler: str | None, compile: bool = False) -> Any:
    """The GenerationPipeline of a run or model directory, optionally with another sampler."""
    import torch

    from unetdiff.config.model_directory import model_directory
    from unetdiff.diffusion.pipeline import GenerationPipeline
    from unetdiff.diffusion.schedulers import make_scheduler
    from unetdiff.training.runtime import autocast_dtype

    pipeline = GenerationPipeline.from_pretrained(model_directory(path))
    if scheduler is not None:
        pipeline.scheduler = make_scheduler(pipeline.scheduler, scheduler)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    return pipeline.optimize_for_inference(autocast_dtype(), compile)


def rows_of(pipeline: Any, args: argparse.Namespace) -> Rows:
    """The conditions of the command line.

    Raises:
        UserError: a condition that the model was not trained with, or none where it needs one.
    """
    inputs = {
        "class_labels": args.classes,
        "prompt": args.prompt,
        "layout": args.layout,
        "condition_image": args.condition_image,
    }
    conditioner = pipeline.conditioner
    expected: str | None = None if conditioner is None else conditioner.pipeline_arg
    for name, value in inputs.items():
        if value and name != expected:
            trained = "without a condition" if expected is None else f"with {OPTIONS[expected]}"
            raise UserError(f"{OPTIONS[name]}={value[0]}: must not be set, because this model was trained {trained}.")
    if expected is None:
        return Rows([""])
    import torch

    values = inputs[expected]
    if expected == "class_labels":
        conditions = conditioner.encode(values or list(conditioner.labels))
        return Rows(conditioner.names(conditions), conditions)
    if not values:
        raise UserError(f"{OPTIONS[expected]}: must be set, because this model was trained with it.")
    if expected == "prompt":
        return Rows(list(values), conditioner.encode(values))
    conditions = torch.cat([encoded(conditioner, path, pipeline.size()) for path in values])
    return Rows([path.stem for path in values], conditions, conditioner.visualize(conditions))


def encoded(conditioner: Any, path: Path, size: tuple[int, int]) -> Any:
    """A layout or image file as a condition, one row; UserError that names the file."""
    image = opened(path)
    try:
        return conditioner.encode([image], size)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def opened(path: Path) -> Any:
    """An image file, upright; a palette PNG stays indices."""
    from unetdiff.data.raw_images import upright

    with open_image(path, remedy="Give an image.") as image:
        image.load()
        return upright(image)


def options_of(pipeline: Any, args: argparse.Namespace) -> dict[str, Any]:
    """The pipeline's arguments in addition to conditions and generators."""
    from unetdiff.diffusion.editing import ImageStart
    from unetdiff.diffusion.guidance import Guidance

    guidance = Guidance(args.guidance_scale, args.guidance_rescale, args.guidance_interval)
    options: dict[str, Any] = {
        "num_inference_steps": args.num_inference_steps,
        "guidance_scale": guidance,
        "negative_class_labels": args.negative_class,
        "negative_prompt": args.negative_prompt,
    }
    if args.image is not None:
        mask_image = None if args.mask_image is None else opened(args.mask_image)
        strength = (0.8 if mask_image is None else 1.0) if args.strength is None else args.strength
        options["start"] = ImageStart(opened(args.image), mask_image, strength)
    else:
        for name in ("strength", "mask_image"):
            if getattr(args, name) is not None:
                raise UserError(f"--{name}={getattr(args, name)}: must be set with --image.")
    return options


def sample(
    pipeline: Any, rows: Rows, num_images: int, seed: int, options: dict[str, Any], num_entries: int = STRIP_ENTRIES
) -> tuple[list[Any], Any]:
    """`num_images` PIL images per row, row by row, and the trajectory of the first batch.

    An image depends on the seed, its condition and its index (`unetdiff.diffusion.noise`), not on its batch.
    """
    from unetdiff.diffusion.noise import generators_for, image_indices
    from unetdiff.diffusion.trajectory import TrajectoryRecorder

    conditions, count = rows.conditions, len(rows.labels)
    numbers, total = (range(count), count) if conditions is None else pipeline.conditioner.rows(conditions)
    indices = image_indices(numbers, total, num_images)
    cells = [(row, index) for row in range(count) for index in indices[row]]
    recorder = TrajectoryRecorder(num_entries)
    images: list[Any] = []
    for at in range(0, len(cells), BATCH):
        batch = cells[at : at + BATCH]
        images += pipeline(
            conditions=None if conditions is None else conditions[[row for row, _ in batch]],
            batch_size=len(batch),
            generator=generators_for(seed, [index for _, index in batch]),
            callback_on_step_end=recorder if at == 0 else None,
            **options,
        ).images
    return images, recorder.trajectory


def write(
    images: Sequence[Any], trajectory: Any, rows: Rows, num_images: int, output: Path, gif: bool = False
) -> list[Path]:
    """A PNG per image, one grid with a row per condition, and the trajectory of the first image."""
    from unetdiff.diffusion.images import grid, save_film, strip, table

    folder, stems = output / IMAGES, file_names(rows.labels)
    with file_errors(folder):
        make_folder(folder)
        for number, image in enumerate(images):
            row, index = divmod(number, num_images)
            save_image(image, folder / (f"{stems[row]}-{index:03d}.png" if rows.labels[row] else f"{number:04d}.png"))
        written = [folder, output / "grid.png", output / "noise_to_image.png"]
        shown = [printable(label) for label in rows.labels]
        overview = grid(images, rows=shown if any(shown) else None) if rows.shown is None else table(images, rows.shown)
        save_image(overview, written[1])
        save_image(strip(trajectory), written[2])
        if gif:
            written.append(output / "noise_to_image.gif")
            save_film(trajectory, written[-1])
    return written


def interpolate(pipeline: Any, rows: Rows, args: argparse.Namespace, options: dict[str, Any]) -> list[Path]:
    """Images of the noises between image 0 of two seeds, one row per condition."""
    from unetdiff.diffusion.images import grid, save_frames
    from unetdiff.diffusion.noise import generator_for, noise_for, slerp

    shape = pipeline.noise_shape()
    noises = slerp(noise_for(args.seed, 0, shape), noise_for(args.interpolate_to_seed, 0, shape), args.frames)
    images: list[Any] = []
    for row in range(len(rows.labels)):
        images += pipeline(
            conditions=None if rows.conditions is None else rows.conditions[row : row + 1],
            latents=noises,
            generator=[generator_for(args.seed, 1) for _ in range(args.frames)],  # the same noise of the steps
            **options,
        ).images
    written = [args.output / "interpolation.png", args.output / "interpolation.gif"]
    labels = rows.labels if any(rows.labels) else [f"{args.seed} to {args.interpolate_to_seed}"]
    columns = [[images[row * args.frames + frame] for row in range(len(labels))] for frame in range(args.frames)]
    with file_errors(args.output):
        make_folder(args.output)
        save_image(grid(images, rows=[printable(label) for label in labels]), written[0])
        save_frames([grid(column, columns=[""] * len(column)) for column in columns], written[1], back=True)
    return written


def _interval(word: str) -> tuple[float, float]:
    try:
        first, last = (finite(part) for part in word.split(","))
    except ValueError:
        first, last = 1.0, 0.0
    if not 0 <= first <= last <= 1:
        raise argparse.ArgumentTypeError(
            f"{word!r}: must be two increasing fractions in [0, 1], e.g. 0.2,0.8"
        ) from None
    return first, last
