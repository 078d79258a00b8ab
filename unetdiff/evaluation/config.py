"""Settings of the evaluation of a denoiser, and their parsing from the command line."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unetdiff.diffusion.scheduler_names import SCHEDULER_NAMES
from unetdiff.errors import UserError, config_error, did_you_mean
from unetdiff.models.config import PRETRAINED_ENCODERS

INCEPTION, CLASSIFIER = "inception", "classifier"
"""Feature networks other than torchvision's encoders."""
IMAGENET = "imagenet"
"""Name of torchvision's ImageNet weights, which are downloaded."""


@dataclass(frozen=True)
class SweepConfig:
    """Sampler settings, of which every combination is evaluated; an empty one takes the evaluation's own value."""

    num_inference_steps: tuple[int, ...] = ()
    """Denoising steps."""
    scheduler: tuple[str, ...] = ()
    """Of `unetdiff.diffusion.scheduler_names.SCHEDULER_NAMES`, for the model's forward process."""
    guidance_scale: tuple[float, ...] = ()
    """Guidance scales."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation of a denoiser."""

    samples_per_class: int = 30
    """Samples of each class (ten times as many without classes); 0: none."""
    num_inference_steps: int = 50
    """Denoising steps."""
    guidance_scale: float | None = None
    """Guidance scale; None: `diffusion.guidance_scale` of the run."""
    seed: int = 0
    """Seed of the noise."""
    features: tuple[str, ...] | None = None
    """Feature networks, NAME or NAME=WEIGHTS (`unetdiff.evaluation.features`); None: the classifier, if the dataset has
    class labels."""
    reference: Literal["train", "val"] = "train"
    """Split of the real images in the distances."""
    num_distance_samples: int | None = None
    """Samples in the distances; None: all that are drawn."""
    num_neighbors: int = 3
    """Nearest training images shown for each sample; 0: no memorization test."""
    num_likelihood_images: int = 0
    """Images for the likelihood; 0: none."""
    num_likelihood_timesteps: int = 50
    """Timesteps for each of them; 0: all."""
    sweep: SweepConfig | None = None
    """Sampler settings to compare; None: no sweep."""
    segmenter: Path | None = None
    """For a layout-conditional denoiser: run or model directory of a segmenter, trained on real images of the same
    dataset, that measures layout consistency (`unetdiff.evaluation.layout_consistency`)."""

    @property
    def enabled(self) -> bool:
        """Whether there is anything to evaluate."""
        return any(
            (self.samples_per_class, self.num_distance_samples, self.num_likelihood_images, self.sweep, self.segmenter)
        )


BOUNDS = {
    "samples_per_class": (0, 1_000_000),
    "num_inference_steps": (1, 100_000),
    "num_distance_samples": (2, 1_000_000),
    "num_neighbors": (0, 20),
    "num_likelihood_images": (0, 1_000_000),
    "num_likelihood_timesteps": (0, 100_000),
    "seed": (0, (1 << 63) - 1),
}
"""The range of each number of `EvaluationConfig`."""


def validate_evaluation(config: EvaluationConfig, prefix: str = "") -> None:
    """Raise UserError for a number out of range or NaN; `prefix` of the option in the message, e.g. "--"."""
    for name, (minimum, maximum) in BOUNDS.items():
        value = getattr(config, name)
        if value is not None and not minimum <= value <= maximum:
            raise config_error(f"{prefix}{name}", value, f"from {minimum} to {maximum}")
    scales = [] if config.guidance_scale is None else [("guidance_scale", config.guidance_scale)]
    scales += [("sweep.guidance_scale", scale) for scale in (config.sweep or SweepConfig()).guidance_scale]
    for name, scale in scales:
        if not math.isfinite(scale):
            raise config_error(f"{prefix}{name}", scale, "a finite number")


def parse_features(text: str) -> tuple[str, str | None]:
    """NAME or NAME=WEIGHTS as (name, weights).

    Raises:
        UserError: an unknown name, or a missing file.
    """
    name, _, weights = text.partition("=")
    known = (INCEPTION, CLASSIFIER, *PRETRAINED_ENCODERS)
    if name not in known:
        raise config_error("features", name, f"one of {', '.join(known)}", did_you_mean(name, known))
    if name == CLASSIFIER and weights:
        raise UserError(f"features={text}: must be classifier without weights. It is trained on the dataset itself.")
    if weights and weights != IMAGENET and not Path(weights).is_file():
        raise UserError(f"features={text}: {weights} must be an existing file. Omit it to download the weights.")
    return name, weights or None


def parse_sweep(text: str) -> SweepConfig:
    """Parse e.g. "num_inference_steps=10,25,50 scheduler=ddim,dpm++ guidance_scale=1,2".

    Raises:
        UserError: an unknown setting, or an invalid value.
    """
    parsers = {"num_inference_steps": _steps, "scheduler": _scheduler, "guidance_scale": _guidance_scale}
    settings: dict[str, tuple[Any, ...]] = {}
    for part in text.split():
        name, _, values = part.partition("=")
        if name not in parsers:
            remedy = did_you_mean(name, parsers, otherwise=f"The settings are {', '.join(parsers)}.")
            raise UserError(f"sweep: unknown setting {part!r}. {remedy}")
        if name in settings:
            raise UserError(f"sweep.{name}: must be set once. Separate its values with commas.")
        settings[name] = tuple(parsers[name](value) for value in values.split(","))
    if not settings:
        raise UserError('sweep: must not be empty. Example: "num_inference_steps=10,25 scheduler=ddim,dpm++".')
    return SweepConfig(**settings)


def _steps(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"sweep.num_inference_steps={text}: must be integers of at least 1.")
    return int(text)


def _scheduler(text: str) -> str:
    if text not in SCHEDULER_NAMES:
        constraint = f"one of {', '.join(SCHEDULER_NAMES)}"
        raise config_error("sweep.scheduler", text, constraint, did_you_mean(text, SCHEDULER_NAMES))
    return text


def _guidance_scale(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"sweep.guidance_scale={text}: must be numbers, e.g. 1,2.") from None
