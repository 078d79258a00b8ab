"""Do synthesised images help a segmenter of few labels?

A denoiser that is told layouts learns from the few labelled images, and draws others for the same layouts, varied. A
segmenter of the same few images looks for the layout in each; what agrees is kept, and
segmenters are trained for the same number of steps without and with it. Yang et al. 2023 ("FreeMask") do so with a
large pretrained denoiser, and leave out single regions, not whole images.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from unetdiff.config.quickstart import quickstart_configs
from unetdiff.config.schema import RunConfig
from unetdiff.config.validation.checks import require_at_least, require_fraction
from unetdiff.data.build import build_dataset
from unetdiff.data.voc import VOCFolder
from unetdiff.errors import UserError, config_error
from unetdiff.experiments.runs import base_config, configs_of, machine_of, seeds_of, train_all, variant
from unetdiff.experiments.synthesis_report import Added, record_of
from unetdiff.experiments.synthetic_dataset import (
    ADDED,
    LABELLED,
    VAL,
    Synthesis,
    agreement,
    refuse_orphans,
    synthesise,
    write_labelled,
)
from unetdiff.models.loading import fingerprint
from unetdiff.reports.record import Record
from unetdiff.reports.runs import Run, data_name
from unetdiff.reports.samples import load_generator
from unetdiff.segmentation.pipeline import SegmentationPipeline
from unetdiff.training import runtime as machine

DENOISER_STEPS, SEGMENTER_STEPS = 1000, 300
"""Optimizer steps of the denoiser and of each segmenter without CONFIG."""
DRAWING = {"diffusion.target": "image", "diffusion.condition": "layout"}
"""Keys of the denoiser."""
LAST = "latest"
"""The weights that draw and judge: to choose among validations would use labels that are not there."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The experiment's options."""
    parser.add_argument("config", nargs="?", type=Path, metavar="CONFIG", help="YAML of any task; none: the scenes")
    parser.add_argument("--labelled", type=float, default=0.05, help="share of the training images that has labels")
    parser.add_argument("--copies", type=int, default=2, help="images drawn for each labelled layout")
    parser.add_argument("--agreement", type=float, default=0.6, help="least mIoU with the layout of a kept image")
    parser.add_argument("--zoom", type=float, default=1.1, help="layouts are windows of up to so much larger ones")
    parser.add_argument("--mirror", action="store_true", help="mirror half of the layouts (not for digits)")
    parser.add_argument("--steps", type=int, default=25, help="denoising steps")
    parser.add_argument("--guidance", type=float, default=2.0, help="guidance scale")
    parser.add_argument("--seeds", type=int, default=3, help="segmenters of each kind")
    parser.add_argument("--denoiser_steps", type=int, help="optimizer steps of the denoiser; none: CONFIG's")
    parser.add_argument("--segmenter_steps", type=int, help="optimizer steps of each segmenter; none: CONFIG's")
    parser.add_argument("--rows", type=int, default=6, help="kept and dropped images that are shown, of each")


def run(given: argparse.Namespace, overrides: Sequence[str], output: Path, command: str) -> Record:
    """Train, synthesise, train again; see `unetdiff.experiments`.

    Raises:
        UserError: a config or number that cannot be, a folder that holds other runs, or no image that agrees.
        TrainingStopped: see `train`.
    """
    began = time.perf_counter()
    _check(given)
    seeds = seeds_of(given.seeds)
    base, labelled, enlarged = _base(given, overrides, output), output / "labelled_set", output / "enlarged_set"
    later = [*output.glob("enlarged-*")]
    refuse_orphans(labelled, [*output.glob("labelled-*"), output / "denoiser", enlarged, *later])
    refuse_orphans(enlarged, later)
    few = replace(base.data, train_fraction=given.labelled)
    write_labelled(
        labelled,
        {
            LABELLED: build_dataset(replace(few, augment=type(few.augment)()), "train", False, layout=True),
            VAL: build_dataset(few, "val", False, layout=True),
        },
        asdict(few),
    )
    before = train_all(
        {f"labelled {s}": _segmenter(given, base, labelled, LABELLED, s, output) for s in seeds}, command
    )
    drawing = {"denoiser": _denoiser(given, base, labelled, output)}
    denoiser = train_all(drawing, command)["denoiser"]

    asked = Synthesis(given.copies, given.agreement, given.zoom, given.mirror, given.steps, given.guidance)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    drawer, seer = denoiser.path / LAST, before[f"labelled {seeds[0]}"].path / LAST
    judge = SegmentationPipeline.from_pretrained(seer).to(device)
    precision = machine.autocast_dtype(base.training.mixed_precision, device.type)
    generator = load_generator(drawer).to(device)
    networks = {"denoiser": fingerprint(drawer / "unet"), "segmenter": fingerprint(seer / "unet")}
    scores = synthesise(enlarged, labelled, generator, judge, asked, networks, precision)
    real = _agreement_of_real(labelled, judge)
    after = train_all({f"enlarged {s}": _segmenter(given, base, enlarged, ADDED, s, output) for s in seeds}, command)
    added = Added(enlarged, asked, scores, real, [*before.values()], [*after.values()], judge)
    runs: dict[str, Run] = {**before, "denoiser": denoiser, **after}
    return record_of(
        given,
        added,
        output,
        command=command,
        seeds=seeds,
        dataset_name=data_name(asdict(base.data)),
        configs=configs_of(runs),
        machine=machine_of([*runs.values()]),
        minutes=(time.perf_counter() - began) / 60,
    )


def _check(given: argparse.Namespace) -> None:
    for name in ("copies", "steps", "rows"):
        require_at_least(f"--{name}", getattr(given, name), 1)
    require_at_least("--zoom", given.zoom, 1)
    require_fraction("--agreement", given.agreement)
    if not 0 < given.labelled <= 1:
        raise config_error("--labelled", given.labelled, "in (0, 1]", "Give e.g. 0.05.")
    for name in ("denoiser_steps", "segmenter_steps"):
        if getattr(given, name) is not None:
            require_at_least(f"--{name}", getattr(given, name), 1)


def _base(given: argparse.Namespace, overrides: Sequence[str], output: Path) -> RunConfig:
    """What all runs share; refused, before anything is written, where one of them cannot be.

    The folder holds images as the networks see them, so their size must be known.
    """
    base = base_config(given.config, overrides, quickstart_configs(output)["segmentation"])
    if base.data.name != "scenes" and base.data.size is None:
        raise config_error("data.size", None, f"set with data.name={base.data.name}", "Give [height, width].")
    variant(base, "segmentation", output)
    variant(base, "diffusion", output, DRAWING)
    return base


def _steps(asked: int | None, given: argparse.Namespace, own: int) -> dict[str, Any]:
    """The length of a run: as asked, without CONFIG the experiment's own, else CONFIG's; validated at its end too."""
    steps = asked if asked is not None else own if given.config is None else None
    if steps is None:
        return {}
    third = -(-steps // 3)
    return {
        "training.steps": steps,
        "training.epochs": None,
        "training.validate_every": third,
        "training.checkpoint_every": third,
    }


def _data(base: RunConfig, folder: Path, split: str) -> dict[str, Any]:
    """The keys of a run that reads a list of a folder as it was written."""
    data = replace(
        base.data,
        name="voc_folder",
        root=str(folder),
        download=False,
        train_split=split,
        val_split=VAL,
        num_classes=None,
        longest_side=None,
        train_fraction=1.0,
        size=_size(folder),
    )
    return {"data": data}


def _size(folder: Path) -> list[int]:
    """Height and width of the images of a folder that `write_labelled` wrote."""
    return list(VOCFolder(folder, LABELLED)[0]["image"].shape[-2:])


def _segmenter(
    given: argparse.Namespace, base: RunConfig, folder: Path, split: str, seed: int, output: Path
) -> RunConfig:
    place = output / f"{'labelled' if split == LABELLED else 'enlarged'}-{seed}"
    changes = {**_data(base, folder, split), **_steps(given.segmenter_steps, given, SEGMENTER_STEPS)}
    return variant(base, "segmentation", place, {**changes, "training.seed": seed})


def _denoiser(given: argparse.Namespace, base: RunConfig, folder: Path, output: Path) -> RunConfig:
    changes = {
        **_data(base, folder, LABELLED),
        **_steps(given.denoiser_steps, given, DENOISER_STEPS),
        **DRAWING,
        "diffusion.guidance_scale": given.guidance,
        "diffusion.preview_steps": given.steps,
    }
    return variant(base, "diffusion", output / "denoiser", changes)


def _agreement_of_real(folder: Path, judge: SegmentationPipeline) -> float:
    """Mean over the validation images of the agreement that a drawn image is kept by."""
    data = VOCFolder(folder, VAL)
    outputs = judge.stream((data[i]["image"] for i in range(len(data))), batch_size=32)
    classes, void = len(data.classes), judge.ignore_index
    scores = [agreement(output.mask, data.mask(i), classes, void) for i, output in enumerate(outputs)]
    known = [score for score in scores if score == score]
    if not known:
        raise UserError(f"{folder}: the validation images are void all over; give others")
    return sum(known) / len(known)
