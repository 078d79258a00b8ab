"""Layers whose training pass depends on the whole optimizer step: BatchNorm and dropout, independent of how it is cut.

The images of an optimizer step are cut into micro-batches and processes. `StepLayers` exchanges these layers of a built
network for ones of the same tensors whose numbers are functions of the step's batch: statistics over the same images
(`training/batch_norm.py`), masks by (seed of the step, place of the image in the batch, layer) (`training/dropout.py`).
A layer is exchanged by setting its `__class__`: no new state, names or hooks. Outside of `part` and in eval mode the
layers compute their plain forward pass.

One optimizer step, in `training/step.py`:

    layers.begin_step()
    for rows in micro_batches:                # places in the step's batch, e.g. range(8, 12)
        with layers.part(seed, rows):         # seed: of this step, the same on every process
            ...                               # forward and backward pass (checkpointing recomputes in the latter)
    layers.end_step(finite)                   # not finite: the statistics are those before the step
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from unetdiff.config.training import TrainingConfig
from unetdiff.data.base import ImageDataset
from unetdiff.data.hashing import hash_words
from unetdiff.data.sampling import SampleKey
from unetdiff.errors import config_error
from unetdiff.models.attention import Attention
from unetdiff.models.unet import UNet
from unetdiff.training.batch_norm import SharedBatchNorm2d, Statistics, single_value
from unetdiff.training.dropout import Draws, StepDropout, StepStochasticDepth


class StepLayers:
    """The BatchNorm and dropout layers of a network in training; exchanged when this is created.

    Args:
        network: a built network or task; layers that are frozen for good stay as they are.
        processes: the number of training processes.
        batch_norm_images: consecutive images of a step's batch that share the statistics of a BatchNorm; None: all.
    """

    def __init__(self, network: nn.Module, processes: int = 1, batch_norm_images: int | None = None) -> None:
        self.draws = Draws()
        self.norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        self.saved: list[tuple[Tensor, Tensor]] = []
        self.has_dropout = False
        for layer, module in enumerate(network.modules()):
            if type(module) is nn.BatchNorm2d and (processes > 1 or batch_norm_images is not None):
                module.__class__ = SharedBatchNorm2d
            if isinstance(module, SharedBatchNorm2d):
                module.statistics = Statistics(processes, batch_norm_images)
            if type(module) is nn.Dropout and module.p:
                module.__class__ = StepDropout
            if type(module) is StochasticDepth and module.p:
                module.__class__ = StepStochasticDepth
            if isinstance(module, StepDropout | StepStochasticDepth):
                module.draws, module.layer, self.has_dropout = self.draws, layer, True
            if isinstance(module, Attention):
                _zero_key_bias_gradient(module)

    @contextmanager
    def part(self, seed: int, rows: Sequence[int], clean: Sequence[int] = ()) -> Iterator[None]:
        """Forward and backward passes of a micro-batch inside of the context.

        Args:
            seed: of this optimizer step, e.g. `hash_words(settings.seed, step)`; the same on every process.
            rows: the place of each image of the micro-batch in the step's batch.
            clean: places of the images that a joint pass has twice (`UNet.both`: these clean, then all of them noisy);
                both copies have their own masks.
        """
        if self.has_dropout:
            self.draws.noisy = [hash_words(seed, row) for row in rows]
            self.draws.clean = [hash_words(seed, row, 1) for row in clean]
        try:
            yield
        finally:
            self.draws.noisy = self.draws.clean = None

    @torch.no_grad()
    def begin_step(self) -> None:
        """Remember the running statistics; call it in training mode."""
        self.saved = [(buffer, buffer.clone()) for norm in self.norms if norm.training for buffer in norm.buffers()]

    @torch.no_grad()
    def discard(self) -> None:
        """Restore the running statistics after a pass of the step that does not count."""
        for norm in self.norms:
            if isinstance(norm, SharedBatchNorm2d):
                norm.statistics.sums, norm.statistics.groups = None, 0
        self._restore()

    @torch.no_grad()
    def end_step(self, finite: bool) -> None:
        """Update running statistics from the step's groups of images; after a non-finite step, restore all of them.

        A collective operation if `batch_norm_images` is set.
        """
        for norm in self.norms:
            if isinstance(norm, SharedBatchNorm2d):
                norm.update_running_statistics()
        if not finite:
            self._restore()
        self.saved = []

    def _restore(self) -> None:
        for buffer, value in self.saved:
            buffer.copy_(value)


def _zero_key_bias_gradient(attention: Attention) -> None:
    """Make the gradient of a key bias what it is: 0, as a softmax does not see what all keys of a query share.

    Computed, it is rounding noise, of which AdamW makes steps of the learning rate that differ from cut to cut.
    """
    bias = attention.to_k.bias
    if bias is not None and bias.requires_grad:
        bias.register_hook(torch.zeros_like)


def require_batch_norm_images(unet: UNet, settings: TrainingConfig, processes: int, data: ImageDataset) -> None:
    """Check `training.batch_norm_images` against the network and the cut of its batches.

    Args:
        unet: a network whose layers were not exchanged yet.
        settings: batch size, gradient accumulation, freezing and the key itself.
        processes: the number of training processes.
        data: the training images.

    Raises:
        UserError: statistics of the whole batch under gradient accumulation, groups that a micro-batch would cut, or a
            BatchNorm whose statistics would be those of a single value.
    """
    images, parts = settings.batch_norm_images, settings.gradient_accumulation_steps
    if settings.freeze_backbone:
        unet.freeze_backbone()
    unet.freeze_encoder(settings.freeze_encoder >= 1, settings.frozen_levels)  # as the last steps of the run
    if not any(isinstance(m, nn.BatchNorm2d) and m.training for m in unet.train().modules()):
        return
    micro_batch, key = settings.batch_size // (parts * processes), "training.batch_norm_images"
    if images is None and parts > 1:
        constraint = f"set with training.gradient_accumulation_steps={parts}, as BatchNorm sees one micro-batch a time"
        remedy = f"Use {micro_batch}, or model.encoder.norm and model.decoder.norm group or frozen."
        raise config_error(key, None, constraint, remedy)
    if images is not None and micro_batch % images:
        cut = f"training.batch_size={settings.batch_size} / {parts} accumulated / {processes} process(es)"
        raise config_error(key, images, f"a divisor of {micro_batch}, the images of a micro-batch ({cut})")
    if (images or settings.batch_size) == 1:
        height, width = data[SampleKey(0, 0, True)]["image"].shape[-2:]
        _require_several_values(unet, images, (height, width))


def _require_several_values(unet: UNet, images: int | None, size: tuple[int, int]) -> None:
    """Run one image without values through the network in training mode."""

    def check(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        if norm.training and args[0].shape[-2:].numel() == 1:
            raise single_value(images)

    probe = copy.deepcopy(unet)
    nn.Module.to(probe, device="meta")
    for module in probe.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(check)
    probe.segment(torch.zeros(1, unet.config["in_channels"], *size, device="meta"))
