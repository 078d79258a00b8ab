"""`unetdiff evaluate PATH`: evaluate a trained model on a split of a dataset."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetdiff.cli.inference import add_inference, inference_options
from unetdiff.cli.model_path import HELP, local_model, output_folder
from unetdiff.cli.parser import Parser, split_overrides
from unetdiff.config.model_directory import model_directory
from unetdiff.errors import UserError, config_error, printable
from unetdiff.evaluation.text_report import denoiser_lines
from unetdiff.files.hub import shown_name
from unetdiff.text import aligned

if TYPE_CHECKING:
    from unetdiff.evaluation.config import EvaluationConfig

USAGE = (
    "unetdiff evaluate PATH [--split val] [--output DIR] [--num_worst 20] [--tile 512] [--samples_per_class 30] "
    "[--data.key ...]"
)
WRITTEN = (
    "metrics.json",
    "per_class.csv",
    "confusion.png",
    "reliability.png",
    "report.html",
    "samples.png",
    "nearest_neighbors.png",
    "sweep.json",
    "sweep.csv",
    "sweep.md",
)
LABELS = {"iou": "IoU", "boundary_iou": "boundary IoU", "dice": "Dice"}  # of other metrics: the name with spaces
MAX_WORST = 1000
"""Images in the report of a segmenter."""


def main(argv: Sequence[str]) -> int:
    """Evaluate, write the report of a segmenter, print the metrics and list the written files."""
    overrides, words = split_overrides(argv, known=[])
    args = build_parser().parse_strictly(words)
    if not 0 <= args.num_worst <= MAX_WORST:
        raise config_error("--num_worst", args.num_worst, f"from 0 to {MAX_WORST}")
    config = evaluation_config(args)
    output, path = args.output, local_model(args.path)
    if args.segmenter is not None:
        config = replace(config, segmenter=local_model(args.segmenter, "--segmenter"))
    if output is None and path != args.path:  # not into the Hub's cache
        output = output_folder(args.path) / f"evaluation-{args.split}"
    data = data_section(path, overrides) if overrides else None

    from unetdiff.evaluation.evaluate import evaluate
    from unetdiff.segmentation.pipeline import saved_inference

    evaluation = evaluate(
        path,
        data=data,
        split=args.split,
        output=output,
        config=config,
        inference=inference_options(args, saved_inference(model_directory(path))),
        num_worst=args.num_worst,
        instances=args.instances,
    )
    output = evaluation.output
    if evaluation.segmentation is not None:
        from unetdiff.reports.segmenter import write_segmenter_report

        result, title = evaluation.segmentation, f"{shown_name(path)} on {args.split}"
        write_segmenter_report(result.evaluation, result.images, output, title, result.conditions)
    print(table(evaluation.metrics))
    print(f"{printable(str(output))}: {', '.join(name for name in WRITTEN if (output / name).is_file())}")
    return 0


def build_parser() -> Parser:
    """The command's options."""
    parser = Parser(
        "unetdiff evaluate", "Evaluate a trained model on a split of its dataset, or of another dataset.", USAGE
    )
    parser.add_argument("path", type=Path, help=HELP)
    parser.add_argument("--split", choices=("val", "train"), default="val", help="split to evaluate on")
    parser.add_argument("--output", type=Path, help="folder of the written files (default: PATH/evaluation-SPLIT)")
    parser.add_argument(
        "--num_worst", type=int, default=20, help="segmentation: worst images in the report; 0: none (default: 20)"
    )
    parser.add_argument(
        "--instances",
        action="store_true",
        help="segmentation: pixel error, Rand and information scores of separate objects (the classes but the first)",
    )
    group = parser.add_argument_group("diffusion")

    def add(*words: str, **settings: Any) -> None:
        group.add_argument(*words, **settings)

    add("--samples_per_class", type=int, default=30, help="samples of each class; 0: none (default: 30)")
    add("--num_inference_steps", type=int, default=50, help="denoising steps (default: 50)")
    add("--guidance_scale", type=float, help="classifier-free guidance scale (default: that of the run)")
    add("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    add(
        "--features",
        action="append",
        metavar="NAME[=WEIGHTS]",
        help="feature network of the distances: inception (FID), classifier, or a torchvision encoder; repeatable "
        "(default: classifier, if the dataset has class labels)",
    )
    add("--reference", choices=("train", "val"), default="train", help="split of the real images in the distances")
    add("--num_distance_samples", type=int, help="samples in the distances (default: all that are drawn)")
    add("--num_neighbors", type=int, default=3, help="nearest training images of each sample; 0: no memorization test")
    add("--num_likelihood_images", type=int, default=0, help="images for bits per dimension; 0: none (default: 0)")
    add("--num_likelihood_timesteps", type=int, default=50, help="timesteps for each of them; 0: all (default: 50)")
    add("--segmenter", type=Path, metavar="RUN", help="segmenter of real images, for layout consistency")
    add(
        "--sweep",
        metavar='"num_inference_steps=10,25 scheduler=ddim,dpm++ guidance_scale=1,2"',
        help="sampler settings to compare, in every combination",
    )
    add_inference(parser)
    return parser


def evaluation_config(args: argparse.Namespace) -> EvaluationConfig:
    """The evaluation of a denoiser; raises UserError that names the invalid option."""
    from unetdiff.evaluation.config import EvaluationConfig, parse_features, parse_sweep, validate_evaluation

    try:
        for text in args.features or ():
            parse_features(text)
        sweep = None if args.sweep is None else parse_sweep(args.sweep)
    except UserError as error:
        raise UserError(f"--{error}") from None
    config = EvaluationConfig(
        samples_per_class=args.samples_per_class,
        num_inference_steps=args.num_inference_steps,
        guidance_scale=args.guidance_scale,
        seed=args.seed,
        features=None if args.features is None else tuple(args.features),
        reference=args.reference,
        num_distance_samples=args.num_distance_samples,
        num_neighbors=args.num_neighbors,
        num_likelihood_images=args.num_likelihood_images,
        num_likelihood_timesteps=args.num_likelihood_timesteps,
        sweep=sweep,
        segmenter=args.segmenter,
    )
    validate_evaluation(config, "--")
    return config


def data_section(path: Path, overrides: Sequence[str]) -> Any:
    """The run's `data:` section with overrides (of the defaults if `path` has no config.yaml)."""
    from unetdiff.config.reading import from_yaml, override
    from unetdiff.config.schema import RunConfig
    from unetdiff.files.folders import is_there

    for word in overrides:
        if word.startswith("--") and not word.startswith("--data."):
            raise UserError(f"{word}: must be a --data.KEY; other keys cannot be overridden in an evaluation.")
    config = next((p / "config.yaml" for p in (path, path.parent) if is_there(p / "config.yaml")), None)
    return override(RunConfig() if config is None else from_yaml(config), overrides).data


def table(metrics: Mapping[str, Any]) -> str:
    """Scalar metrics as aligned lines, then distances and sweep, then tables by class; lists are left out."""
    scalars = [(name, value) for name, value in metrics.items() if not isinstance(value, Mapping | list | tuple)]
    lines = [*aligned([(name, _format(value)) for name, value in scalars], "<"), *denoiser_lines(metrics)]
    by_class: dict[tuple[str, ...], dict[str, Mapping[str, Any]]] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping) and name.endswith("_per_class"):
            by_class.setdefault(tuple(value), {})[name.rpartition("/")[2].removesuffix("_per_class")] = value
    for classes, columns in by_class.items():
        rows = [["class", *(LABELS.get(name, name.replace("_", " ")) for name in columns)]]
        rows += [[label, *(_format(column[label]) for column in columns.values())] for label in classes]
        lines += ["", *aligned(rows)]
    return "\n".join(lines)


def _format(value: Any) -> str:
    if isinstance(value, float):
        return "–" if value != value else f"{value:.4f}"
    return str(value)
