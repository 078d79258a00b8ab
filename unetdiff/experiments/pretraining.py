"""Label efficiency of denoising pre-training (Brempong et al. 2022, "Denoising Pretraining for Semantic Segmentation").

A denoiser is trained on all training images without labels. Segmenters are then trained on a fraction of the labels,
for the same number of optimizer steps each: from random weights, from the denoiser (`training.init_from`, at the
timestep that linear probes of its maps find best) and, with `--encoder_config`, from a pretrained ImageNet encoder. The
paper's denoiser is trained at one noise level, and its best variant pre-trains only the decoder on top of an ImageNet
encoder; here the whole network is pre-trained at all noise levels, as a generative model.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from unetdiff.config.quickstart import STEPS as QUICKSTART_STEPS
from unetdiff.config.quickstart import quickstart_configs
from unetdiff.config.schema import RunConfig
from unetdiff.config.validation.checks import require_at_least
from unetdiff.config.validation.files import check_files
from unetdiff.config.validation.run import validate
from unetdiff.data.build import build_dataset
from unetdiff.data.capabilities import WITH_LABELS
from unetdiff.data.subset import subset_length
from unetdiff.errors import config_error
from unetdiff.experiments.gallery import mask_gallery
from unetdiff.experiments.linear_probes import ProbeTraining
from unetdiff.experiments.pretraining_report import pretraining_record
from unetdiff.experiments.runs import (
    ALL_TRAINED,
    base_config,
    best_metric,
    num_train_steps,
    seed_list,
    train_all,
    train_run,
    variant,
    with_last_weights,
    with_shared_backbone,
)
from unetdiff.experiments.start_timestep import probe_timesteps
from unetdiff.reports.record import Record
from unetdiff.reports.runs import Run

RANDOM, DENOISER, ENCODER = "random init", "denoiser init", "ImageNet encoder"
CLASS_DENOISER = "class denoiser init"
CONDITIONS = {DENOISER: "none", CLASS_DENOISER: "class"}
"""`diffusion.condition` of the denoiser of an initialization."""
TIMESTEPS = (0, 50, 150, 300)
"""Default timesteps that probes choose from."""
LABEL_FRACTIONS = (0.01, 0.05, 0.2, 1.0)
TRAIN_STEPS = 200
"""Default optimizer steps of each segmenter without --segmenter_train_steps and CONFIG."""
FROM_SCRATCH: dict[str, Any] = {"model.encoder.weights": None, "training.init_from": None, **ALL_TRAINED}
"""Config keys for a network without pretrained weights."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `unetdiff experiment pretraining`."""
    parser.add_argument(
        "config", nargs="?", type=Path, metavar="CONFIG", help="YAML of any task (default: the quickstart's)"
    )
    parser.add_argument(
        "--label_fractions",
        nargs="+",
        type=float,
        default=list(LABEL_FRACTIONS),
        help="fractions of the training images whose labels are used",
    )
    parser.add_argument("--num_seeds", type=int, default=3, help="segmenters per initialization and label fraction")
    parser.add_argument(
        "--segmenter_train_steps",
        type=int,
        help=f"optimizer steps of each segmenter (default: CONFIG's, or {TRAIN_STEPS})",
    )
    parser.add_argument(
        "--num_validations",
        type=int,
        default=1,
        help="validations of each segmenter, evenly spaced; the best one counts (1: the last)",
    )
    parser.add_argument(
        "--denoiser_train_steps",
        type=int,
        help=f"optimizer steps of the denoiser (default: CONFIG's, or {QUICKSTART_STEPS['diffusion']})",
    )
    parser.add_argument(
        "--encoder_config",
        type=Path,
        metavar="CONFIG",
        help="segmentation YAML with a pretrained encoder, as a third initialization",
    )
    parser.add_argument(
        "--encoder_weights", metavar="FILE", help="its model.encoder.weights (default: its own), e.g. imagenet"
    )
    parser.add_argument(
        "--timesteps",
        nargs="+",
        type=int,
        default=list(TIMESTEPS),
        help="timesteps that probes choose from for the segmenters that start from a denoiser; one: no probe",
    )
    parser.add_argument("--probe_train_steps", type=int, default=200, help="optimizer steps of the probes")
    parser.add_argument(
        "--layer_decay",
        type=float,
        default=1.0,
        help="training.optimizer.layer_decay of those segmenters: a lower learning rate for the denoiser's weights",
    )
    parser.add_argument(
        "--class_denoiser", action="store_true", help="a class-conditional denoiser as a further initialization"
    )
    parser.add_argument("--num_rows", type=int, default=6, help="validation images in the gallery")


class Plan:
    """The configs of all runs, validated before any training.

    Attributes:
        denoisers: configs of the pre-training, by initialization.
        segmenters: by initialization, label fraction and seed.
        inits: names of the initializations.
        fractions: label fractions, in ascending order.
        seeds: seeds of the segmenters.
        num_images: number of training images.
    """

    def __init__(self, args: argparse.Namespace, overrides: Sequence[str], output: Path) -> None:
        self.fractions = sorted(set(args.label_fractions))
        if not self.fractions or not 0 < self.fractions[0] <= self.fractions[-1] <= 1:
            raise config_error("--label_fractions", args.label_fractions, "in (0, 1]")
        default = quickstart_configs(output)["segmentation"]
        default.training.steps = TRAIN_STEPS
        base = with_shared_backbone(base_config(args.config, overrides, default))
        steps = args.segmenter_train_steps
        if steps is None:
            steps = num_train_steps(replace(base, task="segmentation"))
        require_at_least("--num_validations", args.num_validations, 1)
        interval = math.ceil(steps / args.num_validations)
        denoiser_steps = args.denoiser_train_steps
        if denoiser_steps is None:
            denoiser_steps = QUICKSTART_STEPS["diffusion"] if args.config is None else steps
        self.denoisers = {
            name: variant(
                base,
                "diffusion",
                output / ("pretrained" if name == DENOISER else "pretrained-class"),
                {
                    **FROM_SCRATCH,
                    "diffusion.condition": condition,
                    "data.train_fraction": 1.0,
                    **_train_length(denoiser_steps),
                },
            )
            for name, condition in CONDITIONS.items()
            if name == DENOISER or args.class_denoiser
        }
        check_files(self.denoisers[DENOISER])
        if args.class_denoiser and base.data.name not in WITH_LABELS:
            constraint = f"left out with data.name={base.data.name}, whose classes are in the masks"
            raise config_error("--class_denoiser", True, constraint)
        count = base.diffusion.noise.num_train_timesteps
        if any(not 0 <= t < count for t in args.timesteps):
            raise config_error("--timesteps", args.timesteps, f"in 0..{count - 1}")
        self.timesteps = sorted(set(args.timesteps))
        self.seeds = seed_list(args.num_seeds, base.training.seed)
        inits: dict[str, tuple[RunConfig, dict[str, Any]]] = {
            RANDOM: (base, FROM_SCRATCH),
        }
        for name, denoiser in self.denoisers.items():
            start = {
                "training.init_from": denoiser.training.output_dir,
                "segmentation.timestep": self.timesteps[0],
                "training.optimizer.layer_decay": args.layer_decay,
            }
            inits[name] = base, {**FROM_SCRATCH, **start}
        if args.encoder_config is not None:
            inits[ENCODER] = self._pretrained_encoder(base, args.encoder_config, args.encoder_weights)
        elif args.encoder_weights is not None:
            raise config_error("--encoder_weights", args.encoder_weights, "set with --encoder_config")
        self.segmenters: dict[tuple[str, float, int], RunConfig] = {}
        for name, (config, changes) in inits.items():
            for fraction in self.fractions:
                for seed in self.seeds:
                    run_folder = output / name.replace(" ", "-").lower() / f"fraction-{fraction:g}" / f"seed-{seed}"
                    subset = {
                        "data.train_fraction": fraction,
                        "data.train_fraction_seed": seed,
                        "training.seed": seed,
                    }
                    self.segmenters[name, fraction, seed] = variant(
                        config, "segmentation", run_folder, {**_train_length(steps, interval), **changes, **subset}
                    )
        if args.num_validations > steps:
            constraint = f"at most the steps of a segmenter, {steps}"
            raise config_error("--num_validations", args.num_validations, constraint)
        self.inits = list(inits)
        self.num_images = len(build_dataset(replace(base.data, train_fraction=1.0), "train", segmentation=True))

    def start_at(self, init: str, timestep: int) -> None:
        """Set the timestep of the segmenters of an initialization."""
        for (name, _, _), config in self.segmenters.items():
            if name == init:
                config.segmentation.timestep = timestep
                validate(config)

    @staticmethod
    def _pretrained_encoder(base: RunConfig, path: Path, weights: str | None) -> tuple[RunConfig, dict[str, Any]]:
        """The network and optimizer settings of another config, with the data and batch size of `base`."""
        own = base_config(path, [], base)
        if weights is None and own.model.encoder.weights is None:
            raise config_error(
                "model.encoder.weights", None, f"set in {path}", "Give --encoder_weights imagenet or a file."
            )
        training = replace(
            base.training,
            optimizer=own.training.optimizer,
            frozen_levels=own.training.frozen_levels,
            freeze_encoder=own.training.freeze_encoder,
            ema=own.training.ema,
        )
        config = replace(base, model=own.model, training=training)
        changes = {} if weights is None else {"model.encoder.weights": weights}
        check_files(variant(config, "segmentation", Path(base.training.output_dir), {**_train_length(1), **changes}))
        return config, changes


def _train_length(steps: int, interval: int | None = None) -> dict[str, Any]:
    """Config keys for a number of optimizer steps, with a validation every so many of them (None: one at the end)."""
    return {"training.steps": steps, "training.epochs": None, "training.validate_every": interval or steps}


def run(args: argparse.Namespace, overrides: Sequence[str], output: Path, command: str) -> Record:
    """Pre-train, train the segmenters, and report mIoU by initialization and label fraction."""
    start = time.perf_counter()
    require_at_least("--num_rows", args.num_rows, 1)
    plan = Plan(args, overrides, output)
    denoisers = {name: train_run(name, config, command) for name, config in plan.denoisers.items()}
    fewest, seed = plan.fractions[0], plan.seeds[0]
    probed: dict[str, dict[int, float]] = {}
    for name, denoiser in denoisers.items() if len(plan.timesteps) > 1 else ():
        training = ProbeTraining(steps=args.probe_train_steps)
        file = Path(plan.denoisers[name].training.output_dir).with_suffix(".probes.json")
        probed[name] = probe_timesteps(denoiser, plan.timesteps, plan.segmenters[name, fewest, seed], training, file)
        plan.start_at(name, max(probed[name], key=lambda t: probed[name][t]))
    names = {key: _run_name(*key) for key in plan.segmenters}
    trained = train_all({names[key]: config for key, config in plan.segmenters.items()}, command)
    runs = {key: trained[name] for key, name in names.items()}
    miou = {
        init: {
            fraction: [best_metric(runs[init, fraction, seed], "segmentation/mean_iou") for seed in plan.seeds]
            for fraction in plan.fractions
        }
        for init in plan.inits
    }

    def shown(run: Run) -> Run:
        """With the weights that its mIoU is of."""
        return run if args.num_validations > 1 else with_last_weights(run)

    counts = {fraction: subset_length(plan.num_images, fraction) for fraction in plan.fractions}
    gallery = mask_gallery(
        f"Masks of segmenters trained with {counts[fewest]:,} labeled image{'s' * (counts[fewest] > 1)}",
        {init: shown(runs[init, fewest, seed]) for init in plan.inits},
        output,
        args.num_rows,
        seed,
    )
    encoder = None if ENCODER not in plan.inits else plan.segmenters[ENCODER, fewest, seed].model.encoder.name
    return pretraining_record(
        miou,
        counts,
        gallery,
        denoisers | trained,
        reference=RANDOM,
        num_images=plan.num_images,
        encoder=encoder,
        seeds=plan.seeds,
        probed=probed,
        command=command,
        minutes=(time.perf_counter() - start) / 60,
    )


def _run_name(init: str, fraction: float, seed: int) -> str:
    return f"{init}, {100 * fraction:g} % of the labels, seed {seed}"
