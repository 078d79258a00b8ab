"""Train a small layout-conditional DDPM, then sample several images of the same masks.

    python examples/layout_to_image.py --root data/VOCdevkit/VOC2012 --num_classes 21   # a folder in VOC's layout
    python examples/layout_to_image.py                                         # the embedded scenes
    python examples/layout_to_image.py --tiny                                  # seconds

A mask reaches the network twice: as tokens, the fraction of each class in the cells of a coarse grid, and as channels
concatenated to the noisy image, a learned embedding of each pixel's class.
Run again, it resumes an interrupted run and reuses a finished one; for other settings give another --output.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from unetdiff import GenerationPipeline
from unetdiff.config.model_directory import model_directory
from unetdiff.config.schema import RunConfig
from unetdiff.config.training import EMAConfig, OptimizerConfig, TrainingConfig
from unetdiff.data.build import build_dataset
from unetdiff.data.config import DataConfig, ScenesConfig
from unetdiff.diffusion.config import DiffusionConfig, LayoutConfig
from unetdiff.diffusion.images import table
from unetdiff.diffusion.noise import generators_for
from unetdiff.models.config import ConditioningConfig, EncoderConfig, ModelConfig, ResidualConfig
from unetdiff.training.run_cache import train_once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="a folder in VOC's layout")
    parser.add_argument("--num_classes", type=int, help="where it has no classes.txt")
    parser.add_argument("--size", type=int, default=64, help="height and width of the images")
    parser.add_argument("--output", type=Path, default=Path("runs/layout_to_image"))
    parser.add_argument("--tiny", action="store_true", help="a few steps of a small network")
    args = parser.parse_args()

    config = make_config(args.root, args.num_classes, args.size, args.output, args.tiny)
    run = train_once(config)

    denoiser = GenerationPipeline.from_pretrained(model_directory(run))
    val = build_dataset(config.data, "val", segmentation=False, layout=True)
    items = [val[i] for i in range(4)]
    images = denoiser(
        layout=[item["mask"] for item in items for _ in range(3)],
        num_inference_steps=2 if args.tiny else 50,
        guidance_scale=2.0,
        generator=generators_for(0, range(3 * len(items))),
    ).images
    masks = denoiser.conditioner.visualize(torch.stack([item["mask"] for item in items]))
    real = torch.stack([item["image"] for item in items])
    table(images, masks, real).save(run / "layouts.png")
    print(run / "layouts.png")


def make_config(root: Path | None, num_classes: int | None, size: int, output: Path, tiny: bool) -> RunConfig:
    """The whole run: a residual U-Net whose input has a few more channels than the image."""
    return RunConfig(
        task="diffusion",
        model=ModelConfig(
            patch_size=2,
            encoder=EncoderConfig(name="residual", channels=[8, 16] if tiny else [64, 128, 128]),
            residual=ResidualConfig(layers_per_block=1, norm_num_groups=8, time_scale_shift="scale_shift"),
            conditioning=ConditioningConfig(
                cross_attention_dim=8 if tiny else 64,
                attention_levels=[1] if tiny else [2],
                attention_head_dim=8 if tiny else 32,
            ),
        ),
        data=DataConfig(
            name="scenes" if root is None else "voc_folder",
            root=None if root is None else str(root),
            num_classes=num_classes,
            size=None if root is None else [size, size],
            scenes=ScenesConfig(train_images=32, val_images=8) if tiny else ScenesConfig(digits=2),
        ),
        diffusion=DiffusionConfig(
            condition="layout",
            layout=LayoutConfig(grid=4 if tiny else 8),
            preview_steps=2 if tiny else 25,
            preview_per_class=1 if tiny else 4,
        ),
        training=TrainingConfig(
            output_dir=str(output),
            steps=3 if tiny else 6000,
            batch_size=4 if tiny else 16,
            validate_every=3 if tiny else 1000,
            optimizer=OptimizerConfig(lr=2e-3, betas=[0.9, 0.99]),
            ema=EMAConfig(half_life_images=10 if tiny else 6000),
        ),
    )


if __name__ == "__main__":
    main()
