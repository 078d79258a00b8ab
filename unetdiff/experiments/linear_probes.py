"""Linear segmentation probes on frozen feature maps, all probes of a network trained in one stream over the images.

A probe is a 1x1 convolution on maps upsampled bilinearly to the mask's size: multinomial logistic regression of a
pixel's class. Both operations are linear and the interpolation weights sum to one, so the convolution is applied first
and only its few output channels are upsampled. The result is the same, without a wide map at full resolution. The maps
of a batch are computed, used by every probe and discarded, so memory does not depend on the number of images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unetdiff.console import progress_bar
from unetdiff.data.base import ImageDataset
from unetdiff.data.sampling import EvalSampler, StepSampler
from unetdiff.data.transforms import resize_mask
from unetdiff.experiments.features import Features, NoiseLevel
from unetdiff.segmentation.losses import cross_entropy
from unetdiff.segmentation.metrics import ConfusionMatrix

BYTES_PER_FLOAT = 4
"""Bytes per value of stored float32 features."""


@dataclass(frozen=True)
class ProbeInput:
    """Input of a probe: one block, or several blocks concatenated, at one noise level."""

    level: NoiseLevel
    blocks: tuple[str, ...]


@dataclass(frozen=True)
class ProbeTraining:
    """Hyperparameters of the probes."""

    steps: int = 500
    """Optimizer steps."""
    batch_size: int = 16
    """Images per step."""
    lr: float = 0.1
    """Peak learning rate of AdamW, annealed to zero along a cosine."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    seed: int = 0
    """Seed of the order of the images."""


@dataclass(frozen=True)
class SizeGroup:
    """Images of one size."""

    positions: list[int]
    """Position of each among the selected images."""
    images: Tensor
    """uint8 (B, 3, H, W)."""
    names: list[str]
    masks: list[Tensor]
    """uint8 (h, w), each at its own size."""


def groups_by_size(images: ImageDataset, selected: Sequence[int], positions: Sequence[int]) -> Iterator[SizeGroup]:
    """The images at some positions of `selected`, in groups of one size."""
    by_size: dict[tuple[int, ...], list[tuple[int, dict]]] = {}
    for position in positions:
        item = images[selected[position]]
        by_size.setdefault(tuple(item["image"].shape), []).append((position, item))
    for members in by_size.values():
        items = [item for _, item in members]
        yield SizeGroup(
            [position for position, _ in members],
            torch.stack([item["image"] for item in items]),
            [str(item["name"]) for item in items],
            [item["mask"] for item in items],
        )


class ChannelStats:
    """Mean and standard deviation of each channel over a stream of maps (Chan et al. 1983), in float64."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, torch.zeros(()), torch.zeros(())

    def update(self, maps: Tensor) -> None:
        """Add maps (B, C, h, w)."""
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
    def std(self) -> Tensor:
        """Standard deviation (C,), with n in the denominator."""
        return (self.squares / self.count).sqrt()


@dataclass
class FeatureStats:
    """Result of a first pass over the training images."""

    channels: dict[tuple[NoiseLevel, str], ChannelStats]
    """Of each block at each noise level."""
    map_bytes: int = 0
    """Bytes of all maps at their own size, in float32."""
    upsampled_bytes: int = 0
    """Bytes of all maps upsampled to the masks' sizes, in float32, as the published code stores them."""


def feature_stats(features: Features, images: ImageDataset, selected: Sequence[int], batch_size: int) -> FeatureStats:
    """Channel statistics of every block, and the memory to store all maps, in one pass."""
    stats = FeatureStats({})
    for positions in progress_bar(EvalSampler(len(selected), batch_size), desc=f"{features.name}: statistics"):
        for group in groups_by_size(images, selected, positions):
            pixels = sum(mask.numel() for mask in group.masks)
            for level in features.noise_levels:
                for block, maps in features(group.images, group.names, level).items():
                    stats.channels.setdefault((level, block), ChannelStats()).update(maps)
                    stats.map_bytes += BYTES_PER_FLOAT * maps.numel()
                    stats.upsampled_bytes += BYTES_PER_FLOAT * maps.shape[1] * pixels
    return stats


class LinearProbe(nn.Module):
    """Standardized maps -> logits. Initialized with zeros, as the problem is convex.

    Args:
        stats: channel statistics of each input block.
        num_classes: number of classes.
    """

    def __init__(self, stats: Sequence[ChannelStats], num_classes: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.zeros(num_classes, len(block.mean)) for block in stats])
        self.bias = nn.Parameter(torch.zeros(num_classes))
        for index, block in enumerate(stats):
            self.register_buffer(f"mean{index}", block.mean.float())
            constant = block.std == 0
            self.register_buffer(f"gain{index}", torch.where(constant, 0.0, 1 / block.std).float())

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Logits (B, classes, H, W) of maps (B, C, h, w), one for each input block."""
        total = self.bias[:, None, None]  # (classes, 1, 1); interpolation keeps a constant
        for index, (weight, block) in enumerate(zip(self.weights, maps, strict=True)):
            mean, gain = getattr(self, f"mean{index}"), getattr(self, f"gain{index}")
            standardized = (block - mean[:, None, None]) * gain[:, None, None]
            logits = F.conv2d(standardized, weight[:, :, None, None])  # (B, classes, h, w)
            total = total + F.interpolate(logits, size, mode="bilinear", align_corners=False)
        return total

    @property
    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


def train_probes(
    features: Features,
    images: ImageDataset,
    selected: Sequence[int],
    inputs: Sequence[ProbeInput],
    stats: FeatureStats,
    num_classes: int,
    training: ProbeTraining,
    ignore_index: int = 255,
) -> dict[ProbeInput, LinearProbe]:
    """Train all probes of a network with the mean cross-entropy over pixels at the network's input size.

    The probes are independent: they share no weights, and AdamW updates are elementwise. An image's maps are the same
    in every step, so the result equals that of training on stored maps.

    Args:
        features: the frozen network.
        images: images with masks.
        selected: indices of the training images.
        inputs: input of each probe.
        stats: channel statistics of their blocks (`feature_stats`).
        num_classes: number of classes.
        training: hyperparameters.
        ignore_index: label excluded from the loss.
    """
    channels = stats.channels
    probes = {x: LinearProbe([channels[x.level, block] for block in x.blocks], num_classes) for x in inputs}
    device = next(iter(channels.values())).mean.device
    parameters = nn.ModuleList(probes.values()).to(device).parameters()
    optimizer = torch.optim.AdamW(parameters, lr=training.lr, weight_decay=training.weight_decay)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, training.steps)
    order = StepSampler(len(selected), training.batch_size, training.seed, stop=training.steps)
    for keys in progress_bar(order, desc=f"{features.name}: {len(inputs)} probes", unit="step"):
        optimizer.zero_grad()
        for group in groups_by_size(images, selected, [key.index for key in keys]):
            size = (group.images.shape[-2], group.images.shape[-1])
            target = torch.stack([resize_mask(mask, size) for mask in group.masks]).to(device)
            fraction = len(group.masks) / len(keys)  # of the batch
            for level, members in _by_level(inputs).items():
                maps = features(group.images, group.names, level)
                for member in members:
                    logits = probes[member]([maps[block] for block in member.blocks], size)
                    (fraction * cross_entropy(logits, target, ignore_index)).backward()
        optimizer.step()
        scheduler.step()
    return {x: probe.requires_grad_(False) for x, probe in probes.items()}


SplitMatrices = tuple[ConfusionMatrix, ConfusionMatrix]
"""Confusion matrices of the evaluation images at even and at odd positions: for selection and for testing."""


def split_matrices(num_classes: int, ignore_index: int) -> SplitMatrices:
    """Two empty confusion matrices."""
    return ConfusionMatrix(num_classes, ignore_index), ConfusionMatrix(num_classes, ignore_index)


def update_split(matrices: SplitMatrices, group: SizeGroup, predictions: Iterable[Tensor]) -> None:
    """Count predictions (h, w) at the masks' sizes."""
    for position, mask, prediction in zip(group.positions, group.masks, predictions, strict=True):
        matrices[position % 2].update(prediction, mask)


@torch.no_grad()
def evaluate_probes(
    features: Features,
    images: ImageDataset,
    selected: Sequence[int],
    probes: Mapping[ProbeInput, LinearProbe],
    num_classes: int,
    batch_size: int,
    ignore_index: int = 255,
) -> dict[ProbeInput, SplitMatrices]:
    """Confusion matrices of each probe on the selected images, at the masks' own sizes."""
    matrices = {x: split_matrices(num_classes, ignore_index) for x in probes}
    for positions in progress_bar(EvalSampler(len(selected), batch_size), desc=f"{features.name}: evaluation"):
        for group in groups_by_size(images, selected, positions):
            for level, members in _by_level(list(probes)).items():
                maps = features(group.images, group.names, level)
                for member in members:
                    update_split(matrices[member], group, predict(probes[member], member, maps, group.masks))
    return matrices


@torch.no_grad()
def predict(
    probe: LinearProbe, probe_input: ProbeInput, maps: Mapping[str, Tensor], masks: Sequence[Tensor]
) -> list[Tensor]:
    """A probe's predictions (h, w) for the maps of a batch, at the sizes of `masks`."""
    blocks = [maps[block] for block in probe_input.blocks]
    sizes = [(mask.shape[-2], mask.shape[-1]) for mask in masks]
    if len(set(sizes)) == 1:
        return list(probe(blocks, sizes[0]).argmax(dim=1))
    each = zip(*(block.split(1) for block in blocks), strict=True)
    return [probe(one, size).argmax(dim=1)[0] for one, size in zip(each, sizes, strict=True)]


def _by_level(inputs: Sequence[ProbeInput]) -> dict[NoiseLevel, list[ProbeInput]]:
    levels: dict[NoiseLevel, list[ProbeInput]] = {}
    for member in inputs:
        levels.setdefault(member.level, []).append(member)
    return levels
