"""The `training:` and `joint:` sections of a config: length, optimizer, learning rate, EMA, checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Optimizer = Literal[
    "AdamW", "Adam", "SGD", "RMSprop", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "Adafactor", "ASGD", "Rprop"
]
"""Classes of torch.optim that train any parameter from its gradient alone."""
WITH_BETAS = ("AdamW", "Adam", "NAdam", "RAdam", "Adamax")
WITHOUT_WEIGHT_DECAY = ("Rprop",)
Tracker = Literal[
    "tensorboard", "csv", "wandb", "mlflow", "trackio", "aim", "clearml", "comet_ml", "dvclive", "swanlab"
]
"""Accelerate's names, and csv."""


@dataclass
class OptimizerConfig:
    """The optimizer of all weights, a class of torch.optim."""

    name: Optimizer = "AdamW"
    """Class of torch.optim; AdamW and Adam are fused."""
    args: dict[str, bool | float | list[float]] = field(default_factory=dict)
    """Further arguments of the class by name, e.g. {momentum: 0.9, nesterov: true} of SGD."""
    lr: float = 1e-3
    """Peak learning rate, except of a pretrained encoder."""
    encoder_lr: float | None = None
    """Peak learning rate of the encoder; None: lr / 10 for pretrained weights, else lr."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each level of the backbone to the one before it, from the heads backwards: the
    first levels of a pretrained network change least (Clark et al. 2020). Time embedding and cross-attention have the
    mid block's rate. 1: one rate."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """Decay rates of the two moments (of classes that have them)."""
    weight_decay: float | None = None
    """Weight decay of parameters with two or more dimensions: decoupled in AdamW, an L2 penalty in others; None: 0.01
    of AdamW, else 0."""
    max_grad_norm: float = 1.0
    """Clip gradients to this norm; 0: no clipping."""


@dataclass
class ScheduleConfig:
    """The learning rate schedule."""

    name: Literal["warmup_cosine", "step", "constant"] = "warmup_cosine"
    """warmup_cosine (warm-up, cosine, constant last phase), step (ten steps down), or constant."""
    min_lr_ratio: float = 0.01
    """Final learning rate as a fraction of the peak."""
    warmup_ratio: float = 0.05
    """Warm-up as a fraction of the run (3 epochs at most; at least 1 in runs of 20 or more)."""
    warmup_lr_ratio: float = 0.1
    """Initial learning rate as a fraction of the peak."""
    no_aug_ratio: float = 0.05
    """Fraction of the run, at its end, without strong augmentation and at the final learning rate (15 epochs at most;
    at least 1 in runs of 20 or more)."""


@dataclass
class EMAConfig:
    """Exponential moving average of the parameters; buffers are copied."""

    enabled: bool = True
    """Average the parameters; the average is evaluated and exported."""
    half_life_images: int = 10_000
    """Half-life of a parameter value in the average, in training images."""


@dataclass
class LoRAConfig:
    """Low-rank adaptation (Hu et al. 2022): the network's weights W stay as they are, and W + (alpha / rank) B A is
    learned, with A (rank, in) and B (out, rank). A segmentation head and a conditioner are trained whole."""

    rank: int | None = None
    """Rank of the updates; None: train the weights themselves."""
    alpha: float | None = None
    """Numerator of the updates' factor alpha / rank; None: the rank, a factor of 1."""
    targets: list[str] = field(default_factory=lambda: ["to_q", "to_k", "to_v", "to_out.0"])
    """Last parts of the names of the linear layers and convolutions that are adapted. By default those of attention;
    also ff.net.0.proj and ff.net.2 (feed-forward), proj_in, proj_out, conv1, conv2, conv_shortcut, time_emb_proj."""
    dropout: float = 0.0
    """Dropout of the input of A."""


@dataclass
class JointConfig:
    """How the two losses of a joint run are weighted."""

    weighting: Literal["fixed", "uncertainty", "gradient_norm"] = "fixed"
    """fixed weights, learned uncertainties (Kendall et al. 2018), or weights that equalize the gradients' norms."""
    segmentation_weight: float = 1.0
    """Weight of the segmentation loss; its initial value under uncertainty, the gradient's under gradient_norm."""
    diffusion_weight: float = 1.0
    """Weight of the diffusion loss, likewise."""
    segmentation_fraction: float = 1.0
    """Fraction of each batch that the segmentation loss is computed on, at least one image; the diffusion loss is
    computed on all of it."""
    segment_noise_below: float = 0.0
    """Noisy images with less than this fraction of a sampler's steps left are segmented too, on the maps that denoise
    them; 0: clean images alone."""
    backbone_gradient: float = 1.0
    """Factor of the segmentation loss's gradient where it enters the part that both heads share; 0: the segmentation
    head, with its own decoder levels, learns from maps that the diffusion loss alone determines."""
    log_gradients: int = 0
    """Steps between comparisons of the two losses' gradients by level in metrics.jsonl; 0: never."""


@dataclass
class TrainingConfig:
    """One training run."""

    output_dir: str = "runs/run"
    """Run directory; an existing run requires --resume or --overwrite."""
    seed: int = 0
    """Seed of weights, data order, augmentation and noise."""
    init_from: str | None = None
    """Initialize the network from a run directory (its best weights), a model directory, or a diffusers U-Net. The
    backbones must match; heads of the same kind and size are loaded too, others are initialized randomly."""
    epochs: float | None = None
    """Length in passes over the training split; set this or steps."""
    steps: int | None = None
    """Length in optimizer steps."""
    batch_size: int = 32
    """Images per optimizer step, over all processes and accumulation steps."""
    gradient_accumulation_steps: int = 1
    """Micro-batches per optimizer step and process, to save memory."""
    batch_norm_images: int | None = None
    """Consecutive images of a step's batch that share the statistics of a BatchNorm in training mode ("ghost"
    BatchNorm, Hoffer et al. 2017): the same training however the batch is cut. None: the whole batch, over all
    processes; not possible with gradient accumulation."""
    eval_batch_size: int = 16
    """Images per process and evaluation batch."""
    num_workers: int = 0
    """Data loading processes; 0: load in the training process."""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """auto: bf16 if the device supports it, else float32 (no)."""
    channels_last: bool = True
    """Channels-last memory format."""
    compile: bool = False
    """torch.compile (no gain on a CPU)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    freeze_encoder: float = 0.0
    """Fraction of the run, from its start, in which the encoder is frozen, including BatchNorm statistics."""
    frozen_levels: int = 0
    """Encoder levels, finest first, that are never trained: a pretrained encoder's first filters are generic, and their
    large maps cost most."""
    freeze_backbone: bool = False
    """Train the heads alone, with the adapter of segmentation.context classes and the conditioner."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimizer."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """The learning rate."""
    ema: EMAConfig = field(default_factory=EMAConfig)
    """The averaged weights."""
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    """Low-rank adaptation of pretrained weights."""
    best_metric: str | None = None
    """Validation metric that selects the best weights, e.g. segmentation/mean_dice or segmentation/loss (the lower the
    better); None: segmentation/mean_iou, or diffusion/loss without a segmentation head."""
    early_stopping_patience: int | None = None
    """End the run after this many validations in a row without a better best_metric; None: train to the last step."""
    log_with: list[Tracker] = field(default_factory=lambda: ["tensorboard"])
    """Trackers of the metrics next to metrics.jsonl, by Accelerate's names, and csv; [] for none. Their packages must
    be installed."""
    log_every: int = 20
    """Steps between lines of metrics.jsonl."""
    validate_every: int | str | None = None
    """Steps between validations with previews, or epochs ("2 epochs"); the last step always validates. None: at most
    500 steps, and five times in a run at least."""
    checkpoint_every: int | str | None = None
    """Steps, or epochs, between checkpoints for --resume, likewise; every validation writes one, too."""
    keep_checkpoints: int = 2
    """Number of checkpoints kept."""
    resume: bool = False
    """Resume from the run directory's latest checkpoint."""
    overwrite: bool = False
    """Delete the contents of the run directory first."""
