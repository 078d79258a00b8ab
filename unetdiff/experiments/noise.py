"""Does a segmenter see through noise, and does it help to tell it how much there is?

An image is noised as the diffusion head sees it, x_t = α_t x_0 + σ_t ε, and segmented at rising timesteps. Three
segmenters of one backbone are trained for it with the same steps and images: on clean images; on noisy images
without a word of the timestep; and on noisy images with the timestep told, as a denoiser is told it. The last is also
asked with the wrong answer, "t = 0": a network that does not use what it is told would not mind.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from unetdiff.config.quickstart import quickstart_configs
from unetdiff.config.reading import to_yaml
from unetdiff.config.schema import RunConfig
from unetdiff.config.validation.checks import require_at_least
from unetdiff.config.validation.files import check_files
from unetdiff.data.sampling import evenly_spaced_indices
from unetdiff.diffusion.objectives import Scheduler, alpha_sigma, build_scheduler
from unetdiff.errors import UserError
from unetdiff.evaluation.load_run import load_run, split_of
from unetdiff.evaluation.robustness import (
    CLEAN,
    NoisedImages,
    Segment,
    as_segment_function,
    check_timesteps,
    mean_iou_by_timestep,
)
from unetdiff.experiments import runs
from unetdiff.experiments.images import Album, legend
from unetdiff.models.unet import UNet
from unetdiff.reports.record import Chart, Column, Gallery, Line, Part, Record, Table, Value
from unetdiff.reports.record_text import as_text
from unetdiff.reports.runs import data_name
from unetdiff.segmentation.inference import argmax_at
from unetdiff.segmentation.palette import as_mask, colorize
from unetdiff.training import runtime as machine

SOURCE = "Ho et al. 2020, equation 4 (the noise); Brempong et al. 2022 (what a segmenter gains from denoising)"
TIMESTEPS = (0, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 999)
COLUMNS = 5  # timesteps of the table
PLAIN, NOISY, CONDITIONED = "trained on clean images", "trained on noisy images", "noisy images, told t"
WRONG = "noisy images, told t = 0"
JOINT = "joint run, told t"
NAMES = {PLAIN: "plain", NOISY: "noisy", CONDITIONED: "told"}
"""Segmenters that are trained here, and the beginnings of their folders."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("config", nargs="?", type=Path, help="YAML of a run of this backbone; none given: quickstart's")
    parser.add_argument("--steps", type=int, help="optimizer steps of each segmenter; none given: the config's")
    parser.add_argument("--seeds", type=int, default=1, help="segmenters of each kind, from as many seeds")
    parser.add_argument("--timesteps", type=int, nargs="+", default=list(TIMESTEPS), help="0: clean")
    parser.add_argument("--train_fraction", type=float, default=1.0, help="of the training images that are noised")
    parser.add_argument("--images", type=int, default=500, help="validation images that are segmented, at most")
    parser.add_argument("--rows", type=int, default=2, help="images that are shown")
    parser.add_argument("--joint", type=Path, metavar="RUN", help="a joint run, whose segmentation head is asked too")


def run(given: argparse.Namespace, overrides: Sequence[str], output: Path, command: str) -> Record:
    """Train what is missing, segment under noise, and write the images; see the module.

    Raises:
        UserError: a config that cannot be trained, a timestep that is none, or a joint run of another set or noise.
    """
    began = time.perf_counter()
    for name in ("images", "rows"):
        require_at_least(f"--{name}", getattr(given, name), 1)
    base = base_config(given.config, overrides, given.steps)
    seeds = runs.seeds_of(given.seeds, base.training.seed)
    timesteps = sorted(set(given.timesteps))
    scheduler = build_scheduler(base.diffusion)
    check_timesteps(timesteps, scheduler)
    configs = {
        (name, number): variant(base, name, seed, given.share, output / f"{NAMES[name]}-{number}")
        for name in NAMES
        for number, seed in enumerate(seeds)
    }
    check_files(base)
    images = split_of(base.data, "val", masks=True)
    noises = NoisedImages(images, scheduler, base.training.seed)
    joint = None if given.joint is None else _joint(given.joint, images.classes, scheduler)
    trained = {(name, n): runs.train(f"{name} {n}", config, command) for (name, n), config in configs.items()}
    accelerator = machine.build_accelerator(base.training)
    precision = machine.autocast_dtype(base.training.mixed_precision)
    indices = evenly_spaced_indices(len(images), given.images)

    def network(name: str, number: int) -> UNet:
        # the weights of the last step: the best ones are the best on clean images
        unet: UNet = UNet.from_pretrained(trained[name, number].path / "latest" / "unet")
        unet.to(accelerator.device)
        return unet

    found: dict[str, list[list[float]]] = {}  # by segmenter, then seed, then timestep
    shown: dict[str, Segment] = {}
    for number in range(len(seeds)):
        told = network(CONDITIONED, number)
        segmenters = {name: as_segment_function(network(name, number), False, precision) for name in (PLAIN, NOISY)}
        segmenters |= {
            CONDITIONED: as_segment_function(told, True, precision),
            WRONG: as_segment_function(told, True, precision, fixed_timestep=CLEAN),
        }
        if joint is not None and not number:
            segmenters[JOINT] = as_segment_function(joint.to(accelerator.device), True, precision)
        ignore, batch = base.segmentation.ignore_index, base.training.eval_batch_size
        for name, figures in mean_iou_by_timestep(segmenters, noises, indices, timesteps, ignore, batch).items():
            found.setdefault(name, []).append(figures)
        shown = shown or segmenters
    values = {name: [Value.of(at) for at in zip(*seeds, strict=True)] for name, seeds in found.items()}
    across = {name: Value.of([float(np.mean(seed)) for seed in seeds]) for name, seeds in found.items()}
    parts: list[Part] = [
        Chart(
            "Segmentation under noise",
            "timestep of the noise in the image (0: clean)",
            "mIoU",
            [Line(name, [float(t) for t in timesteps], line) for name, line in values.items()],
            better="higher",
            note=f"Over {len(indices)} validation images, the same noise for every line.",
        ),
        _table(values, across, timesteps),
        _gallery(shown, noises, indices[: given.rows], _some(timesteps, COLUMNS), output),
    ]
    length = base.training
    budget = f"{length.steps} steps" if length.steps is not None else f"{length.epochs:g} epochs"
    method = [
        f"Each segmenter was trained for {budget} on the same images in the same order; the third has a time "
        "embedding, the first two have none.",
        f"Of the training images of the noisy ones, a share of {given.share:g} was noised, each to a random timestep "
        f"of the {len(scheduler.alphas_cumprod)} of the schedule {base.diffusion.noise.beta_schedule}.",
        "The weights are those of the last step. Timestep 0 stands for an image without any noise.",
        "mIoU is from one confusion matrix over all images, at the masks' own size.",
    ]
    if joint is not None:
        method.append(f"The joint run is {given.joint}, trained on its own budget: its line is no fair comparison.")
    return Record(
        name="noise",
        title="Seeing through noise",
        question="How much noise does a segmenter bear, and does it help to tell it how much there is?",
        findings=findings(values, across, timesteps, scheduler),
        parts=parts,
        method=method,
        source=SOURCE,
        command=command,
        seeds=seeds,
        dataset_name=data_name(asdict(base.data)),
        configs={name: to_yaml(configs[name, 0]) for name in NAMES},
        machine=machine.facts(accelerator),
        minutes=(time.perf_counter() - began) / 60,
    )


def base_config(path: Path | None, overrides: Sequence[str], steps: int | None) -> RunConfig:
    """The config that the segmenters share: a file's, or the quickstart's, with overrides on it."""
    config = runs.base_config(path, overrides, quickstart_configs(Path("runs"))["segmentation"])
    config.task = "segmentation"
    config.model.heads.diffusion = None
    if steps is not None:
        config.training.steps, config.training.epochs = steps, None
    return config


def variant(base: RunConfig, name: str, seed: int, share: float, folder: Path) -> RunConfig:
    """The config of one segmenter: what it sees, and whether it is told."""
    return runs.variant(
        base,
        "segmentation",
        folder,
        {
            "model.conditioning.timestep": name == CONDITIONED,
            "model.conditioning.pooled_context": False,  # needs the time embedding, and a segmenter is told no tokens
            "segmentation.noise": 0.0 if name == PLAIN else share,
            "training.seed": seed,
        },
    )


def _joint(path: Path, classes: Sequence[str], scheduler: Scheduler) -> UNet:
    """The network of a joint run of the same classes and noise."""
    loaded = load_run(path)
    if loaded.segmentation is None or loaded.diffusion is None:
        raise UserError(f"--joint: {path} has not both heads; give the run directory of a joint run")
    if list(loaded.images.classes) != list(classes):
        raise UserError(f"--joint: {path} has other classes than this set; give a joint run of the same set")
    theirs, ours = loaded.diffusion.scheduler.alphas_cumprod, scheduler.alphas_cumprod
    if len(theirs) != len(ours) or not torch.allclose(theirs, ours):
        raise UserError(f"--joint: {path} was trained with another diffusion.noise; use its own here")
    return loaded.task.unet


def _some(timesteps: Sequence[int], count: int) -> list[int]:
    return [timesteps[place] for place in evenly_spaced_indices(len(timesteps), count)]


def _table(values: Mapping[str, list[Value]], across: Mapping[str, Value], timesteps: Sequence[int]) -> Table:
    chosen = _some(timesteps, COLUMNS)
    columns = [Column("clean" if t == CLEAN else f"t = {t}", "higher", "fraction") for t in chosen]
    columns.append(Column("mean", "higher", "fraction", f"over the {len(timesteps)} timesteps of the chart"))
    rows = [(name, [*(line[timesteps.index(t)] for t in chosen), across[name]]) for name, line in values.items()]
    return Table("mIoU by noise", columns, rows)


def _gallery(
    segmenters: Mapping[str, Segment],
    noises: NoisedImages,
    indices: Sequence[int],
    timesteps: Sequence[int],
    output: Path,
) -> Gallery:
    """A row for each image and timestep: the noisy image, the truth, and every segmenter's mask."""
    album, images = Album(output, "noise"), noises.images
    rows, masks = [], []
    for index in indices:
        truth = as_mask(images[index]["mask"])
        for t in timesteps:
            seen = noises.noised_image(index, t)
            size = (truth.shape[0], truth.shape[1])
            guesses = [argmax_at(segment(seen[None], t)[0], size).numpy() for segment in segmenters.values()]
            masks += [truth, *guesses]
            files = [album.add((seen / 2 + 0.5).clamp(0, 1))]
            files += [album.add(colorize(mask, images.palette)) for mask in (truth, *guesses)]
            rows.append((f"{images.sample_name(index)}, {'clean' if t == CLEAN else f't = {t}'}", files))
    return Gallery(
        "Masks under rising noise",
        ["what is seen", "truth", *segmenters],
        rows,
        note="Each image has one noise, scaled to the timestep.",
        legend=legend(images.classes, images.palette, masks),
    )


def findings(
    values: Mapping[str, list[Value]], across: Mapping[str, Value], timesteps: Sequence[int], scheduler: Scheduler
) -> list[str]:
    """What came out, as sentences of the figures."""

    def at(name: str, place: int) -> str:
        return as_text(values[name][place], "fraction")

    told = []
    if timesteps[0] == CLEAN:
        told.append(
            f"On clean images, mIoU is {at(PLAIN, 0)} for the segmenter that was trained on them, {at(NOISY, 0)} for "
            f"the one trained on noisy images, and {at(CONDITIONED, 0)} for the one that is told the timestep as well."
        )
    middle = int(np.argmin([abs(t - len(scheduler.alphas_cumprod) / 2) for t in timesteps]))
    t = timesteps[middle]
    alpha, sigma = (float(level) for level in alpha_sigma(scheduler, torch.tensor([t])))
    told.append(
        f"At t = {t} (α {alpha:.2f}, σ {sigma:.2f}) they reach {at(PLAIN, middle)}, {at(NOISY, middle)} and "
        f"{at(CONDITIONED, middle)}."
    )
    gain, loss = (
        _difference(across[CONDITIONED], across[NOISY]),
        _difference(across[CONDITIONED], across[WRONG]),
    )
    told.append(
        f"Being told the timestep {'raises' if gain > 0 else 'does not raise'} mIoU over all {len(timesteps)} "
        f"timesteps: {as_text(across[CONDITIONED], 'fraction')} told, "
        f"{as_text(across[NOISY], 'fraction')} not told ({gain:+.3f})."
    )
    told.append(
        f"Told t = 0 whatever the noise, the same network has {as_text(across[WRONG], 'fraction')} ({-loss:+.3f}): "
        + ("it uses what it is told." if loss > 0.01 else "it makes next to no use of what it is told.")
    )
    if JOINT in values:
        told.append(
            f"The joint run's segmentation head, trained on clean images beside a denoiser, has "
            f"{as_text(across[JOINT], 'fraction')} over all timesteps, and {at(JOINT, middle)} at t = {t}."
        )
    if across[CONDITIONED].n == 1:
        told.append("One seed: differences of a hundredth or two may be chance.")
    return told


def _difference(first: Value, second: Value) -> float:
    return (first.mean or 0.0) - (second.mean or 0.0)
