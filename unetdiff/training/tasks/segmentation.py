"""Training and validation of the segmentation head; metrics come from one confusion matrix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from itertools import starmap
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from einops import rearrange
from torch import Tensor, nn

from unetdiff.data.base import ImageDataset, collate
from unetdiff.data.labelled import segmented_places
from unetdiff.data.sampling import evenly_spaced_indices
from unetdiff.diffusion import objectives
from unetdiff.diffusion.codecs import LatentCodec, PixelCodec
from unetdiff.diffusion.config import NoiseConfig
from unetdiff.diffusion.processes.load import process_of
from unetdiff.kernels.losses import accelerate_loss
from unetdiff.models.blocks import center_crop
from unetdiff.models.unet import UNet
from unetdiff.segmentation.border_weights import KEY as BORDER_WEIGHT
from unetdiff.segmentation.config import InferenceConfig, SegmentationConfig
from unetdiff.segmentation.context import SegmentationContext
from unetdiff.segmentation.dataset_loss import DatasetLoss
from unetdiff.segmentation.inference import eval_mode, resize_logits, segment_whole
from unetdiff.segmentation.losses import WeightedLoss, combined
from unetdiff.segmentation.metrics import ConfusionMatrix
from unetdiff.segmentation.overlays import preview
from unetdiff.segmentation.pipeline import SegmentationPipeline
from unetdiff.segmentation.segmenter import NetworkInput, Segmenter
from unetdiff.training.draws import RowDraws
from unetdiff.training.pretrained import KeptDenoiser
from unetdiff.training.step_layers import StepLayers
from unetdiff.training.sums import Sums, add, sum_tensor
from unetdiff.training.tasks.base import (
    Batch,
    Previews,
    Task,
    ValidationData,
    freeze_unused_heads,
    network_input,
    require_one_size,
)
from unetdiff.training.tasks.pseudo_labels import (
    as_teacher,
    confident_labels,
    pseudo_losses,
    pseudo_sums,
    split_off,
    sums_without_labels,
)

PREVIEW_IMAGES = 6
"""Validation images shown with mask and prediction."""


class SegmentationTask(Task):
    """Semantic segmentation.

    Args:
        unet: a UNet with a segmentation head.
        config: loss and inference.
        val: the validation split, for previews, class names and palette.
        size: (height, width) that images are resized to for the network, or their longest side, or None.
        scheduler: forward process for `config.noise` and `config.noised`; None: all images are clean.
        noise: the config of that process, for its training timesteps.
        codec: of the network's input; None: pixels.
        context: tokens for its cross-attention, or None.
        caption_dropout: fraction of the training images with the empty prompt, where the context reads captions.

    Attributes:
        kept: what the frozen diffusion head of a pretrained network samples with, or None.
    """

    best_metric = ("segmentation/mean_iou", "max")
    kept: KeptDenoiser | None = None

    def __init__(
        self,
        unet: UNet,
        config: SegmentationConfig,
        val: ImageDataset,
        size: list[int] | int | None = None,
        scheduler: objectives.Scheduler | None = None,
        noise: NoiseConfig | None = None,
        codec: PixelCodec | LatentCodec | None = None,
        context: SegmentationContext | None = None,
        caption_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.caption_dropout = caption_dropout
        self.codec, self.context = codec or PixelCodec(), context
        self.unet, self.config = unet, config
        self.set_scheduler(scheduler, noise)
        self.data = ValidationData(val, size)
        self.loss = accelerate_loss(
            combined(
                config.losses,
                config.ignore_index,
                config.class_weights,
                label_smoothing=config.label_smoothing,
                ohem=config.ohem,
            )
        )
        self._pixels: list[tuple[Tensor, Tensor]] | None = None  # of a reference pass with OHEM: nll and weight
        self._hard_bound: Tensor | None = None  # of the step's hard pixels, where it has several parts
        freeze_unused_heads(unet, "segmentation")

    def set_scheduler(self, scheduler: objectives.Scheduler | None, noise: NoiseConfig | None) -> None:
        """Set the forward process, and with it the noise of inference."""
        self.scheduler, self.noise, level = scheduler, noise, None
        if scheduler is not None and self.config.noised:
            alpha, sigma = process_of(scheduler, noise).alpha_sigma(torch.tensor([self.config.timestep]))
            level = float(alpha), float(sigma)
        self.view = NetworkInput(self.config.timestep, level)

    @property
    def segmenter(self) -> Segmenter:
        """The network with its autoencoder, timestep, noise and context, as inference uses them."""
        codec = self.codec if isinstance(self.codec, LatentCodec) else None
        return Segmenter(self.unet, self.view, codec, self.context)

    def trainable_modules(self) -> dict[str, nn.Module]:
        return {"unet": self.unet} | ({} if self.context is None else {"segmentation_context": self.context})

    def forward(self, batch: Batch, draws: RowDraws) -> Sums:
        x0, size = self.encode(batch)
        sample, timesteps = self.add_noise(x0, draws)
        masked, others = self.masked_rows(draws)
        labels, sample, timesteps = self.with_pseudo_labels(others, sample, timesteps, x0, size, draws)
        if isinstance(self.codec, PixelCodec) and self.context is None:
            logits = self.unet.segment(sample, timesteps)
        else:
            logits = self.segmenter.logits(sample, timesteps, size, self.tokens(batch, draws))
        if labels is None:
            return self.sums(logits, batch["mask"], batch.get(BORDER_WEIGHT))
        return self.sums_of_rows(logits[masked], of_rows(batch, masked), logits[others], labels)

    def sums_of_rows(self, logits: Tensor, batch: Batch, others: Tensor, labels: Tensor | None) -> Sums:
        """The sums of the images with masks, and of the others.

        Args:
            logits: of the images with masks, (A, C, H, W).
            batch: their masks and border weights, (A, H, W).
            others: logits of the images with pseudo-labels, (B, C, H, W).
            labels: their pseudo-labels, (B, H, W); None: the config has none.
        """
        sums = self.sums(logits, batch["mask"], batch.get(BORDER_WEIGHT))
        return sums if labels is None else sums | pseudo_sums(others, labels)

    def masked_rows(self, draws: RowDraws) -> tuple[list[int], list[int]]:
        """The rows of a micro-batch whose masks are used, and those that have pseudo-labels."""
        settings, places = self.config.pseudo_labels, set(range(draws.images))
        masked = places if settings is None else segmented_places(settings.labelled_fraction, draws.images)
        return draws.rows_at(masked), draws.rows_at(places - masked)

    def with_pseudo_labels(
        self,
        rows: list[int],
        sample: Tensor,
        timesteps: Tensor | None,
        x0: Tensor,
        size: tuple[int, int],
        draws: RowDraws,
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """`confident_labels` (len(rows), H, W) of the clean images of some rows, None without `config.pseudo_labels`;
        and the batch with these images noised.

        Args:
            rows: of the images without masks.
            sample: of `add_noise`, (B, C, h, w).
            timesteps: of `add_noise`.
            x0: the clean images or latents, (B, C, h, w).
            size: the images' (H, W).
            draws: random numbers of the batch.
        """
        settings = self.config.pseudo_labels
        if settings is None:
            return None, sample, timesteps
        assert self.scheduler is not None
        if rows:
            with as_teacher(self.unet, x0.device):
                logits = self.segmenter.clean_logits(x0[rows], size)
                labels = confident_labels(logits, settings.confidence, self.config.ignore_index)
        else:
            labels = torch.empty(0, *size, dtype=torch.long, device=x0.device)
        process = process_of(self.scheduler, self.noise)
        drawn = draws(process.sample_timesteps)
        at = (drawn * settings.max_noise).to(drawn.dtype)
        noisy = process.add_noise(x0, self.image_noise(draws, x0), at)
        is_noised = torch.zeros(len(x0), dtype=torch.bool, device=x0.device)
        is_noised[rows] = True
        sample = torch.where(rearrange(is_noised, "b -> b 1 1 1"), noisy, sample)
        return labels, sample, None if timesteps is None else torch.where(is_noised, at.to(timesteps.dtype), timesteps)

    def tokens(self, batch: Batch, draws: RowDraws | None = None) -> Tensor | None:
        """The tokens of a batch's captions, (B, tokens, dim); None for a context that is the same for every image.

        draws: a fraction `caption_dropout` is that of the empty prompt; None: none.
        """
        if self.context is None or not self.context.reads_captions:
            return None
        tokens = self.context.of_captions(batch["caption"])
        if draws is None:
            return tokens
        dropped = (draws(objectives.uniform) < self.caption_dropout).to(tokens.device)
        return torch.where(rearrange(dropped, "b -> b 1 1"), self.context(len(tokens)), tokens)

    def encode(self, batch: Batch) -> tuple[Tensor, tuple[int, int]]:
        """Images as x_0: pixels or the mean of their latents, (B, C, h, w); and the images' height and width."""
        if "latents" in batch and isinstance(self.codec, LatentCodec):
            x0 = self.codec.sample(self.moments(batch, self.codec)).to(self.unet.dtype)
            return x0, (x0.shape[-2] * self.codec.factor, x0.shape[-1] * self.codec.factor)
        pixels = self.pixels(batch["image"])
        return self.segmenter.encode(pixels), (pixels.shape[-2], pixels.shape[-1])

    def add_noise(self, x0: Tensor, draws: RowDraws) -> tuple[Tensor, Tensor | None]:
        """x_0 (B, C, h, w), noised to `config.timestep`, or a fraction at random timesteps; and the timesteps (B,).

        The timestep of a clean image is 0. Timesteps are None for a network without time embedding. Each image has its
        own, as the masks of a dropout in the time embedding's layers (of LoRA) have.
        """
        if not self.unet.config["conditioning"]["timestep"]:
            return self._noised(x0, draws)[0], None
        x0, timesteps = self._noised(x0, draws)
        return x0, torch.zeros(len(x0), dtype=torch.long, device=x0.device) if timesteps is None else timesteps

    def _noised(self, x0: Tensor, draws: RowDraws) -> tuple[Tensor, Tensor | None]:
        """`add_noise`; timesteps are None where all are 0."""
        if self.config.timestep:
            timesteps = torch.full((len(x0),), self.config.timestep, device=x0.device)
            if self.config.noised:
                assert self.scheduler is not None
                noise = self.image_noise(draws, x0)
                x0 = process_of(self.scheduler, self.noise).add_noise(x0, noise, timesteps)
            return x0, timesteps
        if self.scheduler is None or not self.config.noise:
            return x0, None
        process = process_of(self.scheduler, self.noise)
        timesteps = draws(process.sample_timesteps)
        noise = self.image_noise(draws, x0)
        is_noisy = draws(objectives.uniform) < self.config.noise  # (B,)
        sample = process.add_noise(x0, noise, timesteps)
        sample = torch.where(rearrange(is_noisy, "b -> b 1 1 1"), sample, x0)
        return sample, torch.where(is_noisy, timesteps, 0)

    def sums(self, logits: Tensor, masks: Tensor, border: Tensor | None = None) -> Sums:
        """The sums of the losses over logits (B, C, H, W) and masks (B, H, W), with border weights (B, H, W)."""
        target = masks.to(logits.device, non_blocking=True)
        border = None if border is None else border.to(logits.device, non_blocking=True)
        if target.shape[-2:] != logits.shape[-2:]:  # valid padding: the logits cover the center
            size = (logits.shape[-2], logits.shape[-1])
            target, border = center_crop(target, size), None if border is None else center_crop(border, size)
        loss = self._annealed_loss()
        inputs, bound = loss.prepare(logits, target, border), self._hard_bound
        if self._pixels is not None:
            self._pixels.append(loss.pixels(inputs))
        elif loss.ohem is not None and bound is None and self.process[1] > 1:
            bound = loss.hard_bound(loss.pixels(inputs)[0], sum_tensor)
        return loss.sums(inputs, bound)

    def losses(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        own, pseudo = split_off(sums)
        total, parts = self.loss.total(own)
        logged = {f"loss_{name}": part for name, part in parts.items() if len(parts) > 1}
        if pseudo:
            assert self.config.pseudo_labels is not None
            logged |= pseudo_losses(pseudo)
            total = total + self.config.pseudo_labels.weight * logged["pseudo_loss"]
        return {"loss": total, **logged}

    def reference(self, parts: Sequence[tuple[Batch, RowDraws]], layers: StepLayers) -> Sums:
        if self.is_linear:
            return self.target_sums([(batch, *self.masked_rows(draws)) for batch, draws in parts])
        with self.hard_pixels() as hard:
            sums = super().reference(parts, layers)
        return sums | hard

    @property
    def is_linear(self) -> bool:
        """Whether the masks alone determine how the loss depends on the network's predictions."""
        valid_padding = self.unet.config["encoder"]["padding"] == "valid"  # the logits crop the masks
        return self.loss.is_linear and not valid_padding

    def target_sums(self, parts: Sequence[tuple[Batch, list[int], list[int]]]) -> Sums:
        """The sums of a linear loss that depend on the masks alone, over several micro-batches, each with the rows that
        have masks and those that have pseudo-labels."""
        loss, classes = self._annealed_loss(), self.unet.num_classes or 0
        for batch, _, _ in parts:
            require_one_size(network_input(batch))

        def of(batch: Batch, masked: list[int], others: list[int]) -> Sums:
            part = of_rows(batch, masked)
            border = part.get(BORDER_WEIGHT)
            border = None if border is None else border.to(self.unet.device)
            sums = loss.target_sums(part["mask"].to(self.unet.device), classes, border)
            if self.config.pseudo_labels is None:
                return sums
            return sums | sums_without_labels(len(others) * batch["mask"][0].numel(), self.unet.device)

        return reduce(add, starmap(of, parts))

    @contextmanager
    def hard_pixels(self) -> Iterator[Sums]:
        """Select the hard pixels of the step among those whose sums are computed in this context (OHEM).

        Yields what replaces the sums of cross-entropy then. Collective.
        """
        found: Sums = {}
        if self.config.ohem is None:
            yield found
            return
        self._pixels = []
        try:
            yield found
            loss = self._annealed_loss()
            nll, weight = (torch.cat(values) for values in zip(*self._pixels, strict=True))  # (P,), (P,)
        finally:
            self._pixels = None
        self._hard_bound = loss.hard_bound(nll, sum_tensor if self.process[1] > 1 else None)
        found["cross_entropy"] = loss.hard_sums(nll, weight, self._hard_bound)

    def end_step(self, finite: bool) -> None:
        self._hard_bound = None

    def _annealed_loss(self) -> WeightedLoss:
        until = self.config.class_weights_anneal_until
        return self.loss if until is None else self.loss.anneal_class_weights(max(0.0, 1 - self.progress / until))

    def evaluate(self, loader: Iterable[Batch], accelerator: Accelerator) -> dict[str, Any]:
        unet = self.unet
        matrix = ConfusionMatrix(unet.num_classes or 0, self.config.ignore_index, accelerator.device)
        total, images_seen = DatasetLoss(self.loss, unet.num_classes or 0, accelerator.device), 0
        for batch in loader:
            for part in _same_size(batch):
                with eval_mode(unet, accelerator.device.type, None), accelerator.autocast():
                    logits = self.segmenter.clean_logits(*self.encode(part), self.tokens(part))
                    target = part["mask"].to(logits.device)
                    logits = resize_logits(logits, (target.shape[-2], target.shape[-1]))
                    matrix.update(logits.argmax(dim=1), target)
                    total.update(logits, target)
                images_seen += len(part["mask"])
        count = accelerator.reduce(torch.tensor(images_seen, device=accelerator.device))
        metrics = matrix.reduce(accelerator).compute()
        return {
            "segmentation/loss": total.reduce(accelerator).compute(),
            "segmentation/images": int(count),  # type: ignore[arg-type]
            **{f"segmentation/{name}": value for name, value in metrics.items()},
        }

    def preview(self, accelerator: Accelerator) -> Previews:
        val = self.data.val
        items = [val[i] for i in evenly_spaced_indices(len(val), PREVIEW_IMAGES)]
        predictions = []
        for item in items:
            with eval_mode(self.unet, accelerator.device.type, None), accelerator.autocast():
                reads_captions = self.context is not None and self.context.reads_captions
                segmenter = self.segmenter.with_prompt(item["caption"] if reads_captions else None)
                logits = segment_whole(segmenter, self.pixels(collate([item])["image"]))
            mask = item["mask"]
            predictions.append(resize_logits(logits, (mask.shape[-2], mask.shape[-1]))[0].argmax(dim=0).cpu())
        image = preview(
            [item["image"] for item in items],
            [item["mask"] for item in items],
            predictions,
            val.palette,
            val.classes,
            self.config.ignore_index,
            [item["name"] for item in items],
        )
        return {"segmentation": image}, {}

    def save(self, directory: Path) -> None:
        if self.kept is None:
            self.pipeline().save_pretrained(directory)
            return
        self.kept.save(self.unet, directory)
        parts = {name for name, part in self.kept.parts.items() if part is not None}
        self.pipeline().save_pretrained(directory, skip={"unet", *parts})

    def pipeline(self) -> SegmentationPipeline:
        """A pipeline that shares this task's modules."""
        val, one = self.data.val, self.segmenter
        inference = InferenceConfig(image_range=val.image_range)
        return SegmentationPipeline(
            self.unet,
            val.classes,
            val.palette,
            self.data.size,
            self.config.ignore_index,
            inference,
            one.codec,
            one.view,
            one.context,
        )


def of_rows(batch: Batch, rows: list[int]) -> Batch:
    """The masks, and their border weights, of these rows; the images as they are."""
    return {**batch, **{key: batch[key][rows] for key in ("mask", BORDER_WEIGHT) if key in batch}}


def _same_size(batch: Batch) -> list[Batch]:
    """A batch as batches of images, or latents, and masks of equal size: the batch itself, or one per image."""
    name = "latents" if "latents" in batch else "image"
    inputs, masks, captions = batch[name], batch["mask"], batch.get("caption", [None] * len(batch["mask"]))
    if isinstance(inputs, Tensor) and isinstance(masks, Tensor):
        return [{name: inputs, "mask": masks, "caption": captions}]
    parts = zip(inputs, masks, captions, strict=True)
    return [{name: one[None], "mask": mask[None], "caption": [caption]} for one, mask, caption in parts]
