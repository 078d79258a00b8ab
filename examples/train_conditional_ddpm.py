"""Train a small class-conditional DDPM, then sample each class with and without guidance, from the same noise.

    python examples/train_conditional_ddpm.py --root path/to/folder       # one sub-folder per class
    python examples/train_conditional_ddpm.py                             # the embedded scenes
    python examples/train_conditional_ddpm.py --tiny                      # seconds

A tenth of the images are trained with the null token, so that one network is both the conditional and the
unconditional denoiser needed by classifier-free guidance (Ho & Salimans 2022).
Run again, it resumes an interrupted run and reuses a finished one; for other settings give another --output.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from unetdiff import GenerationPipeline
from unetdiff.config.model_directory import model_directory
from unetdiff.config.schema import RunConfig
from unetdiff.config.training import EMAConfig, OptimizerConfig, TrainingConfig
from unetdiff.data.config import DataConfig, ScenesConfig
from unetdiff.diffusion.config import DiffusionConfig
from unetdiff.diffusion.images import grid
from unetdiff.diffusion.noise import generators_for
from unetdiff.models.config import ConditioningConfig, EncoderConfig, ModelConfig, ResidualConfig
from unetdiff.training.run_cache import train_once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder with one sub-folder of images per class")
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--output", type=Path, default=Path("runs/conditional_ddpm"))
    parser.add_argument("--tiny", action="store_true", help="a few steps of a small network")
    args = parser.parse_args()

    run = train_once(make_config(args.root, args.size, args.output, args.tiny))

    denoiser = GenerationPipeline.from_pretrained(model_directory(run))
    labels = denoiser.conditioner.labels[:10]
    for guidance in (1.0, 3.0):
        output = denoiser(
            class_labels=[label for label in labels for _ in range(4)],
            num_inference_steps=2 if args.tiny else 50,
            guidance_scale=guidance,
            generator=generators_for(0, range(4 * len(labels))),
            output_type="pt",
        )
        path = run / f"samples-guidance-{guidance:g}.png"
        grid(output.images, rows=labels).save(path)
        print(path)


def make_config(root: Path | None, size: int, output: Path, tiny: bool) -> RunConfig:
    """The whole run: a residual U-Net with cross-attention to one token per class."""
    return RunConfig(
        task="diffusion",
        model=ModelConfig(
            encoder=EncoderConfig(name="residual", channels=[8, 16] if tiny else [64, 128, 128]),
            residual=ResidualConfig(layers_per_block=1),
            conditioning=ConditioningConfig(
                cross_attention_dim=8 if tiny else 64, attention_levels=[1 if tiny else 2], attention_head_dim=8
            ),
        ),
        data=DataConfig(
            name="scenes" if root is None else "image_folder",
            root=None if root is None else str(root),
            size=None if root is None else [size, size],
            scenes=ScenesConfig(train_images=32, val_images=8) if tiny else ScenesConfig(),
        ),
        diffusion=DiffusionConfig(
            prediction_type="v_prediction",
            condition="class",
            condition_dropout=0.1,
            preview_steps=2 if tiny else 25,
            preview_per_class=1 if tiny else 4,
        ),
        training=TrainingConfig(
            output_dir=str(output),
            steps=3 if tiny else 4000,
            batch_size=4 if tiny else 64,
            validate_every=3 if tiny else 500,
            optimizer=OptimizerConfig(lr=1e-3),
            ema=EMAConfig(half_life_images=10 if tiny else 10_000),
        ),
    )


if __name__ == "__main__":
    main()
