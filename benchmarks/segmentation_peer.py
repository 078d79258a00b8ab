"""Peer for the segmentation results: segmentation_models_pytorch's U-Net, trained on the same images.

    pip install segmentation-models-pytorch
    python benchmarks/segmentation_peer.py --root VOC --weights MOBILENET_V2 --epochs 9 --output runs/peer-voc
    python benchmarks/segmentation_peer.py --config isbi_unet --root ISBI2012 --weights MOBILENET_V2 --crop 512 512 \
        --batch_size 2 --epochs 150 --instances --output runs/peer-isbi

The usual recipe of that library's users: AdamW with two learning rates, cross-entropy, cosine schedule, bf16 and
channels_last. Images are read by unetdiff and the metrics are its own, at the original mask size, so that only network
and recipe differ. Writes metrics.jsonl as unetdiff's trainer does; `minutes` is training time without validation.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from suite.cases.images import normalize_imagenet
from unetdiff.config.reading import load
from unetdiff.config.shipped import find_config
from unetdiff.data.base import ImageDataset, collate
from unetdiff.data.build import build_dataset
from unetdiff.data.config import AugmentConfig
from unetdiff.data.masks.voc import VOCFolder
from unetdiff.data.sampling import StepSampler
from unetdiff.data.transforms import Transform
from unetdiff.segmentation.inference import resize_logits
from unetdiff.segmentation.instances import InstanceScores
from unetdiff.segmentation.metrics import ConfusionMatrix

MIN_LR_RATIO = 1e-6  # learning rate at the end, relative to the peak


def build(encoder: str, weights: Path | None, classes: int) -> nn.Module:
    """smp's default U-Net with encoder weights from a file with torchvision's names."""
    model = smp.Unet(encoder, encoder_weights=None, classes=classes)
    if weights is not None:
        # smp's load_state_dict does not report missing keys
        missing, unexpected = nn.Module.load_state_dict(model.encoder, load_file(weights), strict=False)
        missing = [name for name in missing if not name.endswith("num_batches_tracked")]
        if missing or unexpected:
            raise SystemExit(
                f"--weights={weights}: must fit {encoder} (missing {missing[:3]}, unexpected {unexpected[:3]})."
            )
    return model.to(memory_format=torch.channels_last)


def datasets(args: argparse.Namespace) -> tuple[ImageDataset, ImageDataset]:
    """Training and validation split: of a folder in VOC's layout, or of a config's `data:` section, as RGB."""
    augment = AugmentConfig(flip=True, crop=args.crop)
    if args.config is None:
        train = VOCFolder(args.root, args.train_split, args.num_classes, transform=Transform(None, augment))
        return train, VOCFolder(args.root, args.val_split, args.num_classes)
    path = find_config(args.config, "segmentation")
    data = load(path, {"data.root": str(args.root), "data.channels": 3}, "segmentation").data
    augment = replace(augment, vertical_flip=data.augment.vertical_flip, rotate=data.augment.rotate)
    data = replace(data, augment=augment)
    return build_dataset(data, "train", segmentation=True), build_dataset(data, "val", segmentation=True)


@torch.inference_mode()
def evaluate(model: nn.Module, val: ImageDataset, instances: bool) -> dict[str, float | list[float | None]]:
    """Metrics of a split at the original mask size; images are padded to the multiple of 32 that smp requires."""
    model.eval()
    matrix, scores = ConfusionMatrix(len(val.classes)), InstanceScores() if instances else None
    for item in tqdm((val[i] for i in range(len(val))), total=len(val), desc="validation", leave=False):
        pixels = normalize_imagenet(item["image"][None])
        height, width = pixels.shape[-2:]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(F.pad(pixels, (0, -width % 32, 0, -height % 32)))[..., :height, :width]
        size = (item["mask"].shape[-2], item["mask"].shape[-1])
        resized = resize_logits(logits, size)
        matrix.update(resized.argmax(dim=1), item["mask"][None])
        if scores is not None:
            scores.update(resized[0], item["mask"])
    model.train()
    return matrix.compute() | ({} if scores is None else scores.compute())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="a folder in VOC's layout, or of --config")
    parser.add_argument("--config", help="a segmentation config of unetdiff whose `data:` section is read")
    parser.add_argument("--instances", action="store_true", help="also V_rand and V_info")
    parser.add_argument("--weights", type=Path, help="encoder weights, safetensors with torchvision's names")
    parser.add_argument("--encoder", default="mobilenet_v2")
    parser.add_argument("--num_classes", type=int, help="for a folder without classes.txt")
    parser.add_argument("--train_split", default="train")
    parser.add_argument("--val_split", default="val")
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--crop", type=int, nargs=2, default=[224, 224])
    parser.add_argument("--encoder_lr", type=float, default=3e-4)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--num_workers", type=int, default=1)
    parser.add_argument("--validate_epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    train, val = datasets(args)
    model = build(args.encoder, args.weights, len(train.classes)).train()
    decoder = [p for name, p in model.named_parameters() if not name.startswith("encoder.")]
    groups = [{"params": model.encoder.parameters(), "lr": args.encoder_lr}, {"params": decoder, "lr": args.lr}]
    optimizer = torch.optim.AdamW(groups, fused=True)
    steps = round(args.epochs * len(train) / args.batch_size)
    every = round(args.validate_epochs * len(train) / args.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: max(MIN_LR_RATIO, 0.5 * (1 + math.cos(math.pi * step / steps)))
    )
    loader = DataLoader(
        train,
        batch_sampler=StepSampler(len(train), args.batch_size, args.seed, stop=steps),
        collate_fn=collate,
        num_workers=args.num_workers,
    )
    args.output.mkdir(parents=True, exist_ok=True)
    print(f"{steps} steps, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    seconds, start = 0.0, time.perf_counter()
    with (args.output / "metrics.jsonl").open("w") as log:
        for step, batch in enumerate(tqdm(loader), 1):
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(normalize_imagenet(batch["image"]))
            loss = F.cross_entropy(logits.float(), batch["mask"].long(), ignore_index=255)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % every and step != steps:
                continue
            seconds += time.perf_counter() - start
            metrics = evaluate(model, val, args.instances)
            images = step * args.batch_size
            line = {"kind": "validation", "step": step, "images": images, "minutes": seconds / 60}
            line |= {"loss": loss.item(), "images_per_second": images / seconds}
            line |= {f"segmentation/{name}": value for name, value in metrics.items()}
            log.write(json.dumps(line) + "\n")
            log.flush()
            print(
                f"step {step}: {seconds / 60:.1f} minutes, mIoU {metrics['mean_iou']:.3f}, "
                f"pixel accuracy {metrics['pixel_accuracy']:.3f}",
                flush=True,
            )
            start = time.perf_counter()


if __name__ == "__main__":
    main()
