"""The peer of the segmentation figures: segmentation_models_pytorch's U-Net, trained plainly on the same images.

    pip install segmentation-models-pytorch
    python benchmarks/segmentation_peer.py --root VOC --weights MOBILENET_V2 --epochs 9 --output runs/peer-voc

AdamW with two learning rates, cross-entropy, cosine over the run, bf16 and channels_last: what a user of that library
writes. It reads images by our reader and is judged by our matrix at the masks' own size, so that only network and
recipe differ. Writes metrics.jsonl as our trainer does; `minutes` counts training alone, without validation.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from suite.cases.images import normalized
from unetdiff.data.base import collate
from unetdiff.data.config import AugmentConfig
from unetdiff.data.sampling import StepSampler
from unetdiff.data.transforms import Transform
from unetdiff.data.voc import VOCFolder
from unetdiff.segmentation.inference import resize_logits
from unetdiff.segmentation.metrics import ConfusionMatrix

FLOOR = 1e-6  # learning rate at the cosine's end, as a share of the peak


def build(encoder: str, weights: Path | None, classes: int) -> nn.Module:
    """smp's default U-Net on a trunk whose weights come from a file with torchvision's names."""
    model = smp.Unet(encoder, encoder_weights=None, classes=classes)
    if weights is not None:
        # smp's own load_state_dict does not tell what was missing
        missing, unexpected = nn.Module.load_state_dict(model.encoder, load_file(weights), strict=False)
        missing = [name for name in missing if not name.endswith("num_batches_tracked")]
        if missing or unexpected:
            raise SystemExit(f"{weights} does not fit smp's {encoder}: missing {missing[:3]}, unknown {unexpected[:3]}")
    return model.to(memory_format=torch.channels_last)


@torch.inference_mode()
def judge(model: nn.Module, val: VOCFolder) -> dict[str, float | list[float | None]]:
    """The figures of a split at the masks' own size; images are padded to the multiple of 32 that smp needs."""
    model.eval()
    matrix = ConfusionMatrix(len(val.classes))
    for item in tqdm((val[i] for i in range(len(val))), total=len(val), desc="validation", leave=False):
        pixels = normalized(item["image"][None])
        height, width = pixels.shape[-2:]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(F.pad(pixels, (0, -width % 32, 0, -height % 32)))[..., :height, :width]
        size = (item["mask"].shape[-2], item["mask"].shape[-1])
        matrix.update(resize_logits(logits, size).argmax(dim=1), item["mask"][None])
    model.train()
    return matrix.compute()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="a folder in VOC's layout")
    parser.add_argument("--weights", type=Path, help="the trunk's weights, safetensors with torchvision's names")
    parser.add_argument("--encoder", default="mobilenet_v2")
    parser.add_argument("--num_classes", type=int, help="where the folder has no classes.txt")
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
    given = parser.parse_args()

    torch.manual_seed(given.seed)
    transform = Transform(None, AugmentConfig(flip=True, crop=given.crop))
    train = VOCFolder(given.root, given.train_split, given.num_classes, transform=transform)
    val = VOCFolder(given.root, given.val_split, given.num_classes)
    model = build(given.encoder, given.weights, len(train.classes)).train()
    rest = [p for name, p in model.named_parameters() if not name.startswith("encoder.")]
    groups = [{"params": model.encoder.parameters(), "lr": given.encoder_lr}, {"params": rest, "lr": given.lr}]
    optimizer = torch.optim.AdamW(groups, fused=True)
    steps = round(given.epochs * len(train) / given.batch_size)
    every = round(given.validate_epochs * len(train) / given.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: max(FLOOR, 0.5 * (1 + math.cos(math.pi * step / steps)))
    )
    loader = DataLoader(
        train,
        batch_sampler=StepSampler(len(train), given.batch_size, given.seed, stop=steps),
        collate_fn=collate,
        num_workers=given.num_workers,
    )
    given.output.mkdir(parents=True, exist_ok=True)
    print(f"{steps} steps, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    seconds, began = 0.0, time.perf_counter()
    with (given.output / "metrics.jsonl").open("w") as log:
        for step, batch in enumerate(tqdm(loader), 1):
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(normalized(batch["image"]))
            loss = F.cross_entropy(logits.float(), batch["mask"].long(), ignore_index=255)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % every and step != steps:
                continue
            seconds += time.perf_counter() - began
            figures = judge(model, val)
            images = step * given.batch_size
            line = {"kind": "validation", "step": step, "images": images, "minutes": seconds / 60}
            line |= {"loss": float(loss), "images_per_second": images / seconds}
            line |= {f"segmentation/{name}": value for name, value in figures.items()}
            log.write(json.dumps(line) + "\n")
            log.flush()
            print(
                f"step {step}: {seconds / 60:.1f} minutes, mIoU {figures['mean_iou']:.3f}, "
                f"pixel accuracy {figures['pixel_accuracy']:.3f}",
                flush=True,
            )
            began = time.perf_counter()


if __name__ == "__main__":
    main()
