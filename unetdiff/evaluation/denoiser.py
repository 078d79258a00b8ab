"""Evaluation of a denoiser: distances, class consistency and memorization of samples, likelihood, sampler sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from unetdiff.console import progress_bar
from unetdiff.data.base import ImageDataset, collate
from unetdiff.data.sampling import evenly_spaced_indices
from unetdiff.diffusion.images import color_error, grid
from unetdiff.diffusion.processes.ddpm import DDPM
from unetdiff.diffusion.processes.load import process_of
from unetdiff.diffusion.scheduler_names import SCHEDULERS, check_name
from unetdiff.errors import UserError
from unetdiff.evaluation.classifier import label_accuracy, num_images_used, per_class_accuracy
from unetdiff.evaluation.config import EvaluationConfig, SweepConfig
from unetdiff.evaluation.distances import Distance, compute_distances
from unetdiff.evaluation.feature_extractors import (
    EvaluationNetworks,
    ReferenceFeatures,
    SampleFeatures,
    extract_features,
    load_evaluation_networks,
)
from unetdiff.evaluation.features import FeatureExtractor
from unetdiff.evaluation.likelihood import VariationalBound, strata, summarize, variational_bound
from unetdiff.evaluation.memorization import QUANTILE, measure_memorization, neighbors_image, pixel_features
from unetdiff.evaluation.reference import Reference, image_batches
from unetdiff.evaluation.sweep import sweep
from unetdiff.evaluation.types import Denoiser, EvalSplits, SamplingConfig, concat_batches
from unetdiff.files.images import save_image
from unetdiff.files.writing import make_folder

MAX_IMAGES = 500  # samples and real images held in memory for color statistics and memorization
GRID_ROWS, GRID_COLUMNS = 12, 8
NUM_SHOWN = 8  # samples in nearest_neighbors.png
LIKELIHOOD_BATCH = 16
CLASSES_WITHOUT_LABELS = 10  # a denoiser without classes draws as many samples as one with ten
SWEEP_SAMPLES = 300  # for each setting, if no other number of samples is configured


def evaluate_denoiser(
    denoiser: Denoiser,
    splits: EvalSplits,
    config: EvaluationConfig,
    setting: SamplingConfig,
    output: Path,
    cache: Path,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Metrics of a denoiser; writes samples.png, nearest_neighbors.png and sweep.* to `output`.

    Held in memory are the features of samples and real images, a few hundred images of each, and in a sweep the
    samples of one setting.

    Args:
        denoiser: the denoiser.
        splits: the real images.
        config: what to evaluate.
        setting: the sampler's settings.
        output: folder of the written files.
        cache: folder for the classifier and the features of the real images.
        device: of the denoiser and the feature networks.

    Raises:
        UserError: classes other than the dataset's, an unknown feature network, unreadable weights, a sweep over
            settings that the denoiser does not support, the likelihood of a denoiser of latents, or of one that is
            not of the ddpm process.
    """
    check_sweep(denoiser, config)
    if config.num_likelihood_images and denoiser.denoise is None:
        raise UserError(
            f"num_likelihood_images={config.num_likelihood_images}: must be 0 for a model of latents, whose likelihood "
            "is not that of images. Omit it."
        )
    process = process_of(denoiser.scheduler)
    if config.num_likelihood_images and not isinstance(process, DDPM):
        raise UserError(
            f"num_likelihood_images={config.num_likelihood_images}: must be 0 for a model trained with "
            f"diffusion.noise.process={process.name}: the variational bound is that of ddpm's chain. Omit it."
        )
    make_folder(output)
    metrics: dict[str, Any] = {}
    n = config.samples_per_class * (len(denoiser.classes) or CLASSES_WITHOUT_LABELS)
    n_distances = n if config.num_distance_samples is None else config.num_distance_samples
    if max(n, n_distances) or config.sweep is not None:
        networks = load_evaluation_networks(denoiser, splits, config, cache, device)
        references = ReferenceFeatures(splits, cache / "reference")
        if total := max(n, n_distances):
            samples = extract_features(denoiser.sample(total, setting), networks, MAX_IMAGES)
            metrics |= _samples(samples, denoiser, splits, networks, setting)
            metrics["samples/distances"] = [
                asdict(distance)
                for network, features in zip(networks.extractors, samples.features, strict=True)
                for distance in _distances(features[:n_distances], network, references.get(network, config.reference))
            ]
            save_image(_grid(samples, denoiser.classes), output / "samples.png")
            if config.num_neighbors:
                metrics |= _memorization(samples, denoiser, networks, references, config.num_neighbors, output)
        if config.sweep is not None:
            metrics["sweep"] = _sweep(denoiser, networks, references, config, setting, n_distances, output)
    if config.num_likelihood_images:
        metrics |= likelihood(
            denoiser, splits, config.num_likelihood_images, config.num_likelihood_timesteps, setting.seed, device
        )
    return metrics


def check_sweep(denoiser: Denoiser, config: EvaluationConfig) -> None:
    """Raise UserError for settings that the denoiser cannot be sampled with."""
    settings, process = config.sweep or SweepConfig(), process_of(denoiser.scheduler)
    num_timesteps = process.num_timesteps
    for name in settings.scheduler:
        check_name(process.name, name, "sweep.scheduler")
    if settings.num_inference_steps and max(settings.num_inference_steps) > num_timesteps:
        raise UserError(
            f"sweep.num_inference_steps={max(settings.num_inference_steps)}: must be at most the {num_timesteps} "
            "timesteps of the model."
        )
    if not denoiser.uses_guidance and set(settings.guidance_scale) - {1.0}:
        raise UserError(
            f"sweep.guidance_scale={settings.guidance_scale[0]:g}: must be 1 for an unconditional model. Omit it."
        )


def likelihood(
    denoiser: Denoiser, splits: EvalSplits, count: int, timesteps: int, seed: int, device: torch.device | str
) -> dict[str, Any]:
    """Bits per dimension of evenly spaced images of the evaluated split; see `unetdiff.evaluation.likelihood`."""
    assert denoiser.denoise is not None
    generator = torch.Generator(device).manual_seed(seed)
    images = splits[splits.split]
    bounds: list[VariationalBound] = []
    batches = torch.tensor(evenly_spaced_indices(len(images), count)).split(LIKELIHOOD_BATCH)
    for indices in progress_bar(batches, desc="likelihood", unit="batch"):
        batch = collate([images[int(index)] for index in indices])
        denoise = denoiser.denoise(batch)
        bounds.append(variational_bound(denoise, denoiser.scheduler, batch["image"], generator, timesteps))
    num_timesteps = process_of(denoiser.scheduler).num_timesteps
    summary = summarize(bounds, 1 + len(strata(num_timesteps, timesteps)), num_timesteps)
    return {f"likelihood/{name}": value for name, value in summary.items()}


def _samples(
    samples: SampleFeatures,
    denoiser: Denoiser,
    splits: EvalSplits,
    networks: EvaluationNetworks,
    setting: SamplingConfig,
) -> dict[str, Any]:
    metrics: dict[str, Any] = {f"samples/{name}": value for name, value in asdict(setting).items()}
    metrics["samples/num_images"] = samples.n
    metrics["samples/guidance_scale"] = setting.guidance_scale if denoiser.uses_guidance else 1.0
    if setting.scheduler is None:
        del metrics["samples/scheduler"]
    real = _images(splits[splits.split], MAX_IMAGES)
    metrics |= {f"samples/{name}": value for name, value in color_error(samples.images, real).items()}
    if samples.labels is not None and samples.predictions is not None and networks.classifier is not None:
        per_class = per_class_accuracy(samples.predictions, samples.labels, len(denoiser.classes))
        metrics["samples/class_consistency"] = label_accuracy(samples.predictions, samples.labels)
        metrics["samples/class_consistency_per_class"] = dict(zip(denoiser.classes, per_class, strict=True))
        metrics["samples/classifier_accuracy_on_real"] = networks.classifier.accuracy(splits.val)
        metrics["samples/classifier_num_real_images"] = num_images_used(splits.val)
    return metrics


def _distances(features: Tensor, network: FeatureExtractor, real: Reference) -> list[Distance]:
    names = network.frechet_name, network.kernel_name, network.name
    return compute_distances(*names, real.features, real.gaussian, features, real.name)


def _grid(samples: SampleFeatures, classes: Sequence[str]) -> Image.Image:
    """A row for each of the first classes, or the first samples in a square."""
    if samples.labels is None:
        return grid(samples.images[: GRID_COLUMNS**2])
    labels = samples.labels[: len(samples.images)]
    indices = [torch.nonzero(labels == label)[:, 0] for label in range(min(GRID_ROWS, len(classes)))]
    rows = [(name, row) for name, row in zip(classes, indices, strict=False) if len(row)]
    columns = min(GRID_COLUMNS, min(len(row) for _, row in rows))
    tiles = torch.cat([row[:columns] for _, row in rows])
    return grid(samples.images[tiles], rows=[name for name, _ in rows])


def _memorization(
    samples: SampleFeatures,
    denoiser: Denoiser,
    networks: EvaluationNetworks,
    references: ReferenceFeatures,
    k: int,
    output: Path,
) -> dict[str, Any]:
    """Memorization in the features of the first network and in pixels; writes nearest_neighbors.png."""
    splits = references.splits
    k = min(k, len(splits.train))
    held_out = _images(splits.val, MAX_IMAGES)
    spaces = []
    for network, features in zip(networks.extractors[:1], samples.features, strict=False):
        training = references.get(network, "train").features.split(4096)
        spaces.append(
            measure_memorization(network.name, features[: len(samples.images)], network(held_out), training, k)
        )
    pixels = (pixel_features(batch["image"]) for batch in image_batches(splits.train, "nearest neighbors in pixels"))
    spaces.append(measure_memorization("pixels", pixel_features(samples.images), pixel_features(held_out), pixels, k))
    shown = min(NUM_SHOWN, len(samples.images))
    labels = ["" for _ in range(shown)]
    if samples.labels is not None:
        labels = [denoiser.classes[int(label)] for label in samples.labels[:shown]]
    save_image(neighbors_image(samples.images[:shown], labels, splits.train, spaces), output / "nearest_neighbors.png")
    metrics: dict[str, Any] = {f"memorization/fraction_{space.space}": space.fraction for space in spaces}
    metrics |= {"memorization/expected_fraction": QUANTILE, "memorization/num_samples": len(samples.images)}
    metrics |= {
        "memorization/num_held_out_images": len(held_out),
        "memorization/num_training_images": len(splits.train),
    }
    metrics["memorization/nearest"] = [
        {
            "sample": row,
            "space": space.space,
            "names": [splits.train.sample_name(int(index)) for index in space.samples.indices[row]],
            "distances": space.samples.distances[row].tolist(),
        }
        for space in spaces
        for row in range(shown)
    ]
    return metrics


def _sweep(
    denoiser: Denoiser,
    networks: EvaluationNetworks,
    references: ReferenceFeatures,
    config: EvaluationConfig,
    setting: SamplingConfig,
    n: int,
    output: Path,
) -> dict[str, Any]:
    """The sweep in the features of the first network; writes sweep.json, sweep.csv and sweep.md."""
    settings = config.sweep or SweepConfig()
    network = networks.extractors[0] if networks.extractors else None
    result = sweep(
        lambda count, sampling: concat_batches(denoiser.sample(count, sampling)),
        settings.num_inference_steps or (setting.num_inference_steps,),
        settings.scheduler or (next(iter(SCHEDULERS[process_of(denoiser.scheduler).name])),),
        settings.guidance_scale or (setting.guidance_scale if denoiser.uses_guidance else 1.0,),
        n or SWEEP_SAMPLES,
        setting.seed,
        network,
        None if network is None else references.get(network, config.reference),
        networks.classifier,
    )
    result.write(output)
    return result.metrics()


def _images(images: ImageDataset, count: int) -> Tensor:
    """At most `count` evenly spaced images, uint8 (K, 3, H, W)."""
    return torch.stack([images[index]["image"] for index in evenly_spaced_indices(len(images), count)])
