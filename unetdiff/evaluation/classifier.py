"""An independent classifier, trained on real images only, that measures the class consistency of samples.

Its accuracy on held-out real images bounds what its predictions on samples mean: report both.
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
from unetdiff.errors import FileError, UserError
from unetdiff.evaluation.cache import load_cache, report_unused, save_cache
from unetdiff.training.runtime import precision

MAX_SIDE = 64  # pixels; larger images are resized down to it
MAX_IMAGES = 20_000  # evenly spaced images of a larger dataset


class LabelledImages(Protocol):
    """A dataset of items with "image", uint8 (3, H, W), and "label", int."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: int, /) -> Any: ...


@dataclass(frozen=True)
class ClassifierConfig:
    """Training of the classifier."""

    steps: int = 500
    """Optimizer steps."""
    batch_size: int = 128
    """Images per step."""
    lr: float = 6e-3
    """Peak learning rate of the one-cycle schedule."""
    max_shift: int = 2
    """Pixels of random shift in either direction."""
    seed: int = 0
    """Seed of weights, order and shifts."""


class ClassifierNetwork(nn.Module):
    """Convolutions with BatchNorm, global average pooling, linear: (B, 3, H, W) in [-1, 1] -> (B, num_classes)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width_in = 3
        for width, kernel, stride in ((32, 5, 2), (64, 3, 2), (96, 3, 1), (128, 3, 2)):
            layers += [
                nn.Conv2d(width_in, width, kernel, stride, padding=kernel // 2, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            width_in = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width_in, num_classes)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Penultimate features (B, 128) of pixels (B, 3, H, W) in [-1, 1]."""
        return reduce(self.body(pixels), "b c h w -> b c", "mean")

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(pixels))


class Classifier:
    """A trained classifier of uint8 images.

    Attributes:
        fingerprint: hash of the training images, labels and config, which the cache is checked against.
    """

    def __init__(self, network: ClassifierNetwork, num_classes: int, fingerprint: str) -> None:
        self.network = network.eval().to(memory_format=torch.channels_last)
        self.num_classes = num_classes
        self.fingerprint = fingerprint

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, num_classes) float32 of uint8 images (B, 3, H, W).

        Raises:
            TypeError: images that are not uint8.
        """
        return self._run(self.network, images)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Penultimate features, (B, 128) float32, of uint8 images (B, 3, H, W); TypeError as in `logits`."""
        return self._run(self.network.features, images)

    @torch.no_grad()
    def _run(self, function: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        if images.dtype != torch.uint8:
            raise TypeError(f"images: must be uint8 (got {images.dtype}).")
        device = self.network.head.weight.device
        parts = []
        for part in images.split(256):
            pixels = to_model_range(_limit_size(part).to(device)).contiguous(memory_format=torch.channels_last)
            parts.append(function(pixels).cpu())
        return torch.cat(parts)

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """Most likely class (B,) of uint8 images (B, 3, H, W)."""
        return self.logits(images).argmax(dim=1)

    def class_consistency(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """Accuracy on samples: fraction of images, uint8 (B, 3, H, W), predicted as their labels (B,)."""
        return label_accuracy(self.predict(images), labels)

    def class_consistency_per_class(self, images: torch.Tensor, labels: torch.Tensor) -> list[float | None]:
        """`class_consistency` of each class; None for a class without images."""
        return per_class_accuracy(self.predict(images), labels, self.num_classes)

    def accuracy(self, dataset: LabelledImages) -> float:
        """Accuracy on the real images of a dataset; report it with every class consistency."""
        images, labels = _load(dataset, self.num_classes)
        return self.class_consistency(images, labels)

    def save(self, path: Path) -> None:
        """Write PATH.safetensors and PATH.json."""
        save_cache(path, self.network.state_dict(), self.fingerprint, num_classes=self.num_classes)

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> Self | None:
        """The classifier written by `save`; None if there is none, or it has another fingerprint."""
        cached = load_cache(path, fingerprint)
        if cached is None:
            return None
        facts, tensors = cached
        try:
            num_classes = len(tensors["head.weight"])
            network = ClassifierNetwork(num_classes)
            expected = {name: (value.shape, value.dtype) for name, value in network.state_dict().items()}
            if facts["num_classes"] != num_classes or expected != {k: (v.shape, v.dtype) for k, v in tensors.items()}:
                raise KeyError
            network.load_state_dict(tensors)
        except (KeyError, TypeError):
            report_unused(FileError.of(path, "is not the network of a classifier"))
            return None
        return cls(network, num_classes, fingerprint)


def label_accuracy(predicted: torch.Tensor, labels: torch.Tensor) -> float:
    """Fraction of predicted classes (B,) that equal the labels (B,)."""
    return (predicted == labels.cpu()).float().mean().item()


def per_class_accuracy(predicted: torch.Tensor, labels: torch.Tensor, num_classes: int) -> list[float | None]:
    """`label_accuracy` of each class; None for a class without images."""
    labels = labels.cpu()
    return [
        label_accuracy(predicted[labels == index], labels[labels == index]) if (labels == index).any() else None
        for index in range(num_classes)
    ]


def train_classifier(
    dataset: LabelledImages,
    num_classes: int,
    cache_path: str | Path | None = None,
    config: ClassifierConfig | None = None,
    device: torch.device | str = "cpu",
) -> Classifier:
    """Train a classifier on real images and labels, or load it from the cache of the same data and config.

    Args:
        dataset: real training images; resized to the size of the first.
        num_classes: number of classes.
        cache_path: path of the cache without suffix; None: no cache.
        config: training settings.
        device: for training and inference.

    Raises:
        UserError: no images, or a label out of range.
    """
    config = config or ClassifierConfig()
    images, labels = _load(dataset, num_classes)
    fingerprint = _fingerprint(images, labels, num_classes, config)
    cache = None if cache_path is None else Path(cache_path)
    if cache is not None and (cached := Classifier.load(cache, fingerprint)) is not None:
        cached.network.to(device)
        return cached
    classifier = Classifier(_train(images, labels, num_classes, config, torch.device(device)), num_classes, fingerprint)
    if cache is not None:
        classifier.save(cache)
    return classifier


def num_images_used(dataset: LabelledImages) -> int:
    """Number of images of a dataset that a classifier is trained or tested on."""
    return min(len(dataset), MAX_IMAGES)


def _train(
    images: torch.Tensor, labels: torch.Tensor, num_classes: int, config: ClassifierConfig, device: torch.device
) -> ClassifierNetwork:
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        network = ClassifierNetwork(num_classes)
    network.to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=config.steps, pct_start=0.2)
    bf16 = precision("auto", device.type) == "bf16"
    order = torch.empty(0, dtype=torch.long)
    for _ in range(config.steps):
        while len(order) < min(config.batch_size, len(images)):
            order = torch.cat([order, torch.randperm(len(images), generator=generator)])
        indices, order = order[: config.batch_size], order[config.batch_size :]
        pixels = to_model_range(_random_shift(images[indices], config.max_shift, generator).to(device))
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = network(pixels.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), labels[indices].to(device), label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network


def _random_shift(images: torch.Tensor, max_shift: int, generator: torch.Generator) -> torch.Tensor:
    """Shift each image of (B, 3, H, W) by up to `max_shift` pixels in both axes, replicating its border."""
    height, width = images.shape[-2:]
    padded = F.pad(images.float(), (max_shift,) * 4, mode="replicate").to(images.dtype)
    down, across = torch.randint(0, 2 * max_shift + 1, (2, len(images)), generator=generator)
    rows = rearrange(down[:, None] + torch.arange(height), "b h -> b 1 h 1")
    columns = rearrange(across[:, None] + torch.arange(width), "b w -> b 1 1 w")
    image = rearrange(torch.arange(len(images)), "b -> b 1 1 1")
    channel = rearrange(torch.arange(images.shape[1]), "c -> 1 c 1 1")
    return padded[image, channel, rows, columns]


def _limit_size(images: torch.Tensor) -> torch.Tensor:
    height, width = images.shape[-2:]
    factor = min(1.0, MAX_SIDE / max(height, width))
    return resize_image(images, (round(height * factor), round(width * factor)))


def _load(dataset: LabelledImages, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images uint8 (N, 3, H, W) and labels (N,), at most `MAX_IMAGES`, evenly spaced."""
    total = len(dataset)
    if total == 0:
        raise UserError("classifier: the dataset has no images to train it on.")
    indices = torch.linspace(0, total - 1, num_images_used(dataset)).round().long().tolist()
    images: list[torch.Tensor] = []
    labels: list[int] = []
    for index in indices:
        item = dataset[index]
        if "label" not in item:
            raise UserError(
                "classifier: the images of this dataset have no class labels. Use a dataset with one label per image."
            )
        if not 0 <= item["label"] < num_classes:
            raise UserError(f"image {index}: label={item['label']}: must be in 0 to {num_classes - 1}.")
        image = _limit_size(item["image"])
        if images:
            image = resize_image(image, (images[0].shape[-2], images[0].shape[-1]))
        images.append(image)
        labels.append(item["label"])
    return torch.stack(images), torch.tensor(labels)


def _fingerprint(images: torch.Tensor, labels: torch.Tensor, num_classes: int, config: ClassifierConfig) -> str:
    """Hash of everything the weights depend on."""
    with torch.device("meta"):  # consumes no random numbers
        architecture = str(ClassifierNetwork(num_classes))
    digest = hashlib.sha256()
    digest.update(json.dumps([architecture, list(images.shape), asdict(config)]).encode())
    digest.update(images.numpy().tobytes())
    digest.update(labels.numpy().tobytes())
    return digest.hexdigest()[:16]
