"""Does a segmenter of few labels gain from a denoiser's start? (Brempong et al. 2022, "Denoising Pretraining for
Semantic Segmentation")

A denoiser learns from all training images without their labels. Segmenters then learn from a share of the labels, for
the same number of optimizer steps each: from a random start, from the denoiser (`training.init_from`) and, where a
config with one is given, from an ImageNet trunk. The paper's denoiser sees one level of noise, and at its best is the
decoder alone, above an ImageNet encoder; ours is the whole network and sees every level, as one that draws does.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from unetdiff.config.quickstart import STEPS as QUICK
from unetdiff.config.quickstart import quickstart_configs
from unetdiff.config.schema import RunConfig
from unetdiff.config.validation.checks import require_at_least
from unetdiff.config.validation.files import check_files
from unetdiff.data.build import build_dataset
from unetdiff.data.subset import subset_length
from unetdiff.errors import UserError, config_error
from unetdiff.experiments.label_tables import Figures, chart, findings, label_table
from unetdiff.experiments.mask_gallery import mask_gallery
from unetdiff.experiments.runs import (
    base_config,
    configs_of,
    last,
    machine_of,
    one_backbone,
    seeds_of,
    steps_of,
    train,
    train_all,
    variant,
)
from unetdiff.reports.record import Record
from unetdiff.reports.runs import Run

RANDOM, DENOISER, TRUNK = "random start", "denoiser", "ImageNet trunk"
SHARES = (0.01, 0.05, 0.2, 1.0)
STEPS = 200
"""Optimizer steps of each segmenter where neither --steps nor a CONFIG says so."""
FROM_SCRATCH: dict[str, Any] = {
    "model.encoder.weights": None,
    "training.init_from": None,
    "training.frozen_levels": 0,
    "training.freeze_encoder": 0.0,
}
"""Keys that say how an ImageNet trunk is used; without one there is nothing to spare."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The experiment's options."""
    parser.add_argument(
        "config", nargs="?", type=Path, metavar="CONFIG", help="YAML of any task; none: the quickstart's"
    )
    parser.add_argument("--shares", nargs="+", type=float, default=list(SHARES), help="shares of the labelled images")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each start and share, for a spread")
    parser.add_argument("--steps", type=int, help=f"optimizer steps of each segmenter (CONFIG's, or {STEPS})")
    noise = f"optimizer steps of the denoiser (CONFIG's, or {QUICK['diffusion']})"
    parser.add_argument("--pretraining_steps", type=int, help=noise)
    trunk = "segmentation YAML with an ImageNet trunk: a third start"
    parser.add_argument("--trunk", type=Path, metavar="CONFIG", help=trunk)
    parser.add_argument("--trunk_weights", metavar="FILE", help="its model.encoder.weights (CONFIG's, or imagenet)")
    parser.add_argument("--rows", type=int, default=6, help="validation images in the gallery")


class Plan:
    """The configs of all runs; refused before anything is trained.

    Attributes:
        denoiser: of the pre-training.
        segmenters: by start, share and seed.
    """

    def __init__(self, given: argparse.Namespace, overrides: Sequence[str], output: Path) -> None:
        self.shares = sorted(set(given.shares))
        if not self.shares or not 0 < self.shares[0] <= self.shares[-1] <= 1:
            raise UserError(f"--shares: {given.shares} are no shares of the labels; give numbers above 0, at most 1")
        default = quickstart_configs(output)["segmentation"]
        default.training.steps = STEPS
        base = one_backbone(base_config(given.config, overrides, default))
        steps = steps_of(replace(base, task="segmentation")) if given.steps is None else given.steps
        noise = given.pretraining_steps
        if noise is None:
            noise = QUICK["diffusion"] if given.config is None else steps
        whole = {"diffusion.condition": "none", "data.train_fraction": 1.0}
        folder = output / "pretrained"
        self.denoiser = variant(base, "diffusion", folder, {**FROM_SCRATCH, **whole, **_length(noise)})
        check_files(self.denoiser)
        self.seeds = seeds_of(given.seeds, base.training.seed)
        starts: dict[str, tuple[RunConfig, dict[str, Any]]] = {
            RANDOM: (base, FROM_SCRATCH),
            DENOISER: (base, {**FROM_SCRATCH, "training.init_from": str(folder)}),
        }
        if given.trunk is not None:
            starts[TRUNK] = self._trunk(base, given.trunk, given.trunk_weights)
        elif given.trunk_weights is not None:
            raise UserError(f"--trunk_weights: {given.trunk_weights!r} needs --trunk CONFIG, the network that has them")
        self.segmenters: dict[tuple[str, float, int], RunConfig] = {}
        for name, (config, changes) in starts.items():
            for share in self.shares:
                for seed in self.seeds:
                    place = output / f"from-{name.replace(' ', '-').lower()}" / f"share-{share:g}" / f"seed-{seed}"
                    of_run = {"data.train_fraction": share, "data.train_fraction_seed": seed, "training.seed": seed}
                    self.segmenters[name, share, seed] = variant(
                        config, "segmentation", place, {**_length(steps), **changes, **of_run}
                    )
        self.starts = list(starts)
        self.images = len(build_dataset(replace(base.data, train_fraction=1.0), "train", segmentation=True))

    @staticmethod
    def _trunk(base: RunConfig, path: Path, weights: str | None) -> tuple[RunConfig, dict[str, Any]]:
        """The network of another config, with its optimizer, on the same images and batches."""
        own = base_config(path, [], base)
        if weights is None and own.model.encoder.weights is None:
            constraint = f"imagenet in {path}, a config with a pretrained encoder"
            raise config_error("model.encoder.weights", None, constraint, "Give --trunk_weights imagenet.")
        training = replace(
            base.training,
            optimizer=own.training.optimizer,
            frozen_levels=own.training.frozen_levels,
            freeze_encoder=own.training.freeze_encoder,
            ema=own.training.ema,
        )
        config = replace(base, model=own.model, training=training)
        changes = {} if weights is None else {"model.encoder.weights": weights}
        check_files(variant(config, "segmentation", Path(base.training.output_dir), {**_length(1), **changes}))
        return config, changes


def _length(steps: int) -> dict[str, Any]:
    """So many steps, judged once, at the end."""
    return {"training.steps": steps, "training.epochs": None, "training.validate_every": steps}


def run(given: argparse.Namespace, overrides: Sequence[str], output: Path, command: str) -> Record:
    """Pre-train, train, and tell what a start is worth at each share of the labels."""
    began = time.perf_counter()
    require_at_least("--rows", given.rows, 1)
    plan = Plan(given, overrides, output)
    denoiser = train(DENOISER, plan.denoiser, command)
    names = {key: _words(*key) for key in plan.segmenters}
    trained = train_all({names[key]: config for key, config in plan.segmenters.items()}, command)
    runs = {key: trained[name] for key, name in names.items()}
    figures: Figures = {
        start: {
            share: [last(runs[start, share, seed], "segmentation/mean_iou") for seed in plan.seeds]
            for share in plan.shares
        }
        for start in plan.starts
    }
    counts = {share: subset_length(plan.images, share) for share in plan.shares}
    smallest = {start: runs[start, plan.shares[0], plan.seeds[0]] for start in plan.starts}
    gallery = mask_gallery(
        f"With {counts[plan.shares[0]]:,} labelled image{'s' * (counts[plan.shares[0]] > 1)}",
        smallest,
        output,
        given.rows,
        plan.seeds[0],
    )
    every = {DENOISER: denoiser, **trained}
    return Record(
        name="pretraining",
        title="Denoising pre-training",
        question="Does a segmenter of few labels gain from a network that has learnt to remove noise?",
        findings=findings(figures, counts, RANDOM),
        parts=[chart(figures, counts), label_table(figures, counts), gallery],
        method=_method(plan, denoiser, runs),
        source="Brempong et al. 2022, “Denoising Pretraining for Semantic Segmentation”",
        command=command,
        seeds=plan.seeds,
        dataset_name=denoiser.data_name,
        configs=configs_of(every),
        machine=machine_of(list(every.values())),
        minutes=(time.perf_counter() - began) / 60,
    )


def _words(start: str, share: float, seed: int) -> str:
    return f"{start}, {100 * share:g} % of the labels, seed {seed}"


def _method(plan: Plan, denoiser: Run, runs: Mapping[tuple[str, float, int], Run]) -> list[str]:
    one = next(iter(runs.values())).config["training"]
    noise = denoiser.config
    told = [
        f"The denoiser: {noise['training']['steps']} steps of {noise['training']['batch_size']} of all "
        f"{plan.images:,} training images, without labels and told nothing "
        f"({noise['diffusion']['prediction_type']}, {noise['diffusion']['weighting']} weights). It is trained once, so "
        "the spread is not that of pre-training.",
        f"Each segmenter: {one['steps']} steps of {one['batch_size']}, whatever its share of the labels, so a small "
        "share is seen more often. The warm-up is three epochs at most, so it is short for small shares, whatever the "
        "start.",
        "A seed is a start of what is fresh, an order and a share of the images; all starts of a seed have the same "
        "images. Shares are nested. Differences are taken seed by seed.",
        "mIoU is that of the last validation, on the whole validation split, not of the best one.",
        "Not as in the paper, whose denoiser sees one level of noise and at its best is the decoder alone, above an "
        "ImageNet encoder: here the whole network is pre-trained, at every level.",
        f"The denoiser cost {float(denoiser.summary['train_minutes']):.1f} minutes of training that the other starts "
        "did not have.",
    ]
    if TRUNK in plan.starts:
        config = next(config for (start, _, _), config in plan.segmenters.items() if start == TRUNK)
        told.append(
            f"The ImageNet trunk is another network ({config.model.encoder.name}) of another size, with its own "
            "optimizer settings and over a million labelled images behind it: a yardstick, not a like-for-like."
        )
    return told
