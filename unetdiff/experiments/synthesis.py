"""Synthetic training images for a segmenter with few labels.

A layout-conditioned denoiser is trained on the few labeled images and samples new images for augmented layouts. A
segmenter trained on the same images segments them; images whose segmentation matches the layout are kept, and
segmenters are trained without and with them, for the same number of steps or of passes over the labeled images. Yang
et al. 2023 ("FreeMask") do so with a large pretrained denoiser, and filter regions instead of whole images.
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
from unetdiff.data.masks.voc import VOCFolder
from unetdiff.errors import UserError, config_error
from unetdiff.experiments.runs import base_config, machine_info, seed_list, train_all, variant, yaml_configs
from unetdiff.experiments.synthesis_report import SynthesisResults, synthesis_record
from unetdiff.experiments.synthetic_dataset import (
    EXTENDED,
    LABELED,
    VAL,
    SynthesisConfig,
    layout_miou,
    refuse_orphans,
    synthesize,
    write_labeled,
)
from unetdiff.files.folders import folders_in
from unetdiff.models.weights_files import fingerprint
from unetdiff.reports.record import Record
from unetdiff.reports.runs import Run, data_name
from unetdiff.reports.samples import load_generator
from unetdiff.segmentation.pipeline import SegmentationPipeline
from unetdiff.training import runtime as machine

DENOISER_STEPS, SEGMENTER_STEPS = 1000, 300
"""Default optimizer steps of the denoiser and of each segmenter without CONFIG."""
LAYOUT_CONDITION = {"diffusion.target": "image", "diffusion.condition": "layout"}
"""Config keys of the denoiser."""
LAST = "latest"
"""Checkpoint used for sampling and filtering; selecting the best one would use labels of the validation split."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `unetdiff experiment synthesis`."""
    parser.add_argument(
        "config", nargs="?", type=Path, metavar="CONFIG", help="YAML of any task (default: the quickstart's)"
    )
    parser.add_argument(
        "--label_fraction", type=float, default=0.05, help="fraction of the training images whose labels are used"
    )
    parser.add_argument("--num_samples", type=int, default=2, help="synthetic images per labeled layout")
    parser.add_argument("--min_miou", type=float, default=0.6, help="minimum mIoU with the layout of a kept image")
    parser.add_argument(
        "--hard_fraction",
        type=float,
        default=1.0,
        help="fraction of these to keep: those on which the first segmenter is least certain",
    )
    parser.add_argument(
        "--equal_passes",
        action="store_true",
        help="as many passes over the labeled images with synthetic ones as without: more steps, not the same number",
    )
    parser.add_argument("--max_zoom", type=float, default=1.1, help="maximum enlargement of layouts before cropping")
    parser.add_argument("--hflip", action="store_true", help="flip half of the layouts horizontally (not for digits)")
    parser.add_argument("--num_inference_steps", type=int, default=25, help="denoising steps per sample")
    parser.add_argument("--guidance_scale", type=float, default=2.0, help="guidance scale")
    parser.add_argument("--num_seeds", type=int, default=3, help="segmenters per training set, with different seeds")
    parser.add_argument("--denoiser_train_steps", type=int, help="optimizer steps of the denoiser (default: CONFIG's)")
    parser.add_argument(
        "--segmenter_train_steps", type=int, help="optimizer steps of each segmenter (default: CONFIG's)"
    )
    parser.add_argument("--num_rows", type=int, default=6, help="kept and discarded images in the gallery, each")


def run(args: argparse.Namespace, overrides: Sequence[str], output: Path, command: str) -> Record:
    """Train, synthesize, train again and report; see `unetdiff.experiments`.

    Raises:
        UserError: an invalid config or number, a folder that holds other runs, or no image that passes the filter.
        TrainingStopped: see `unetdiff.training.trainer.train`.
    """
    start = time.perf_counter()
    _check(args)
    seeds = seed_list(args.num_seeds)
    base, labeled, extended = _base(args, overrides, output), output / "labeled_dataset", output / "extended_dataset"
    earlier = folders_in(output) if output.is_dir() else []
    extended_runs, labeled_runs = (
        [path for path in earlier if path.name.startswith(prefix)] for prefix in ("extended-", "labeled-")
    )
    refuse_orphans(labeled, [*labeled_runs, output / "denoiser", extended, *extended_runs])
    refuse_orphans(extended, extended_runs)
    subset = replace(base.data, train_fraction=args.label_fraction)
    write_labeled(
        labeled,
        {
            LABELED: build_dataset(replace(subset, augment=type(subset.augment)()), "train", False, layout=True),
            VAL: build_dataset(subset, "val", False, layout=True),
        },
        asdict(subset),
    )
    before = train_all({f"labeled {s}": _segmenter(args, base, labeled, LABELED, s, output) for s in seeds}, command)
    denoiser = train_all({"denoiser": _denoiser(args, base, labeled, output)}, command)["denoiser"]

    config = SynthesisConfig(
        args.num_samples,
        args.min_miou,
        args.max_zoom,
        args.hflip,
        args.num_inference_steps,
        args.guidance_scale,
        args.hard_fraction,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    denoiser_path, segmenter_path = denoiser.path / LAST, before[f"labeled {seeds[0]}"].path / LAST
    segmenter = SegmentationPipeline.from_pretrained(segmenter_path).to(device)
    dtype = machine.autocast_dtype(base.training.mixed_precision, device.type)
    generator = load_generator(denoiser_path).to(device)
    networks = {
        "denoiser": fingerprint(denoiser_path / "unet"),
        "segmenter": fingerprint(segmenter_path / "unet"),
    }
    scores = synthesize(extended, labeled, generator, segmenter, config, networks, dtype)
    real_miou = _real_miou(labeled, segmenter)
    after = train_all({f"extended {s}": _segmenter(args, base, extended, EXTENDED, s, output) for s in seeds}, command)
    results = SynthesisResults(extended, config, scores, real_miou, [*before.values()], [*after.values()], segmenter)
    runs: dict[str, Run] = {**before, "denoiser": denoiser, **after}
    return synthesis_record(
        results,
        args,
        output,
        command=command,
        seeds=seeds,
        dataset_name=data_name(asdict(base.data)),
        configs=yaml_configs(runs),
        machine=machine_info([*runs.values()]),
        minutes=(time.perf_counter() - start) / 60,
    )


def _check(args: argparse.Namespace) -> None:
    for name in ("num_samples", "num_inference_steps", "num_rows", "max_zoom"):
        require_at_least(f"--{name}", getattr(args, name), 1)
    require_fraction("--min_miou", args.min_miou)
    for name in ("label_fraction", "hard_fraction"):
        if not 0 < getattr(args, name) <= 1:
            raise config_error(f"--{name}", getattr(args, name), "in (0, 1]")
    for name in ("denoiser_train_steps", "segmenter_train_steps"):
        if getattr(args, name) is not None:
            require_at_least(f"--{name}", getattr(args, name), 1)


def _base(args: argparse.Namespace, overrides: Sequence[str], output: Path) -> RunConfig:
    """The config that all runs share, validated for every run before anything is written.

    The datasets are written at the networks' input size, so this must be fixed.
    """
    base = base_config(args.config, overrides, quickstart_configs(output)["segmentation"])
    if base.data.name != "scenes" and base.data.size is None:
        raise config_error("data.size", None, f"set with data.name={base.data.name}", "Give [height, width].")
    variant(base, "segmentation", output)
    variant(base, "diffusion", output, LAYOUT_CONDITION)
    return base


def _train_length(steps: int | None, args: argparse.Namespace, default: int) -> dict[str, Any]:
    """Config keys for a number of optimizer steps; without `steps`, CONFIG's, or `default` without CONFIG."""
    if steps is None and args.config is not None:
        return {}
    steps = default if steps is None else steps
    third = -(-steps // 3)
    return {
        "training.steps": steps,
        "training.epochs": None,
        "training.validate_every": third,
        "training.checkpoint_every": third,
    }


def _data(base: RunConfig, folder: Path, split: str) -> dict[str, Any]:
    """Config keys of a run on a split of a folder."""
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
        size=list(VOCFolder(folder, LABELED)[0]["image"].shape[-2:]),
    )
    return {"data": data}


def _segmenter(
    args: argparse.Namespace, base: RunConfig, folder: Path, split: str, seed: int, output: Path
) -> RunConfig:
    run_folder = output / f"{'labeled' if split == LABELED else 'extended'}-{seed}"
    length = _train_length(args.segmenter_train_steps, args, SEGMENTER_STEPS)
    config = variant(base, "segmentation", run_folder, {**_data(base, folder, split), **length, "training.seed": seed})
    steps = config.training.steps
    if split == EXTENDED and args.equal_passes and steps is not None:  # a length in epochs is one in passes already
        ratio = len(VOCFolder(folder, EXTENDED)) / len(VOCFolder(folder, LABELED))
        return variant(config, "segmentation", run_folder, _train_length(round(steps * ratio), args, 0))
    return config


def _denoiser(args: argparse.Namespace, base: RunConfig, folder: Path, output: Path) -> RunConfig:
    changes = {
        **_data(base, folder, LABELED),
        **_train_length(args.denoiser_train_steps, args, DENOISER_STEPS),
        **LAYOUT_CONDITION,
        "diffusion.guidance_scale": args.guidance_scale,
        "diffusion.preview_steps": args.num_inference_steps,
    }
    return variant(base, "diffusion", output / "denoiser", changes)


def _real_miou(folder: Path, segmenter: SegmentationPipeline) -> float:
    """Mean over the validation images of the filter's mIoU."""
    data = VOCFolder(folder, VAL)
    outputs = segmenter.stream((data[i]["image"] for i in range(len(data))), batch_size=32)
    num_classes, ignore_index = len(data.classes), segmenter.ignore_index
    scores = [layout_miou(output.mask, data.mask(i), num_classes, ignore_index) for i, output in enumerate(outputs)]
    known = [score for score in scores if score == score]
    if not known:
        raise UserError(f"{folder}: all pixels of the validation masks have the ignore index. Give another dataset.")
    return sum(known) / len(known)
