"""`unetdiff evaluate PATH`: a trained model judged on a split."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetdiff.cli.inference import add_inference, inference_options
from unetdiff.cli.parser import Parser, split_overrides
from unetdiff.errors import UserError
from unetdiff.evaluation.text_report import lines
from unetdiff.text import aligned

if TYPE_CHECKING:
    from unetdiff.evaluation.config import JudgingConfig

USAGE = "unetdiff evaluate PATH [--split val] [--output DIR] [--worst 20] [--tile 512] [--samples 30] [--data.key ...]"
WRITTEN = (
    "metrics.json",
    "per_class.csv",
    "confusion.png",
    "reliability.png",
    "report.html",
    "samples.png",
    "neighbours.png",
    "sweep.json",
    "sweep.csv",
    "sweep.md",
)
LABELS = {"iou": "IoU", "boundary_iou": "boundary IoU"}  # other names are read with spaces
SMALLEST = {
    "samples": 0,
    "worst": 0,
    "steps": 1,
    "fid_samples": 2,
    "neighbours": 0,
    "bits_per_dimension": 0,
    "bits_timesteps": 0,
}


def main(argv: Sequence[str]) -> int:
    """Evaluate, print the figures and name what was written."""
    overrides, words = split_overrides(argv, known=[])
    given = build_parser().parse_strictly(words)
    options = vars(given)
    for name, least in SMALLEST.items():
        if options[name] is not None and options[name] < least:
            raise UserError(f"--{name}: {options[name]} is too small; use {least} or more")
    judging = judging_options(given)
    data = data_section(given.path, overrides) if overrides else None

    from unetdiff.evaluation.evaluate import evaluate
    from unetdiff.segmentation.pipeline import saved_inference
    from unetdiff.training.checkpoints import model_directory

    figures = evaluate(
        given.path,
        data=data,
        split=given.split,
        output=given.output,
        judging=judging,
        inference=inference_options(given, saved_inference(model_directory(given.path))),
        worst=given.worst,
    )
    print(table(figures))
    output = given.output or given.path / f"evaluation-{given.split}"
    print(f"{output}: {', '.join(name for name in WRITTEN if (output / name).is_file())}")
    return 0


def build_parser() -> Parser:
    """What the command takes."""
    parser = Parser("unetdiff evaluate", "Judge a trained model on a split of its data set, or of another.", USAGE)
    parser.add_argument("path", type=Path, help="a run directory or a model directory")
    parser.add_argument("--split", choices=("val", "train"), default="val", help="the split to judge on")
    parser.add_argument("--output", type=Path, help="folder of what is written; none given: PATH/evaluation-SPLIT")
    parser.add_argument("--worst", type=int, default=20, help="segmentation: images on the page of the worst; 0: none")
    group = parser.add_argument_group("diffusion")

    def add(*words: str, **settings: Any) -> None:
        group.add_argument(*words, **settings)

    add("--samples", type=int, default=30, help="images drawn of each class; 0: none")
    add("--steps", type=int, default=50, help="denoising steps of these")
    add("--guidance", type=float, help="guidance of these; none given: the run's")
    add("--seed", type=int, default=0, help="of their noise")
    add(
        "--features",
        action="append",
        metavar="NAME[=WEIGHTS]",
        help="network of the distances: inception (FID), classifier, or a torchvision trunk; may be given again; "
        "none given: classifier, where there are classes",
    )
    add("--reference", choices=("train", "val"), default="train", help="real images that samples are held against")
    add("--fid_samples", type=int, help="samples behind the distances; none given: those that are drawn anyway")
    add("--neighbours", type=int, default=3, help="nearest training images of the samples; 0: none")
    add("--bits_per_dimension", type=int, default=0, metavar="K", help="images for the likelihood; 0: none")
    add("--bits_timesteps", type=int, default=50, help="timesteps looked at for each of these; 0: every one")
    add("--segmenter", type=Path, metavar="RUN", help="for layouts: a segmenter of real images that looks for them")
    add("--sweep", metavar='"steps=10,25 scheduler=ddim,dpm++ guidance=1,2"', help="settings to try, each with each")
    add_inference(parser)
    return parser


def judging_options(given: argparse.Namespace) -> JudgingConfig:
    """How a denoiser is to be judged; UserError names the option that cannot be."""
    from unetdiff.evaluation.config import JudgingConfig, parse_features, parse_sweep

    try:
        for word in given.features or ():
            parse_features(word)
        sweep = None if given.sweep is None else parse_sweep(given.sweep)
    except UserError as error:
        raise UserError(f"--{error}") from None
    return JudgingConfig(
        samples_per_class=given.samples,
        steps=given.steps,
        guidance_scale=given.guidance,
        seed=given.seed,
        features=None if given.features is None else tuple(given.features),
        reference=given.reference,
        fid_samples=given.fid_samples,
        neighbours=given.neighbours,
        bits_per_dimension=given.bits_per_dimension,
        bits_timesteps=given.bits_timesteps,
        sweep=sweep,
        segmenter=given.segmenter,
    )


def data_section(path: Path, overrides: Sequence[str]) -> Any:
    """The run's `data:` section with overrides on it (the defaults where `path` has no config.yaml)."""
    from unetdiff.config.reading import parse

    for word in overrides:
        if word.startswith("--") and not word.startswith("--data."):
            raise UserError(f"{word}: only --data.KEY can be overridden here")
    config = next((p / "config.yaml" for p in (path, path.parent) if (p / "config.yaml").is_file()), None)
    return parse(config, overrides).data


def table(figures: Mapping[str, Any]) -> str:
    """Figures as aligned lines, then distances, sweep and a table of those by class; lists are left to metrics.json."""
    single = [(name, value) for name, value in figures.items() if not isinstance(value, Mapping | list | tuple)]
    told = [*aligned([(name, _figure(value)) for name, value in single], "<"), *lines(figures)]
    by_class: dict[tuple[str, ...], dict[str, Mapping[str, Any]]] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping) and name.endswith("_per_class"):
            by_class.setdefault(tuple(value), {})[name.rpartition("/")[2].removesuffix("_per_class")] = value
    for classes, columns in by_class.items():
        rows = [["class", *(LABELS.get(name, name.replace("_", " ")) for name in columns)]]
        rows += [[label, *(_figure(column[label]) for column in columns.values())] for label in classes]
        told += ["", *aligned(rows)]
    return "\n".join(told)


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return "–" if value != value else f"{value:.4f}"
    return str(value)
