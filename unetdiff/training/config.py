"""How long, how fast and how safely a run trains: the typed `training:` section of a config file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class OptimizerConfig:
    """AdamW (fused where the machine has it)."""

    lr: float = 1e-3
    """Peak learning rate of everything but a pretrained trunk."""
    encoder_lr: float | None = None
    """Peak learning rate of the encoder's trunk; None: a tenth of lr where the trunk is pretrained, else lr."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """Decay of the two moments."""
    weight_decay: float = 0.01
    """Decoupled weight decay of weights with two dimensions or more."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm; 0: never."""


@dataclass
class ScheduleConfig:
    """The learning rate over the run."""

    name: Literal["warmup_cosine", "step", "constant"] = "warmup_cosine"
    """warmup_cosine (warm-up, cosine, constant last phase), step (ten steps down), constant."""
    min_lr_ratio: float = 0.01
    """Last learning rate as a share of the peak."""
    warmup_ratio: float = 0.05
    """Share of the run that warms up (3 epochs at most; at least 1 in a run of 20 or more)."""
    warmup_lr_ratio: float = 0.1
    """First learning rate as a share of the peak."""
    no_aug_ratio: float = 0.05
    """Share of the run without strong augmentation at its end, at the last learning rate (15 epochs at most; at least 1
    in a run of 20 or more)."""


@dataclass
class EMAConfig:
    """Exponential moving average: parameters averaged, buffers copied."""

    enabled: bool = True
    """Keep an average, and judge and export it."""
    half_life_images: int = 10_000
    """Length of the average: images after which an old weight counts half."""


@dataclass
class JointConfig:
    """How the two objectives share a joint run."""

    weighting: Literal["fixed", "uncertainty", "gradient_norm"] = "fixed"
    """How the losses are weighed: as given, by learned uncertainties, or so that their gradients are of one size."""
    segmentation_weight: float = 1.0
    """Weight of the segmentation loss; under uncertainty what it starts from, under gradient_norm the gradient's."""
    diffusion_weight: float = 1.0
    """Weight of the diffusion loss, likewise."""
    segmentation_fraction: float = 1.0
    """Share of a batch's images that the segmentation head is asked for; the diffusion head is asked for all."""
    log_gradients: int = 0
    """Steps between lines of metrics.jsonl that compare the two losses' gradients, level by level; 0: never."""


@dataclass
class TrainingConfig:
    """The loop."""

    output_dir: str = "runs/run"
    """The run directory; refused when it holds a run, unless --resume or --overwrite."""
    seed: int = 0
    """Seed of weights, data order, augmentation, noise."""
    init_from: str | None = None
    """Start the network from other weights: a run directory (its best), a model directory, or one of a diffusers U-Net.
    The backbone must be the same; a head of the same kind and size comes along, any other starts fresh."""
    epochs: float | None = None
    """Length in passes over the training split; give this or steps."""
    steps: int | None = None
    """Length in optimizer steps."""
    batch_size: int = 32
    """Images of one optimizer step, over all processes and accumulation."""
    gradient_accumulation_steps: int = 1
    """Parts that a process splits its share of the batch into, to save memory."""
    eval_batch_size: int = 16
    """Images a process evaluates at once."""
    num_workers: int = 0
    """Loader processes; 0: load in the training process."""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """auto: bf16 where the machine has it, else float32."""
    channels_last: bool = True
    """Channels-last memory format."""
    compile: bool = False
    """torch.compile (no gain on a CPU)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass, to save memory."""
    freeze_encoder: float = 0.0
    """Share of the run at its start in which the encoder is frozen, its BatchNorm statistics too."""
    frozen_levels: int = 0
    """Levels of the encoder, finest first, that are never trained: a pretrained trunk's first filters are general, and
    their large maps cost the most."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimizer."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """The learning rate."""
    ema: EMAConfig = field(default_factory=EMAConfig)
    """The averaged weights."""
    log_every: int = 20
    """Steps between lines of metrics.jsonl."""
    validate_every: int = 500
    """Steps between validations with images; the last step always validates."""
    checkpoint_every: int = 500
    """Steps between checkpoints that --resume can go on from; the last step always checkpoints."""
    keep_checkpoints: int = 2
    """Checkpoints kept, newest first."""
    resume: bool = False
    """Go on from the run directory's newest checkpoint."""
    overwrite: bool = False
    """Delete what the run directory holds."""
