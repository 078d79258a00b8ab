"""Train a small text-conditional DDPM on captioned images, then sample prompts, with and without a negative prompt.

    python examples/text_to_image.py --root path/to/folder      # images and metadata.jsonl with file_name and text
    python examples/text_to_image.py --encoder path/or/name     # the embedded scenes: "a red three"
    python examples/text_to_image.py --tiny --encoder ...       # seconds

The text encoder is frozen: the features of all captions are computed once and cached on disk, and only their
projection to the network's width and the null token are trained.
Run again, it resumes an interrupted run and reuses a finished one; for other settings give another --output.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from unetdiff import GenerationPipeline
from unetdiff.config.model_directory import model_directory
from unetdiff.config.schema import RunConfig
from unetdiff.config.training import EMAConfig, OptimizerConfig, TrainingConfig
from unetdiff.data.build import build_dataset
from unetdiff.data.config import DataConfig, ScenesConfig
from unetdiff.diffusion.config import DiffusionConfig, TextConfig
from unetdiff.diffusion.images import grid
from unetdiff.diffusion.noise import generators_for
from unetdiff.models.config import ConditioningConfig, EncoderConfig, ModelConfig, ResidualConfig
from unetdiff.training.run_cache import train_once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder of images with a metadata.jsonl")
    parser.add_argument("--encoder", default="openai/clip-vit-large-patch14", help="a text encoder: name or folder")
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--output", type=Path, default=Path("runs/text_to_image"))
    parser.add_argument("--tiny", action="store_true", help="a few steps of a small network")
    args = parser.parse_args()

    config = make_config(args.root, args.encoder, args.size, args.output, args.tiny)
    run = train_once(config)

    denoiser = GenerationPipeline.from_pretrained(model_directory(run))
    val = build_dataset(config.data, "val", segmentation=False)
    prompts = list(dict.fromkeys(val[i]["caption"] for i in range(min(len(val), 50))))[:4]
    for name, negative in (("plain", None), ("negative", prompts[0])):
        images = denoiser(
            prompt=[prompt for prompt in prompts for _ in range(4)],
            negative_prompt=negative,
            num_inference_steps=2 if args.tiny else 50,
            guidance_scale=3.0,
            generator=generators_for(0, range(4 * len(prompts))),
        ).images
        path = run / f"samples-{name}.png"
        grid(images, rows=prompts).save(path)
        print(path)


def make_config(root: Path | None, encoder: str, size: int, output: Path, tiny: bool) -> RunConfig:
    """The whole run: a residual U-Net with cross-attention to the text, and its mean added to the time embedding."""
    return RunConfig(
        task="diffusion",
        model=ModelConfig(
            patch_size=2,
            encoder=EncoderConfig(name="residual", channels=[8, 16] if tiny else [64, 128, 128]),
            residual=ResidualConfig(layers_per_block=1, norm_num_groups=8, time_scale_shift="scale_shift"),
            conditioning=ConditioningConfig(
                cross_attention_dim=8 if tiny else 64,
                pooled_context=True,
                attention_levels=[1] if tiny else [1, 2],
                attention_head_dim=8 if tiny else 32,
            ),
        ),
        data=DataConfig(
            name="scenes" if root is None else "captioned_folder",
            root=None if root is None else str(root),
            size=None if root is None else [size, size],
            scenes=ScenesConfig(train_images=32, val_images=8) if tiny else ScenesConfig(clutter=0.1, spread=0.0),
        ),
        diffusion=DiffusionConfig(
            condition="text",
            text=TextConfig(encoder=encoder, cache_dir=str(output.parent / "captions")),
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
