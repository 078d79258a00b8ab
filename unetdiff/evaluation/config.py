"""What is asked of the judging of a denoiser, and how it is said in words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unetdiff.diffusion.schedulers import SCHEDULERS
from unetdiff.errors import UserError, nearest
from unetdiff.models.config import PRETRAINED_ENCODERS

INCEPTION, CLASSIFIER = "inception", "classifier"
"""The feature networks that are no torchvision trunk."""
IMAGENET = "imagenet"
"""A trunk's weights, where they are downloaded."""


@dataclass(frozen=True)
class SweepConfig:
    """Settings of the sampler to try, every one with every other; an empty one is the evaluation's own."""

    steps: tuple[int, ...] = ()
    """Denoising steps."""
    scheduler: tuple[str, ...] = ()
    """Samplers, of `unetdiff.diffusion.schedulers.SCHEDULERS`."""
    guidance: tuple[float, ...] = ()
    """Guidance scales."""


@dataclass(frozen=True)
class JudgingConfig:
    """How a denoiser is judged."""

    samples_per_class: int = 30
    """Images drawn of each class (ten times as many without classes); 0: none."""
    steps: int = 50
    """Denoising steps of these."""
    guidance_scale: float | None = None
    """Guidance of these; None: the run's."""
    seed: int = 0
    """Seed of their noise."""
    features: tuple[str, ...] | None = None
    """Feature networks, NAME or NAME=WEIGHTS (`unetdiff.evaluation.features`); None: the classifier, where the set has
    classes."""
    reference: Literal["train", "val"] = "train"
    """The split whose real images the samples are held against."""
    fid_samples: int | None = None
    """Samples behind the distances; None: those that are drawn anyway."""
    neighbours: int = 3
    """Nearest training images looked for; 0: none."""
    bits_per_dimension: int = 0
    """Images whose likelihood is measured; 0: none."""
    bits_timesteps: int = 50
    """Timesteps that each of these is judged at; 0: every one."""
    sweep: SweepConfig | None = None
    """Settings of the sampler to try."""
    segmenter: Path | None = None
    """For a denoiser that is told layouts: a run or model directory of a segmenter of the same set's real images,
    which looks for the layouts in the samples (`unetdiff.evaluation.layout_consistency`)."""

    @property
    def anything(self) -> bool:
        """Whether anything at all is asked for."""
        return bool(
            self.samples_per_class or self.fid_samples or self.bits_per_dimension or self.sweep or self.segmenter
        )


def parse_features(word: str) -> tuple[str, str | None]:
    """NAME or NAME=WEIGHTS as (name, weights).

    Raises:
        UserError: an unknown name, or no such file.
    """
    name, _, weights = word.partition("=")
    known = (INCEPTION, CLASSIFIER, *PRETRAINED_ENCODERS)
    if name not in known:
        raise UserError(f"features: '{name}' is unknown; nearest: {nearest(name, known)} (one of {', '.join(known)})")
    if name == CLASSIFIER and weights:
        raise UserError(f"features: classifier={weights}, but it is trained on the set itself; give classifier alone")
    if weights and weights != IMAGENET and not Path(weights).is_file():
        raise UserError(f"features: no file '{weights}' for {name}; leave it out to download the weights")
    return name, weights or None


def parse_sweep(text: str) -> SweepConfig:
    """Settings in words, e.g. "steps=10,25,50 scheduler=ddim,dpm++ guidance=1,2".

    Raises:
        UserError: an unknown setting or sampler, or a value that cannot be.
    """
    kinds = {"steps": _steps, "scheduler": _scheduler, "guidance": _guidance}
    found: dict[str, tuple[Any, ...]] = {}
    for part in text.split():
        name, _, values = part.partition("=")
        if name not in kinds:
            raise UserError(f"sweep: unknown setting {part!r}; nearest: {nearest(name, kinds)}=...")
        if name in found:
            raise UserError(f"sweep: {name} is given twice; list its values with commas")
        found[name] = tuple(kinds[name](value) for value in values.split(","))
    if not found:
        raise UserError('sweep: nothing to try; give e.g. "steps=10,25 scheduler=ddim,dpm++ guidance=1,2"')
    return SweepConfig(**found)


def _steps(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise UserError(f"sweep: steps={word!r} is no number of steps; use 1 or more")
    return int(word)


def _scheduler(word: str) -> str:
    if word not in SCHEDULERS:
        near = nearest(word, SCHEDULERS)
        raise UserError(f"sweep: scheduler={word!r} is not one of {', '.join(SCHEDULERS)}; nearest: {near}")
    return word


def _guidance(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise UserError(f"sweep: guidance={word!r} is no number; give e.g. 1,2") from None
