"""Layer-wise representation similarity of networks.

Linear CKA (Kornblith et al. 2019; `cka`) between every pair of layers of two runs on the same validation images. A
denoiser sees them noised at each timestep, with the same noise in every network; a segmenter sees them clean. Maps are
averaged over the cells of a common grid, and each cell of each image is an example. The baseline is the similarity of
each network with a randomly initialized one of the same config: layers at the same depth are similar before training.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from unetdiff.config.training import TrainingConfig
from unetdiff.config.validation.checks import require_at_least
from unetdiff.console import progress_bar
from unetdiff.data.base import ImageDataset
from unetdiff.data.sampling import EvalSampler, evenly_spaced_indices
from unetdiff.errors import UserError
from unetdiff.experiments.cka import CKA, MIN_EXAMPLES, grid_examples
from unetdiff.experiments.features import Features, NoiseLevel, open_features, parse_noise_levels
from unetdiff.experiments.linear_probes import groups_by_size
from unetdiff.experiments.result_cache import cached_result
from unetdiff.experiments.run_inputs import finished_runs, labeled_images, refuse_overrides
from unetdiff.experiments.similarity_report import SimilarityResults, similarity_record
from unetdiff.files.records import dump_yaml
from unetdiff.models.weights_files import fingerprint
from unetdiff.reports.record import Record
from unetdiff.reports.runs import Run
from unetdiff.training.runtime import build_accelerator, facts

TIMESTEPS = ("clean", "50", "250", "500", "750")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `unetdiff experiment similarity`."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="two or more finished runs on one dataset")
    parser.add_argument("--timesteps", nargs="+", default=list(TIMESTEPS), metavar="T",
                        help="noise levels for denoisers: timesteps, or clean")  # fmt: skip
    parser.add_argument("--num_val_images", type=int, default=480, help="maximum number of validation images")
    parser.add_argument("--batch_size", type=int, default=32, help="images per batch of the CKA estimate")
    parser.add_argument("--grid_size", type=int, default=4, help="maps are averaged to grid_size x grid_size cells")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise and random weights")


def run(args: argparse.Namespace, overrides: Sequence[str], output: Path, command: str) -> Record:
    """Compare every pair of runs; measured results are cached."""
    start = time.monotonic()
    refuse_overrides(overrides)
    for option in ("num_val_images", "batch_size", "grid_size"):
        require_at_least(f"--{option}", getattr(args, option), 1)
    levels = parse_noise_levels(args.timesteps)
    runs = finished_runs(args.runs)
    accelerator = build_accelerator(TrainingConfig(mixed_precision="no"))
    settings = {k: v for k, v in vars(args).items() if k not in ("runs", "output")} | {"timesteps": levels}
    networks = [[one.name, fingerprint(one.model / "unet"), one.config["data"]] for one in runs if one.model]
    result = cached_result(
        output / "similarity.json",
        settings | {"networks": networks},
        lambda: _measure(runs, levels, args, accelerator.device),
    )
    results = SimilarityResults(**result)
    minutes = (time.monotonic() - start) / 60
    configs = {one.name: dump_yaml(one.config) for one in runs}
    return similarity_record(
        results,
        args,
        command=command,
        dataset_name=runs[0].data_name,
        configs=configs,
        machine=facts(accelerator),
        minutes=minutes,
    )


def _measure(
    runs: Sequence[Run], levels: list[NoiseLevel], args: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """CKA of every pair of layers of all networks, trained and random, at every noise level."""
    datasets = [labeled_images(one, runs[0], "val") for one in runs]
    trained = [open_features(one, val, levels, args.seed, device) for one, val in zip(runs, datasets, strict=True)]
    random = [one.with_random_weights(f"{one.name}, random weights", args.seed) for one in trained]
    if all(one.diffusion is None for one in trained):
        levels = [None]
    indices, batch_size = _batches(len(datasets[0]), args)
    cka = {level: CKA() for level in levels}
    blocks: list[list[str]] = []
    sampler = EvalSampler(len(indices), batch_size)
    for positions in progress_bar(sampler, desc=f"{len(runs)} networks", unit="batch"):
        for level in levels:
            networks = zip(chain(trained, random), chain(datasets, datasets), strict=True)
            layers = [_examples(f, d, indices, positions, level, args.grid_size) for f, d in networks]
            blocks = [list(one) for one in layers]
            cka[level].update([examples for one in layers for examples in one.values()])
    return {
        "names": [one.name for one in trained],
        "noised": [one.diffusion is not None for one in trained],
        "blocks": blocks[: len(runs)],
        "noise_levels": levels,
        "matrices": [cka[level].compute().tolist() for level in levels],
        "num_images": len(indices),
        "batch_size": batch_size,
    }


def _batches(length: int, args: argparse.Namespace) -> tuple[list[int], int]:
    """Evenly spaced image indices in full batches, which have equal weight in the mean; and the batch size."""
    count = min(length, args.num_val_images)
    batch_size = min(args.batch_size, count)
    num_examples = batch_size * args.grid_size**2
    if num_examples < MIN_EXAMPLES:
        raise UserError(
            f"--batch_size={batch_size}: batch_size * grid_size² must be at least {MIN_EXAMPLES} (got {num_examples}). "
            "Increase --batch_size or --grid_size."
        )
    return evenly_spaced_indices(length, count // batch_size * batch_size), batch_size


def _examples(
    features: Features,
    images: ImageDataset,
    indices: list[int],
    positions: list[int],
    level: NoiseLevel,
    grid_size: int,
) -> dict[str, torch.Tensor]:
    """Every layer's examples (images grid_size^2, C) of some images, in the order of `positions`."""
    if level not in features.noise_levels:
        level = features.noise_levels[0]
    cells: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for group in groups_by_size(images, indices, positions):
        for block, maps in features(group.images, group.names, level).items():
            per_image = grid_examples(maps, grid_size).chunk(len(group.positions))
            cells.setdefault(block, []).extend(zip(group.positions, per_image, strict=True))
    return {block: torch.cat([x for _, x in sorted(pairs, key=lambda pair: pair[0])]) for block, pairs in cells.items()}
