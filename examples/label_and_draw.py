"""A photograph labeled by the segmentation head, and drawn again, from noise, by the diffusion head.

    python examples/label_and_draw.py runs/flowers_latent --segmenter runs/flowers_heads \\
        --image rose.jpg=rose sunflower.jpg=sunflower          # FILE=CLASS
    python examples/label_and_draw.py --tiny                    # seconds: a joint run of the embedded scenes

A row per photograph: the photograph, its labels, x_t that the drawing starts from, the image drawn from there for its
class (SDEdit, Meng et al. 2022), and images of that class drawn from noise alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from unetdiff import GenerationPipeline, SegmentationPipeline
from unetdiff.config.model_directory import model_directory
from unetdiff.config.reading import load
from unetdiff.diffusion.images import grid
from unetdiff.diffusion.noise import generators_for
from unetdiff.diffusion.trajectory import TrajectoryRecorder
from unetdiff.training.run_cache import train_once

CONFIG = Path(__file__).parents[1] / "configs/joint/scenes.yaml"
COLUMNS = ["photograph", "labeled", "noised", "drawn again", "drawn from noise alone"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("denoiser", type=Path, nargs="?", help="a run with a diffusion head that was given classes")
    parser.add_argument("--segmenter", type=Path, help="a run with a segmentation head (default: the same)")
    parser.add_argument("--image", nargs="+", default=[], metavar="FILE=CLASS")
    parser.add_argument(
        "--strength", type=float, default=0.7, help="fraction of the noise that the drawing starts from"
    )
    parser.add_argument("--guidance_scale", type=float, default=3.0)
    parser.add_argument("--num_inference_steps", type=int, default=50)
    parser.add_argument("--drawn", type=int, default=2, help="images of the class from noise alone, in each row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/label_and_draw"))
    parser.add_argument("--tiny", action="store_true", help="a few steps of a small network")
    args = parser.parse_args()
    if args.tiny:
        args.denoiser, args.image, args.num_inference_steps = *train_tiny(args.output), 3
    if args.denoiser is None or not args.image:
        parser.error("give a run and --image FILE=CLASS, or --tiny")

    denoiser = GenerationPipeline.from_pretrained(model_directory(args.denoiser))
    segmenter = SegmentationPipeline.from_pretrained(model_directory(args.segmenter or args.denoiser))
    rows = [row(denoiser, segmenter, *one.rsplit("=", 1), args) for one in args.image]
    columns = [*COLUMNS, *[""] * (args.drawn - 1)]
    path = args.output / "label_and_draw.png"
    grid(torch.cat(rows), columns=columns).save(path)
    print(path)


def row(
    denoiser: GenerationPipeline, segmenter: SegmentationPipeline, file: str, name: str, args: argparse.Namespace
) -> torch.Tensor:
    """The images of one row, (4 + drawn, 3, H, W) in [0, 1]."""
    height, width = denoiser.size()
    photograph = Image.open(file).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    labeled = segmenter(photograph).overlay
    options = {
        "num_inference_steps": args.num_inference_steps,
        "guidance_scale": args.guidance_scale,
        "output_type": "pt",
    }
    recorder = TrajectoryRecorder(2)
    denoiser.image_to_image(
        photograph,
        args.strength,
        class_labels=[name],
        generator=generators_for(args.seed, [0]),
        callback_on_step_end=recorder,
        **options,
    )
    noised, again = recorder.trajectory.noisy[:, 0].clamp(0, 1)
    alone = denoiser(
        class_labels=[name] * args.drawn, generator=generators_for(args.seed, range(args.drawn)), **options
    )
    return torch.cat([torch.stack([to_tensor(photograph), to_tensor(labeled), noised, again]), alone.images])


def train_tiny(output: Path) -> tuple[Path, list[str]]:
    """A joint run of a few steps on the embedded scenes, and one of its images as FILE=CLASS."""
    overrides = {
        "model.encoder.channels": [8, 16],
        "model.conditioning.attention_levels": [1],
        "model.conditioning.attention_head_dim": 8,
        "data.scenes.train_images": 32,
        "data.scenes.val_images": 8,
        "diffusion.preview_steps": 2,
        "training.steps": 2,
        "training.batch_size": 4,
        "training.validate_every": 2,
        "training.output_dir": str(output),
    }
    run = train_once(load(CONFIG, overrides))
    image = output / "scene.png"
    Image.effect_noise((64, 64), 40).convert("RGB").save(image)
    return run, [f"{image}={GenerationPipeline.from_pretrained(model_directory(run)).conditioner.labels[0]}"]


if __name__ == "__main__":
    main()
