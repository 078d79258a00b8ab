"""What each key of the config may hold: the range of every number, the length of every list, and which texts are paths.

One table next to the schema, so that no key is forgotten (a test compares the two). Bounds on memory and time (a
billion scenes, forty levels) are far above what is useful.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from unetdiff.errors import config_error


class Bound(NamedTuple):
    """A range of numbers, for a key or for every item of its list."""

    low: float
    high: float
    open_low: bool = False
    """Whether `low` itself is excluded."""
    open_high: bool = False
    """Whether `high` itself is excluded."""
    as_range: bool = False
    """Whether a message gives both ends, not only the one that was passed."""
    remedy: str = ""
    min_items: int = 0
    max_items: int = 1000
    items: str = ""
    """A list: what it must be, for the message."""

    def holds(self, value: float) -> bool:
        above = self.low < value if self.open_low else self.low <= value
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def constraint(self, value: float) -> str:
        """Completes "must be" for a value that is out of range."""
        if self.as_range:
            return f"in {'(' if self.open_low else '['}{self.low:g}, {self.high:g}{')' if self.open_high else ']'}"
        if value != value or value == math.inf:
            return f"a finite number {self._above()}" if not self._is_positive() else "a positive number"
        if value > self.high:
            return f"at most {self.high:,.15g}"
        return "a positive number" if self._is_positive() else self._above().removeprefix("of ")

    def _is_positive(self) -> bool:
        return self.open_low and self.low == 0

    def _above(self) -> str:
        return f"of at least {self.low:g}"


def at_least(low: int, high: int = 10**9, remedy: str = "") -> Bound:
    """Integers or numbers from `low`; `high` is technical."""
    return Bound(low, high, remedy=remedy)


def positive(high: float = 1e6, remedy: str = "") -> Bound:
    """(0, high]."""
    return Bound(0, high, open_low=True, remedy=remedy)


def within(low: float, high: float, remedy: str = "", open_low: bool = False, open_high: bool = False) -> Bound:
    """A range whose two ends have a meaning."""
    return Bound(low, high, open_low, open_high, True, remedy)


def items(bound: Bound, what: str, remedy: str, low: int, high: int) -> Bound:
    """A list of `low` to `high` items, each in `bound`."""
    return bound._replace(items=what, remedy=remedy, min_items=low, max_items=high)


FRACTION = within(0, 1)
SEED = at_least(0, 2**32 - 1)
WIDTHS = items(at_least(1, 8192), "a list of positive integers", "Give e.g. [32, 64].", 1, 10)
SIDES = items(at_least(8, 16_384), "[height, width], two integers from 8 to 16384", "Give e.g. [256, 256].", 2, 2)

BOUNDS: dict[str, Bound] = {
    "model.in_channels": at_least(1, 1024),
    "model.patch_size": at_least(1, 64),
    "model.sample_size": items(
        at_least(1, 16_384), "[height, width], or one number for both", "Give e.g. [64, 64].", 2, 2
    ),
    "model.encoder.channels": WIDTHS,
    "model.encoder.mean": items(within(-1e6, 1e6), "a list with one number per channel", "Give e.g. [0.5].", 1, 64),
    "model.encoder.std": items(
        within(0, 1e6, open_low=True), "a list with one positive number per channel", "Give e.g. [0.25].", 1, 64
    ),
    "model.encoder.dropout": within(0, 1, "The 2015 network has 0.5.", open_high=True),
    "model.residual.layers_per_block": at_least(1, 32),
    "model.residual.norm_num_groups": at_least(1, 8192),
    "model.residual.dropout": within(0, 1, "Give e.g. 0.1.", open_high=True),
    "model.decoder.channels": WIDTHS,
    "model.conditioning.cross_attention_dim": at_least(1, 8192),
    "model.conditioning.attention_levels": items(at_least(0, 10), "a list of levels, 0 the finest", "", 0, 10),
    "model.conditioning.attention_head_dim": at_least(1, 8192),
    "model.heads.segmentation.num_classes": at_least(1, 65_536),
    "model.heads.segmentation.pyramid": at_least(1, 8192, "Give e.g. 256."),
    "model.heads.segmentation.own_decoder_levels": at_least(0, 11),
    "model.heads.diffusion.out_channels": at_least(1, 1024),
    "model.imported.norm_eps": within(0, 1, open_low=True),
    "model.imported.resnet_downsample_levels": items(at_least(0, 10), "a list of levels, 0 the finest", "", 0, 10),
    "model.imported.resnet_upsample_levels": items(at_least(0, 10), "a list of levels, 0 the finest", "", 0, 10),
    "model.imported.time_cond_proj_dim": at_least(1, 65_536),
    "model.imported.addition_time_embed_dim": at_least(1, 8192),
    "model.imported.projection_class_embeddings_input_dim": at_least(1, 65_536),
    "model.imported.downsample_padding": within(0, 1),
    "model.imported.freq_shift": within(0, 1),
    "model.imported.transformer_depth": items(at_least(1, 32), "one number, or one per level", "", 1, 10),
    "model.imported.attention_heads": items(at_least(1, 1024), "a list with one number per level", "", 1, 10),
    "model.imported.mid_block_attention_groups": at_least(0, 8192),
    "model.imported.num_class_embeds": at_least(1, 1_000_000),
    "model.imported.segmentation_kernel_size": at_least(1, 31),
    "data.num_classes": within(1, 255),
    "data.val_fraction": within(0, 1, "Give e.g. 0.1.", open_low=True, open_high=True),
    "data.split_seed": SEED,
    "data.mask_values": at_least(0, 255),
    "data.mask_colors": at_least(0, 255),
    "data.image_range": items(
        within(-1e12, 1e12), "[black, white], two ascending numbers, or two per channel", "Give e.g. [0, 4095].", 2, 128
    ),
    "data.channels": within(1, 64),
    "data.size": SIDES,
    "data.bucket_step": at_least(8, 1024),
    "data.longest_side": at_least(32, 16_384),
    "data.repeat_factor_threshold": FRACTION,
    "data.train_fraction": within(0, 1, open_low=True),
    "data.train_fraction_seed": SEED,
    "data.label_fraction": within(0, 1, open_low=True),
    "data.scenes.train_images": at_least(1, 1_000_000),
    "data.scenes.val_images": at_least(1, 1_000_000),
    "data.scenes.digits": within(1, 9),
    "data.scenes.colors": within(1, 6),
    "data.scenes.clutter": FRACTION,
    "data.scenes.spread": FRACTION,
    "data.scenes.seed": SEED,
    "data.augment.scale": items(
        within(0.1, 10), "[smallest, largest], two factors from 0.1 to 10", "Give e.g. [0.5, 2.0].", 2, 2
    ),
    "data.augment.crop": SIDES,
    "data.augment.elastic": within(0, 1000, "The 2015 paper has 10."),
    "data.augment.color": FRACTION,
    "segmentation.losses": at_least(0, 10**6),
    "segmentation.class_weights": items(
        at_least(0, 10**6), "a list of finite numbers of at least 0, one of them positive", "", 1, 65_536
    ),
    "segmentation.class_weights_anneal_until": within(0, 1, "Give e.g. 0.5.", open_low=True),
    "segmentation.label_smoothing": within(0, 1, "Give e.g. 0.1.", open_high=True),
    "segmentation.ohem.threshold": FRACTION,
    "segmentation.ohem.min_fraction": FRACTION,
    "segmentation.border_weights.w0": at_least(0, 10**6),
    "segmentation.border_weights.sigma": within(0, 1000, "The 2015 paper has 5.", open_low=True),
    "segmentation.border_weights.background": within(0, 254),
    "segmentation.ignore_index": within(0, 255, "Use 255."),
    "segmentation.timestep": at_least(0, 99_999),
    "segmentation.noise": FRACTION,
    "segmentation.pseudo_labels.confidence": FRACTION,
    "segmentation.pseudo_labels.weight": at_least(0, 10**6),
    "segmentation.pseudo_labels.max_noise": within(0, 1, "Give e.g. 0.5.", open_low=True),
    "segmentation.pseudo_labels.labelled_fraction": within(0, 1, "Give e.g. 0.5.", open_low=True, open_high=True),
    "diffusion.snr_gamma": positive(remedy="Min-SNR uses 5.0."),
    "diffusion.noise.beta_start": within(0, 1, "Ho et al. use 0.0001.", open_low=True, open_high=True),
    "diffusion.noise.beta_end": within(0, 1, "Ho et al. use 0.02.", open_low=True, open_high=True),
    "diffusion.noise.num_train_timesteps": at_least(2, 100_000),
    "diffusion.noise.flow.shift": positive(100, "Give 1.0, or e.g. 3.0 for large images."),
    "diffusion.noise.flow.logit_mean": within(-10, 10, "Give 0.0."),
    "diffusion.noise.flow.logit_std": within(0, 10, "Give 1.0.", open_low=True),
    "diffusion.noise.edm.sigma_data": positive(1000, "Give null, or e.g. 0.5."),
    "diffusion.noise.edm.sigma_min": positive(1000, "Give 0.002."),
    "diffusion.noise.edm.sigma_max": positive(10_000, "Give 80.0."),
    "diffusion.noise.edm.rho": within(1, 100, "Give 7.0."),
    "diffusion.noise.edm.p_mean": within(-10, 10, "Give -1.2."),
    "diffusion.noise.edm.p_std": within(0, 10, "Give 1.2.", open_low=True),
    "diffusion.noise.input_scale": positive(1000, "Give 1.0, or e.g. 0.1 for masks."),
    "diffusion.offset_noise": at_least(0, 10),
    "diffusion.prior_weight": at_least(0, 1000),
    "diffusion.condition_dropout": FRACTION,
    "diffusion.class_tokens": at_least(1, 1024),
    "diffusion.max_classes": at_least(1, 255),
    "diffusion.text.max_tokens": at_least(1, 10_000),
    "diffusion.layout.grid": at_least(0, 256),
    "diffusion.layout.channels": at_least(0, 1024),
    "diffusion.image.strength": positive(1000),
    "diffusion.inpainting.full_mask_fraction": FRACTION,
    "diffusion.preview_steps": at_least(1, 100_000),
    "diffusion.preview_per_class": at_least(1, 1000),
    "diffusion.guidance_scale": at_least(0, 1000),
    "joint.segmentation_weight": positive(),
    "joint.diffusion_weight": positive(),
    "joint.segmentation_fraction": within(0, 1, open_low=True),
    "joint.segment_noise_below": within(0, 1),
    "joint.backbone_gradient": at_least(0),
    "joint.log_gradients": at_least(0),
    "training.seed": SEED,
    "training.epochs": positive(),
    "training.steps": at_least(1),
    "training.batch_size": at_least(1, 1_000_000),
    "training.gradient_accumulation_steps": at_least(1, 1_000_000),
    "training.batch_norm_images": at_least(1, 1_000_000),
    "training.eval_batch_size": at_least(1, 1_000_000),
    "training.num_workers": at_least(0, 256),
    "training.freeze_encoder": FRACTION,
    "training.frozen_levels": at_least(0, 10),
    "training.optimizer.lr": positive(1000, "Give e.g. 1e-3."),
    "training.optimizer.encoder_lr": positive(1000, "Give e.g. 1e-4."),
    "training.optimizer.layer_decay": within(0, 1, "Give e.g. 0.7.", open_low=True),
    "training.optimizer.betas": items(
        within(0, 1, open_high=True), "two numbers in [0, 1)", "Give e.g. [0.9, 0.999].", 2, 2
    ),
    "training.optimizer.weight_decay": at_least(0, 1000),
    "training.optimizer.args": within(-(10**9), 10**9),
    "training.optimizer.max_grad_norm": at_least(0, 10**6),
    "training.schedule.min_lr_ratio": FRACTION,
    "training.schedule.warmup_ratio": FRACTION,
    "training.schedule.warmup_lr_ratio": FRACTION,
    "training.schedule.no_aug_ratio": FRACTION,
    "training.ema.half_life_images": at_least(1, 10**12),
    "training.lora.rank": at_least(1, 8192),
    "training.lora.alpha": positive(remedy="Give e.g. the rank."),
    "training.lora.dropout": within(0, 1, "Give e.g. 0.1.", open_high=True),
    "training.log_every": at_least(1),
    "training.validate_every": at_least(1),
    "training.checkpoint_every": at_least(1),
    "training.keep_checkpoints": at_least(1),
    "training.early_stopping_patience": at_least(1),
}
"""The range of every key that holds numbers."""
PATHS = (
    "model.pretrained",
    "model.encoder.weights",
    "data.root",
    "data.images",
    "data.masks",
    "data.mask_colors",
    "data.annotations",
    "data.regularization_root",
    "data.unlabelled_root",
    "latent.vae",
    "latent.cache_dir",
    "diffusion.text.encoder",
    "diffusion.text.cache_dir",
    "training.output_dir",
    "training.init_from",
)
"""Keys of files and folders: "~" is expanded, and an empty text is not the working directory."""
NAMES = (
    "model.revision",
    "model.encoder.name",
    "data.train_split",
    "data.val_split",
    "data.group_pattern",
    "data.regularization_prompt",
    "data.image_column",
    "data.mask_column",
    "data.label_column",
    "data.caption_column",
    "training.best_metric",
)
"""Keys of other texts."""
MAX_PATH, MAX_NAME = 4096, 255
"""Bytes of a path and of a name, as common systems have them."""
MAX_ENTRIES = {
    "data.class_names": (2, 254, "names"),
    "data.scenes.held_out_pairs": (0, 60, "pairs"),
    "training.lora.targets": (1, 60, "layer names"),
    "training.log_with": (0, 20, "trackers"),
}
"""Keys of lists of texts -> least and largest number of entries, and what these are."""


def expanded(key: str, value: Any) -> Any:
    """The value of a key with "~" expanded, where the key holds a path."""
    return os.path.expanduser(value) if key in PATHS and isinstance(value, str) else value


def check_bounds(values: Mapping[str, Any]) -> None:
    """Check every number, list and text of a config, given by dotted keys.

    Raises:
        UserError: the first that is out of range.
    """
    for key, value in values.items():
        if isinstance(value, str) and key in (*PATHS, *NAMES):
            check_text(key, value, MAX_PATH if key in PATHS else MAX_NAME)
        elif key in MAX_ENTRIES and value is not None:
            low, high, what = MAX_ENTRIES[key]
            if not low <= len(value) <= high:
                raise config_error(key, value, f"a list of {f'{low} to' if low else 'at most'} {high} {what}")
        elif key in BOUNDS and not isinstance(value, str | None):
            _check_numbers(key, value, BOUNDS[key])


def check_text(key: str, value: str, max_bytes: int = MAX_PATH) -> None:
    """Check that a text is a name or a path: not empty, without control characters, not too long.

    Raises:
        UserError: it is not.
    """
    if not value.strip():
        raise config_error(key, value, "set (got an empty text)", "Give a value, or leave the key out.")
    if any(not character.isprintable() and character < "\x7f" for character in value):
        raise config_error(key, value, "a text without line breaks and control characters")
    length = len(value.encode(errors="surrogatepass"))
    if length > max_bytes:
        raise config_error(key, value, f"at most {max_bytes} bytes long (got {length})")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise config_error(key, value, "valid UTF-8", "Rename it.")


def _check_numbers(key: str, value: Any, bound: Bound) -> None:
    if isinstance(value, dict):
        numbers = [
            (name, number) for name, item in value.items() for number in (item if isinstance(item, list) else [item])
        ]
        for name, number in numbers:
            if not isinstance(number, str) and not bound.holds(number):
                raise config_error(f"{key}.{name}", number, bound.constraint(number), bound.remedy)
    elif isinstance(value, list):
        if not bound.min_items <= len(value) <= bound.max_items or not all(bound.holds(item) for item in value):
            long = f" of at most {bound.max_items} items" if len(value) > bound.max_items > 2 else ""
            raise config_error(key, value, bound.items + long, bound.remedy)
    elif not bound.holds(value):
        raise config_error(key, value, bound.constraint(value), bound.remedy)
