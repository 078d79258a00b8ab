"""Train a segmenter on images with VOC-style masks, and segment an image with it.

    python examples/train_voc_segmenter.py --root data/VOCdevkit/VOC2012 --num_classes 21     # PASCAL VOC
    python examples/train_voc_segmenter.py --root path/to/folder     # any folder in VOC's layout, with a classes.txt
    python examples/train_voc_segmenter.py --tiny                    # seconds, on a small generated folder

255 is ignored in loss and metrics. The encoder has ImageNet weights and a tenth of the decoder's learning rate.
Run again, it resumes an interrupted run and reuses a finished one; for other settings give another --output.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from unetdiff import SegmentationPipeline
from unetdiff.config.model_directory import model_directory
from unetdiff.config.schema import RunConfig
from unetdiff.config.training import EMAConfig, OptimizerConfig, TrainingConfig
from unetdiff.data.config import AugmentConfig, DataConfig
from unetdiff.data.masks.classes import voc_colormap
from unetdiff.data.masks.voc_lists import list_pairs
from unetdiff.models.config import EncoderConfig, ModelConfig
from unetdiff.segmentation.palette import save_mask
from unetdiff.training.run_cache import train_once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder with JPEGImages/, SegmentationClass/ and ImageSets/")
    parser.add_argument("--num_classes", type=int, help="number of classes, for a folder without classes.txt")
    parser.add_argument("--output", type=Path, default=Path("runs/voc_segmenter"))
    parser.add_argument("--weights", default="imagenet", help='"imagenet", a safetensors file, or "none"')
    parser.add_argument("--tiny", action="store_true", help="a few steps on a small generated folder")
    args = parser.parse_args()
    if args.root is None and not args.tiny:
        parser.error("--root: must be set without --tiny. Give a folder.")

    root = args.root or make_voc_folder(args.output.with_name(args.output.name + "-data"))
    if args.tiny:
        config = tiny_config(root, args.output)
    else:
        config = full_config(root, args.num_classes, args.output, args.weights)
    image = list_pairs(root, config.data.val_split)[0].image
    run = train_once(config)

    segmenter = SegmentationPipeline.from_pretrained(model_directory(run))
    result = segmenter(image)
    result.overlay.save(run / "example-overlay.png")
    names = ", ".join(segmenter.classes[i] for i in np.unique(result.mask))
    print(f"{image.name}: {names}; see {run / 'example-overlay.png'}")


def full_config(root: Path, num_classes: int | None, output: Path, weights: str) -> RunConfig:
    """A ResNet-50 encoder with ImageNet weights, 50 epochs of random crops."""
    return RunConfig(
        task="segmentation",
        model=ModelConfig(encoder=EncoderConfig(name="resnet50", weights=None if weights == "none" else weights)),
        data=DataConfig(
            name="voc_folder",
            root=str(root),
            num_classes=num_classes,
            augment=AugmentConfig(flip=True, scale=[0.5, 2.0], crop=[256, 256], color=0.3),
        ),
        training=TrainingConfig(
            output_dir=str(output), epochs=50, batch_size=16, optimizer=OptimizerConfig(lr=1e-3, encoder_lr=1e-4)
        ),
    )


def tiny_config(root: Path, output: Path) -> RunConfig:
    """A smoke test: three steps of a two-level network."""
    return RunConfig(
        task="segmentation",
        model=ModelConfig(encoder=EncoderConfig(name="classic", channels=[8, 16])),
        data=DataConfig(name="voc_folder", root=str(root), augment=AugmentConfig(flip=True, crop=[32, 32])),
        training=TrainingConfig(
            output_dir=str(output), steps=3, batch_size=4, validate_every=3, ema=EMAConfig(half_life_images=8)
        ),
    )


def make_voc_folder(root: Path) -> Path:
    """Twelve images of one rectangle each, with a void border, in VOC's layout."""
    rng = np.random.default_rng(0)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("background\nred\ngreen\n")
    for number in range(12):
        pixels = rng.integers(60, 120, (48, 64, 3), dtype=np.uint8)
        mask = np.zeros((48, 64), dtype=np.uint8)
        top, left, kind = rng.integers(4, 20), rng.integers(4, 30), rng.integers(1, 3)
        mask[top - 1 : top + 21, left - 1 : left + 25] = 255
        mask[top : top + 20, left : left + 24] = kind
        pixels[mask == kind, kind - 1] = 230
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{number:02d}.jpg", quality=95)
        save_mask(mask, root / "SegmentationClass" / f"{number:02d}.png", voc_colormap(3))
    for split, numbers in (("train", range(8)), ("val", range(8, 12))):
        (root / "ImageSets/Segmentation" / f"{split}.txt").write_text("".join(f"{n:02d}\n" for n in numbers))
    return root


if __name__ == "__main__":
    main()
