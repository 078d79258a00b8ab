"""An independent judge of samples: a small classifier of real images, of an architecture of its own.

It is trained on the real set alone, never on samples and never with a U-Net of ours, and cached. What it says of
samples means as much as its accuracy on real images that it has not seen: print both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import nn

from unetdiff.data.transforms import resize_image, to_model_range
from unetdiff.errors import UserError
from unetdiff.evaluation.cache import keep, kept

LARGEST_SIDE = 64  # pixels; larger images are judged at this size
MOST_IMAGES = 20_000  # of a larger set this many are used


class LabelledImages(Protocol):
    """What the judge needs of a data set: items with "image", uint8 (3, H, W), and "label", int."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: int, /) -> Any: ...


@dataclass(frozen=True)
class Recipe:
    """How a judge is trained."""

    steps: int = 500
    """Optimizer steps."""
    batch: int = 128
    """Images a step."""
    lr: float = 6e-3
    """Largest learning rate of the one-cycle schedule."""
    shift: int = 2
    """Pixels of random shift."""
    seed: int = 0
    """Seed of weights, order and shifts."""


class Network(nn.Module):
    """Strided convolutions with BatchNorm, global mean, linear: (B, 3, H, W) in [-1, 1] -> (B, num_classes)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width, kernel, stride in ((32, 5, 2), (64, 3, 2), (96, 3, 1), (128, 3, 2)):
            layers += [
                nn.Conv2d(before, width, kernel, stride, padding=kernel // 2, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            before = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(before, num_classes)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the last layer sees, (B, 128), of pixels (B, 3, H, W) in [-1, 1]."""
        return reduce(self.body(pixels), "b c h w -> b c", "mean")

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(pixels))


class Judge:
    """A trained classifier and what it was trained on."""

    def __init__(self, network: Network, num_classes: int, fingerprint: str) -> None:
        self.network = network.eval().to(memory_format=torch.channels_last)
        self.num_classes = num_classes
        self.fingerprint = fingerprint

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, num_classes) float32 of uint8 images (B, 3, H, W).

        Raises:
            TypeError: images of another type, which would all look alike.
        """
        return self._run(self.network, images)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """What the last layer sees, (B, 128) float32, of uint8 images (B, 3, H, W); TypeError as in `logits`."""
        return self._run(self.network.features, images)

    @torch.no_grad()
    def _run(self, part_of_network: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        if images.dtype != torch.uint8:
            raise TypeError(f"the judge takes uint8 images, not {images.dtype}")
        device = self.network.head.weight.device
        parts = []
        for part in images.split(256):
            pixels = to_model_range(_judged_size(part).to(device)).contiguous(memory_format=torch.channels_last)
            parts.append(part_of_network(pixels).cpu())
        return torch.cat(parts)

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """Most likely class (B,) of uint8 images (B, 3, H, W)."""
        return self.logits(images).argmax(dim=1)

    def consistency(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """Share of images, uint8 (B, 3, H, W), that are taken for the class they were asked for, (B,)."""
        return share_right(self.predict(images), labels)

    def consistency_per_class(self, images: torch.Tensor, labels: torch.Tensor) -> list[float | None]:
        """`consistency` of each class; None for a class that no image was asked for."""
        return share_right_per_class(self.predict(images), labels, self.num_classes)

    def accuracy(self, dataset: LabelledImages) -> float:
        """Share of a set's real images that it names rightly; to be told beside every consistency."""
        images, labels = _load(dataset, self.num_classes)
        return self.consistency(images, labels)

    def save(self, path: Path) -> None:
        """Write PATH.safetensors and PATH.json."""
        keep(path, self.network.state_dict(), self.fingerprint, num_classes=self.num_classes)

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> Self | None:
        """The judge that `save` wrote, or None if there is none or it was trained on something else."""
        found = kept(path, fingerprint)
        if found is None:
            return None
        facts, tensors = found
        try:
            network = Network(facts["num_classes"])
            network.load_state_dict(tensors)
        except (ValueError, KeyError, TypeError, RuntimeError):
            return None  # a damaged cache is no cache
        return cls(network, facts["num_classes"], fingerprint)


def share_right(predicted: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of images that are taken for the class they were asked for, of classes (B,) and (B,)."""
    return (predicted == labels.cpu()).float().mean().item()


def share_right_per_class(predicted: torch.Tensor, labels: torch.Tensor, num_classes: int) -> list[float | None]:
    """`share_right` of each class; None for a class that no image was asked for."""
    labels = labels.cpu()
    return [
        share_right(predicted[labels == index], labels[labels == index]) if (labels == index).any() else None
        for index in range(num_classes)
    ]


def train_judge(
    dataset: LabelledImages,
    num_classes: int,
    cache_path: str | Path | None = None,
    recipe: Recipe | None = None,
    device: torch.device | str = "cpu",
) -> Judge:
    """A judge trained on a set's real images and labels, or the cached one of the same images and recipe.

    Args:
        dataset: real training images; of one size, or they are resized to the first one's.
        num_classes: number of classes.
        cache_path: where it is kept, without a suffix; None: nowhere.
        recipe: how to train.
        device: where to train and judge.

    Raises:
        UserError: no images, or a label that is not one of the classes.
    """
    recipe = recipe or Recipe()
    images, labels = _load(dataset, num_classes)
    fingerprint = _fingerprint(images, labels, num_classes, recipe)
    cache = None if cache_path is None else Path(cache_path)
    if cache is not None and (cached := Judge.load(cache, fingerprint)) is not None:
        cached.network.to(device)
        return cached
    judge = Judge(_train(images, labels, num_classes, recipe, torch.device(device)), num_classes, fingerprint)
    if cache is not None:
        judge.save(cache)
    return judge


def images_used(dataset: LabelledImages) -> int:
    """How many images of a set a judge learns from, or is tested on."""
    return min(len(dataset), MOST_IMAGES)


def _train(
    images: torch.Tensor, labels: torch.Tensor, num_classes: int, recipe: Recipe, device: torch.device
) -> Network:
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        network = Network(num_classes)
    network.to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=recipe.steps, pct_start=0.2)
    bf16 = _has_bf16(device)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(recipe.steps):
        while len(order) < min(recipe.batch, len(images)):
            order = torch.cat([order, torch.randperm(len(images), generator=generator)])
        chosen, order = order[: recipe.batch], order[recipe.batch :]
        pixels = to_model_range(_shifted(images[chosen], recipe.shift, generator).to(device))
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = network(pixels.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), labels[chosen].to(device), label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network


def _has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is fast there."""
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported()
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def _shifted(images: torch.Tensor, most: int, generator: torch.Generator) -> torch.Tensor:
    """Every image of (B, 3, H, W) shifted by up to `most` pixels either way, its border repeated."""
    height, width = images.shape[-2:]
    padded = F.pad(images.float(), (most,) * 4, mode="replicate").to(images.dtype)
    down, across = torch.randint(0, 2 * most + 1, (2, len(images)), generator=generator)
    rows = rearrange(down[:, None] + torch.arange(height), "b h -> b 1 h 1")
    columns = rearrange(across[:, None] + torch.arange(width), "b w -> b 1 1 w")
    which = rearrange(torch.arange(len(images)), "b -> b 1 1 1")
    channel = rearrange(torch.arange(images.shape[1]), "c -> 1 c 1 1")
    return padded[which, channel, rows, columns]


def _judged_size(images: torch.Tensor) -> torch.Tensor:
    height, width = images.shape[-2:]
    factor = min(1.0, LARGEST_SIDE / max(height, width))
    return resize_image(images, (round(height * factor), round(width * factor)))


def _load(dataset: LabelledImages, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All images uint8 (N, 3, H, W) and labels (N,), or MOST_IMAGES evenly spaced ones of a larger set."""
    total = len(dataset)
    if total == 0:
        raise UserError("the judge has no images to learn from.")
    indices = torch.linspace(0, total - 1, images_used(dataset)).round().long().tolist()
    images: list[torch.Tensor] = []
    labels: list[int] = []
    for index in indices:
        item = dataset[index]
        if "label" not in item:
            raise UserError("the judge needs a class for every image, and this set's images have none.")
        if not 0 <= item["label"] < num_classes:
            raise UserError(f"image {index}: label {item['label']} is not one of 0 to {num_classes - 1}.")
        image = _judged_size(item["image"])
        if images:
            image = resize_image(image, (images[0].shape[-2], images[0].shape[-1]))
        images.append(image)
        labels.append(item["label"])
    return torch.stack(images), torch.tensor(labels)


def _fingerprint(images: torch.Tensor, labels: torch.Tensor, num_classes: int, recipe: Recipe) -> str:
    """A hash of everything the weights depend on."""
    with torch.device("meta"):  # draws no random numbers
        architecture = str(Network(num_classes))
    digest = hashlib.sha256()
    digest.update(json.dumps([architecture, list(images.shape), asdict(recipe)]).encode())
    digest.update(images.numpy().tobytes())
    digest.update(labels.numpy().tobytes())
    return digest.hexdigest()[:16]
