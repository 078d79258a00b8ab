"""Linear segmentation probes on frozen feature maps, all of a network's at once, in one stream over the images.

A probe is a 1x1 convolution on maps that are enlarged bilinearly to the mask's size: multinomial logistic regression
of a pixel's class. Both are linear and the weights of the enlargement sum to one, so the convolution comes first here
and only its few channels are enlarged: the same numbers, without a wide map at full resolution. A batch's maps are
computed, used by every probe, and dropped; how many images there are changes nothing in what is held.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from unetdiff.data.base import ImageDataset
from unetdiff.data.sampling import EvalSampler, StepSampler
from unetdiff.data.transforms import resize_mask
from unetdiff.experiments.features import Features, Moment
from unetdiff.segmentation.losses import cross_entropy
from unetdiff.segmentation.metrics import ConfusionMatrix

FLOAT = 4
"""Bytes of a number as features are stored."""


@dataclass(frozen=True)
class Spec:
    """What one probe reads: one block at one moment, or several blocks together."""

    moment: Moment
    blocks: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """How probes are trained."""

    steps: int = 500
    """Optimizer steps."""
    batch_size: int = 16
    """Images of a step."""
    lr: float = 0.1
    """Peak learning rate of AdamW; it falls to zero along a cosine."""
    weight_decay: float = 0.0
    """Decoupled."""
    seed: int = 0
    """Of the order of the images."""


@dataclass(frozen=True)
class Group:
    """Images of one size."""

    places: list[int]
    """Where each stands among the chosen images."""
    images: Tensor
    """uint8 (B, 3, H, W)."""
    names: list[str]
    masks: list[Tensor]
    """uint8 (h, w), each at its own size."""


def groups(images: ImageDataset, chosen: Sequence[int], places: Sequence[int]) -> Iterator[Group]:
    """The images at some places of `chosen`, in groups of one size."""
    by_size: dict[tuple[int, ...], list[tuple[int, dict]]] = {}
    for place in places:
        item = images[chosen[place]]
        by_size.setdefault(tuple(item["image"].shape), []).append((place, item))
    for members in by_size.values():
        items = [item for _, item in members]
        yield Group(
            [place for place, _ in members],
            torch.stack([item["image"] for item in items]),
            [str(item["name"]) for item in items],
            [item["mask"] for item in items],
        )


class Scale:
    """Mean and deviation of each channel over a stream of maps, by Chan et al.'s update (1983), in float64."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, torch.zeros(()), torch.zeros(())

    def update(self, maps: Tensor) -> None:
        """maps: (B, C, h, w)."""
        x = maps.double()
        n = x.shape[0] * x.shape[2] * x.shape[3]
        mean = x.mean(dim=(0, 2, 3))  # (C,)
        squares = ((x - mean[:, None, None]) ** 2).sum(dim=(0, 2, 3))
        if self.count == 0:
            self.count, self.mean, self.squares = n, mean, squares
            return
        total, gap = self.count + n, mean - self.mean
        self.squares = self.squares + squares + gap**2 * self.count * n / total
        self.mean = self.mean + gap * n / total
        self.count = total

    @property
    def deviation(self) -> Tensor:
        """(C,), with n in the denominator."""
        return (self.squares / self.count).sqrt()


@dataclass
class Seen:
    """What a first pass over the labelled images finds."""

    scales: dict[tuple[Moment, str], Scale]
    """Of each block at each moment."""
    as_maps: int = 0
    """Bytes of all these maps as they are, in float32."""
    at_masks: int = 0
    """Bytes of all these maps enlarged to the masks' sizes, in float32, as published code stores them."""


def look_through(features: Features, images: ImageDataset, chosen: Sequence[int], batch_size: int) -> Seen:
    """Every block's scale, and what storing the maps would take, in one pass."""
    seen = Seen({})
    for places in tqdm(EvalSampler(len(chosen), batch_size), desc=f"{features.name}: scale", disable=None):
        for group in groups(images, chosen, places):
            pixels = sum(mask.numel() for mask in group.masks)
            for moment in features.moments:
                for block, maps in features(group.images, group.names, moment).items():
                    seen.scales.setdefault((moment, block), Scale()).update(maps)
                    seen.as_maps += FLOAT * maps.numel()
                    seen.at_masks += FLOAT * maps.shape[1] * pixels
    return seen


class LinearProbe(nn.Module):
    """Standardised maps -> logits. Starts at zero: the problem is convex, so there is nothing to draw.

    Args:
        scales: of each block that it reads.
        classes: how many.
    """

    def __init__(self, scales: Sequence[Scale], classes: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.zeros(classes, len(scale.mean)) for scale in scales])
        self.bias = nn.Parameter(torch.zeros(classes))
        for index, scale in enumerate(scales):
            self.register_buffer(f"mean{index}", scale.mean.float())
            dead = scale.deviation == 0
            self.register_buffer(f"gain{index}", torch.where(dead, 0.0, 1 / scale.deviation).float())

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Logits (B, classes, H, W) of maps (B, C, h, w), one for each block."""
        total = self.bias[:, None, None]  # the enlargement keeps a constant
        for index, (weight, block) in enumerate(zip(self.weights, maps, strict=True)):
            mean, gain = getattr(self, f"mean{index}"), getattr(self, f"gain{index}")
            standard = (block - mean[:, None, None]) * gain[:, None, None]
            logits = F.conv2d(standard, weight[:, :, None, None])  # (B, classes, h, w)
            total = total + F.interpolate(logits, size, mode="bilinear", align_corners=False)
        return total

    @property
    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


def train_probes(
    features: Features,
    images: ImageDataset,
    chosen: Sequence[int],
    specs: Sequence[Spec],
    scales: Mapping[tuple[Moment, str], Scale],
    classes: int,
    recipe: Recipe,
    ignore_index: int = 255,
) -> dict[Spec, LinearProbe]:
    """All probes of a network, by the mean cross-entropy of the pixels at the size that the network sees an image at.

    Each learns as it would alone: their losses share no weight, and AdamW goes by each weight's own gradient. A
    image's maps are the same whenever it comes, so this is the same as storing them all.

    Args:
        features: the frozen network.
        images: with masks.
        chosen: indices of those that are learned from.
        specs: what the probes read.
        scales: of every block that a probe reads (`look_through`).
        classes: number of classes.
        recipe: steps, batch and rate.
        ignore_index: void.
    """
    probes = {spec: LinearProbe([scales[spec.moment, block] for block in spec.blocks], classes) for spec in specs}
    device = next(iter(scales.values())).mean.device
    together = nn.ModuleList(probes.values()).to(device)
    optimizer = torch.optim.AdamW(together.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    order = StepSampler(len(chosen), recipe.batch_size, recipe.seed, stop=recipe.steps)
    for keys in tqdm(order, desc=f"{features.name}: {len(specs)} probes", unit="step", disable=None):
        optimizer.zero_grad()
        for group in groups(images, chosen, [key.index for key in keys]):
            size = (group.images.shape[-2], group.images.shape[-1])
            target = torch.stack([resize_mask(mask, size) for mask in group.masks]).to(device)
            share = len(group.masks) / len(keys)
            for moment, max_classes in _by_moment(specs).items():
                maps = features(group.images, group.names, moment)
                for spec in max_classes:
                    logits = probes[spec]([maps[block] for block in spec.blocks], size)
                    (share * cross_entropy(logits, target, ignore_index)).backward()
        optimizer.step()
        rate.step()
    return {spec: probe.requires_grad_(False) for spec, probe in probes.items()}


Halves = tuple[ConfusionMatrix, ConfusionMatrix]
"""Counts over every second of the judged images, from the first and from the second on."""


def count_halves(halves: Halves, group: Group, guesses: Iterable[Tensor]) -> None:
    """Count predictions (h, w) at the masks' sizes."""
    for place, mask, guess in zip(group.places, group.masks, guesses, strict=True):
        halves[place % 2].update(guess, mask)


@torch.no_grad()
def judge_probes(
    features: Features,
    images: ImageDataset,
    chosen: Sequence[int],
    probes: Mapping[Spec, LinearProbe],
    classes: int,
    batch_size: int,
    ignore_index: int = 255,
) -> dict[Spec, Halves]:
    """Each probe's counts on the chosen images, at the masks' own sizes, in two halves."""
    found = {spec: (ConfusionMatrix(classes, ignore_index), ConfusionMatrix(classes, ignore_index)) for spec in probes}
    for places in tqdm(EvalSampler(len(chosen), batch_size), desc=f"{features.name}: judging", disable=None):
        for group in groups(images, chosen, places):
            for moment, max_classes in _by_moment(list(probes)).items():
                maps = features(group.images, group.names, moment)
                for spec in max_classes:
                    count_halves(found[spec], group, label(probes[spec], spec, maps, group.masks))
    return found


@torch.no_grad()
def label(probe: LinearProbe, spec: Spec, maps: Mapping[str, Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """A probe's masks (h, w) of a batch's maps, each at the size of one of `like`."""
    read = [maps[block] for block in spec.blocks]
    sizes = [(mask.shape[-2], mask.shape[-1]) for mask in like]
    if len(set(sizes)) == 1:
        return list(probe(read, sizes[0]).argmax(dim=1))
    each = zip(*(block.split(1) for block in read), strict=True)
    return [probe(one, size).argmax(dim=1)[0] for one, size in zip(each, sizes, strict=True)]


def _by_moment(specs: Sequence[Spec]) -> dict[Moment, list[Spec]]:
    found: dict[Moment, list[Spec]] = {}
    for spec in specs:
        found.setdefault(spec.moment, []).append(spec)
    return found
