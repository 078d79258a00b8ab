"""Are two networks alike inside, layer by layer?

Linear CKA (Kornblith et al. 2019; `cka`) of every layer of one run with every layer of another, on the same
validation images; a denoiser sees them noised at each timestep, with the same noise in every network, a segmenter
clean. A layer's map is averaged over the cells of a common grid, and each cell of each image is an example. Beside
it the floor: the same layers against a network of the same config with random weights, since layers of one place in a
network are alike before anything is learned.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from unetdiff.config.validation.checks import require_at_least
from unetdiff.data.base import ImageDataset
from unetdiff.data.sampling import EvalSampler, evenly_spaced_indices
from unetdiff.errors import config_error
from unetdiff.experiments.cka import CKA, FEWEST, examples
from unetdiff.experiments.features import Features, Moment, moments, open_features
from unetdiff.experiments.probing import groups
from unetdiff.experiments.result_cache import kept
from unetdiff.experiments.run_inputs import given_runs, labelled, no_overrides
from unetdiff.experiments.similarity_report import Compared, similarity_record
from unetdiff.models.loading import fingerprint
from unetdiff.reports.record import Record
from unetdiff.reports.runs import Run
from unetdiff.training.config import TrainingConfig
from unetdiff.training.runtime import build_accelerator, facts

TIMESTEPS = ("clean", "50", "250", "500", "750")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `unetdiff experiment similarity` takes."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="two or more finished runs of one set")
    parser.add_argument("--timesteps", nargs="+", default=list(TIMESTEPS), metavar="T",
                        help="noise in a denoiser's images: timesteps, or clean")  # fmt: skip
    parser.add_argument("--images", type=int, default=480, help="validation images, at most")
    parser.add_argument("--batch_size", type=int, default=32, help="images that are compared with each other at once")
    parser.add_argument("--grid", type=int, default=4, help="cells a side that each map is averaged to")
    parser.add_argument("--seed", type=int, default=0, help="of noise and random weights")


def run(given: argparse.Namespace, overrides: Sequence[str], output: Path, command: str) -> Record:
    """Compare every two of the runs; what was measured before is kept."""
    start = time.monotonic()
    no_overrides(overrides)
    for option in ("images", "batch_size", "grid"):
        require_at_least(f"--{option}", getattr(given, option), 1)
    asked = moments(given.timesteps)
    runs = given_runs(given.runs)
    accelerator = build_accelerator(TrainingConfig(mixed_precision="no"))
    common = {k: v for k, v in vars(given).items() if k not in ("runs", "output")} | {"timesteps": asked}
    networks = [[one.name, fingerprint(one.model / "unet"), one.config["data"]] for one in runs if one.model]
    result = kept(
        output / "similarity.json",
        common | {"networks": networks},
        lambda: _measure(runs, asked, given, accelerator.device),
    )
    compared = Compared(**result)
    minutes = (time.monotonic() - start) / 60
    configs = {one.name: (one.path / "config.yaml").read_text() for one in runs}
    return similarity_record(compared, given, runs[0].data_name, command, configs, facts(accelerator), minutes)


def _measure(
    runs: Sequence[Run], asked: list[Moment], given: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """CKA of every two layers of all networks, trained and random, at every moment."""
    sets = [labelled(one, runs[0], "val") for one in runs]
    trained = [open_features(one, val, asked, given.seed, device) for one, val in zip(runs, sets, strict=True)]
    fresh = [one.with_random_weights(f"{one.name}, random weights", given.seed) for one in trained]
    noised = any(one.diffusion is not None for one in trained)
    at = asked if noised else [None]
    chosen, batch_size = _chosen(len(sets[0]), given)
    tables = {moment: CKA() for moment in at}
    blocks: list[list[str]] = []
    order = EvalSampler(len(chosen), batch_size)
    for places in tqdm(order, desc=f"{len(runs)} networks", unit="batch", disable=None):
        for moment in at:
            maps = [_examples(f, s, chosen, places, moment, given.grid)
                    for f, s in zip(chain(trained, fresh), chain(sets, sets), strict=True)]  # fmt: skip
            blocks = [list(one) for one in maps]
            tables[moment].update([layer for one in maps for layer in one.values()])
    return {
        "names": [one.name for one in trained],
        "noised": [one.diffusion is not None for one in trained],
        "blocks": blocks[: len(runs)],
        "moments": at,
        "tables": [tables[moment].compute().tolist() for moment in at],
        "images": len(chosen),
        "batch_size": batch_size,
    }


def _chosen(length: int, given: argparse.Namespace) -> tuple[list[int], int]:
    """Evenly spread images, in whole batches: every batch counts alike in the mean."""
    count = min(length, given.images)
    batch_size = min(given.batch_size, count)
    if batch_size * given.grid**2 < FEWEST:
        constraint = f"at least {-(-FEWEST // given.grid**2)} with --grid={given.grid}"
        raise config_error("--batch_size", batch_size, constraint, f"CKA needs {FEWEST} examples per batch.")
    return evenly_spaced_indices(length, count // batch_size * batch_size), batch_size


def _examples(
    features: Features, images: ImageDataset, chosen: list[int], places: list[int], moment: Moment, grid: int
) -> dict[str, torch.Tensor]:
    """Every layer's examples (images grid^2, C) of some images, in the order of `places`."""
    found: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for group in groups(images, chosen, places):
        seen = moment if moment in features.moments else features.moments[0]
        for block, maps in features(group.images, group.names, seen).items():
            cells = examples(maps, grid).chunk(len(group.places))
            found.setdefault(block, []).extend(zip(group.places, cells, strict=True))
    return {block: torch.cat([cell for _, cell in sorted(cells, key=lambda c: c[0])]) for block, cells in found.items()}
