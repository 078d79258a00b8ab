"""Everything that `unetdiff evaluate` says of a denoiser's samples and likelihood, beside its loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from unetdiff.data.base import ImageDataset, collate
from unetdiff.data.sampling import evenly_spaced_indices
from unetdiff.diffusion.images import color_error, grid
from unetdiff.errors import UserError
from unetdiff.evaluation.classifier import share_right, share_right_per_class
from unetdiff.evaluation.config import JudgingConfig, SweepConfig
from unetdiff.evaluation.distances import Figure, compare
from unetdiff.evaluation.feature_extractors import Judges, References, Seen, find_judges, look
from unetdiff.evaluation.features import FeatureNetwork
from unetdiff.evaluation.likelihood import Bound, strata, summary, variational_bound
from unetdiff.evaluation.memorization import QUANTILE, find_copies, neighbours_image, pixels_as_points
from unetdiff.evaluation.reference import Reference, batches
from unetdiff.evaluation.sweep import sweep
from unetdiff.evaluation.types import Denoiser, EvalSplits, SamplingConfig, together

KEPT = 500  # samples and real images that colours and neighbours are taken from
GRID_ROWS, GRID_COLUMNS = 12, 8
SHOWN = 8  # samples on the image of neighbours
LIKELIHOOD_BATCH = 16
CLASSES_WITHOUT = 10  # a denoiser without classes draws as many as one of ten classes
SWEEP_SAMPLES = 300  # of each setting, where nothing else says how many


def evaluate_denoiser(
    denoiser: Denoiser,
    sets: EvalSplits,
    config: JudgingConfig,
    setting: SamplingConfig,
    output: Path,
    cache: Path,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """The figures of a denoiser's samples and likelihood; writes samples.png, neighbours.png and sweep.* to `output`.

    Held in memory are the features of samples and real images, a few hundred images of each, and in a sweep the
    samples of one setting.

    Args:
        denoiser: what is judged.
        sets: the real images.
        config: what is asked.
        setting: how the samples are drawn.
        output: folder of what is written.
        cache: folder where the classifier and the real images' features are kept.
        device: where the judges and the denoiser run.

    Raises:
        UserError: other classes than the set's, an unknown feature network, weights that cannot be read, a sweep over
            what the denoiser has not, the likelihood of a denoiser of latents.
    """
    check_sweep(denoiser, config)
    if config.bits_per_dimension and denoiser.denoise is None:
        raise UserError(
            f"bits_per_dimension: {config.bits_per_dimension}, but the model denoises latents, and their likelihood is "
            "not that of images; leave it out"
        )
    output.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {}
    usual = config.samples_per_class * (len(denoiser.classes) or CLASSES_WITHOUT)
    for_distances = usual if config.fid_samples is None else config.fid_samples
    if max(usual, for_distances) or config.sweep is not None:
        judges = find_judges(denoiser, sets, config, cache, device)
        references = References(sets, cache / "reference")
        if total := max(usual, for_distances):
            seen = look(denoiser.draw(total, setting), judges, KEPT)
            figures |= _samples(seen, denoiser, sets, judges, setting)
            figures["samples/distances"] = [
                asdict(figure)
                for network, features in zip(judges.networks, seen.features, strict=True)
                for figure in _distances(features[:for_distances], network, references.of(network, config.reference))
            ]
            _grid(seen, denoiser.classes).save(output / "samples.png")
            if config.neighbours:
                figures |= _neighbours(seen, denoiser, judges, references, config.neighbours, output)
        if config.sweep is not None:
            figures["sweep"] = _sweep(denoiser, judges, references, config, setting, for_distances, output)
    if config.bits_per_dimension:
        found = likelihood(denoiser, sets, config.bits_per_dimension, config.bits_timesteps, setting.seed, device)
        figures |= {f"likelihood/{name}": value for name, value in found.items()}
    return figures


def check_sweep(denoiser: Denoiser, config: JudgingConfig) -> None:
    """Refuse settings that the denoiser cannot be sampled with (UserError)."""
    asked, most = config.sweep or SweepConfig(), len(denoiser.scheduler.alphas_cumprod)
    if asked.steps and max(asked.steps) > most:
        raise UserError(f"sweep: steps={max(asked.steps)}, but the model has {most} timesteps; use no more")
    if not denoiser.uses_guidance and set(asked.guidance) - {1.0}:
        raise UserError(f"sweep: guidance={asked.guidance[0]:g}, but the model is told no condition; leave it out")


def likelihood(
    denoiser: Denoiser, sets: EvalSplits, count: int, timesteps: int, seed: int, device: torch.device | str
) -> dict[str, Any]:
    """Bits per dimension of evenly spaced images of the judged split; see `unetdiff.evaluation.likelihood`."""
    assert denoiser.denoise is not None
    generator = torch.Generator(device).manual_seed(seed)
    images = sets[sets.split]
    bounds: list[Bound] = []
    chosen = torch.tensor(evenly_spaced_indices(len(images), count)).split(LIKELIHOOD_BATCH)
    for numbers in tqdm(chosen, desc="likelihood", unit="batch", disable=None):
        batch = collate([images[int(number)] for number in numbers])
        denoise = denoiser.denoise(batch)
        bounds.append(variational_bound(denoise, denoiser.scheduler, batch["image"], generator, timesteps))
    of = len(denoiser.scheduler.alphas_cumprod)
    return summary(bounds, 1 + len(strata(of, timesteps)), of)


def _samples(
    seen: Seen, denoiser: Denoiser, sets: EvalSplits, judges: Judges, setting: SamplingConfig
) -> dict[str, Any]:
    figures: dict[str, Any] = {f"samples/{name}": value for name, value in asdict(setting).items()}
    figures["samples/number"] = seen.n
    figures["samples/guidance_scale"] = setting.guidance_scale if denoiser.uses_guidance else 1.0
    if setting.scheduler is None:
        del figures["samples/scheduler"]
    real = _images(sets[sets.split], KEPT)
    figures |= {f"samples/{name}": value for name, value in color_error(seen.images, real).items()}
    if seen.labels is not None and seen.predicted is not None and judges.classifier is not None:
        by_class = share_right_per_class(seen.predicted, seen.labels, len(denoiser.classes))
        figures["samples/class_consistency"] = share_right(seen.predicted, seen.labels)
        figures["samples/class_consistency_per_class"] = dict(zip(denoiser.classes, by_class, strict=True))
        figures["samples/judge_accuracy_on_real"] = judges.classifier.accuracy(sets.val)
    return figures


def _distances(features: Tensor, network: FeatureNetwork, real: Reference) -> list[Figure]:
    return compare(network.frechet, network.kernel, network.name, real.features, real.gaussian, features, real.name)


def _grid(seen: Seen, classes: Sequence[str]) -> Image.Image:
    """A row for each of the first classes, or the first samples in a square."""
    if seen.labels is None:
        return grid(seen.images[: GRID_COLUMNS**2])
    labels = seen.labels[: len(seen.images)]
    places = [torch.nonzero(labels == index)[:, 0] for index in range(min(GRID_ROWS, len(classes)))]
    rows = [(name, found) for name, found in zip(classes, places, strict=False) if len(found)]
    across = min(GRID_COLUMNS, min(len(found) for _, found in rows))
    chosen = torch.cat([found[:across] for _, found in rows])
    return grid(seen.images[chosen], rows=[name for name, _ in rows])


def _neighbours(
    seen: Seen, denoiser: Denoiser, judges: Judges, references: References, k: int, output: Path
) -> dict[str, Any]:
    """Copies in the first network's features and in pixels; writes neighbours.png."""
    sets = references.sets
    k = min(k, len(sets.train))
    unseen = _images(sets.val, KEPT)
    found = []
    for network, features in zip(judges.networks[:1], seen.features, strict=False):
        parts = references.of(network, "train").features.split(4096)
        found.append(find_copies(network.name, features[: len(seen.images)], network(unseen), parts, k))
    training = (pixels_as_points(batch["image"]) for batch in batches(sets.train, "neighbours in pixels"))
    found.append(find_copies("pixels", pixels_as_points(seen.images), pixels_as_points(unseen), training, k))
    shown = min(SHOWN, len(seen.images))
    names = ["" for _ in range(shown)]
    if seen.labels is not None:
        names = [denoiser.classes[int(label)] for label in seen.labels[:shown]]
    neighbours_image(seen.images[:shown], names, sets.train, found).save(output / "neighbours.png")
    figures: dict[str, Any] = {f"neighbours/memorised_{copies.space}": copies.memorised for copies in found}
    figures |= {"neighbours/memorised_by_chance": QUANTILE, "neighbours/samples": len(seen.images)}
    figures |= {"neighbours/unseen_images": len(unseen), "neighbours/training_images": len(sets.train)}
    figures["neighbours/nearest"] = [
        {
            "sample": row,
            "space": copies.space,
            "names": [sets.train.sample_name(int(index)) for index in copies.samples.indices[row]],
            "distances": copies.samples.distances[row].tolist(),
        }
        for copies in found
        for row in range(shown)
    ]
    return figures


def _sweep(
    denoiser: Denoiser,
    judges: Judges,
    references: References,
    config: JudgingConfig,
    setting: SamplingConfig,
    n: int,
    output: Path,
) -> dict[str, Any]:
    """The table of settings, in the first network's features; writes sweep.json, sweep.csv and sweep.md."""
    asked = config.sweep or SweepConfig()
    n = n or SWEEP_SAMPLES
    network = judges.networks[0] if judges.networks else None

    found = sweep(
        lambda count, how: together(denoiser.draw(count, how)),
        asked.steps or (setting.steps,),
        asked.scheduler or ("ddim",),
        asked.guidance or (setting.guidance_scale if denoiser.uses_guidance else 1.0,),
        n,
        setting.seed,
        network,
        None if network is None else references.of(network, config.reference),
        judges.classifier,
    )
    found.write(output)
    return found.figures()


def _images(images: ImageDataset, count: int) -> Tensor:
    """At most `count` evenly spaced images, uint8 (K, 3, H, W)."""
    return torch.stack([images[number]["image"] for number in evenly_spaced_indices(len(images), count)])
