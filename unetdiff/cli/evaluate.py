"""`unetdiff evaluate PATH`: a trained model judged on a split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unetdiff.cli.inference import add_inference, inference_options
from unetdiff.cli.parser import Parser, split_overrides
from unetdiff.errors import UserError
from unetdiff.text import aligned

USAGE = "unetdiff evaluate PATH [--split val] [--output DIR] [--worst 20] [--tile 512] [--samples 30] [--data.key ...]"
WRITTEN = ("metrics.json", "per_class.csv", "confusion.png", "reliability.png", "report.html")
LABELS = {"iou": "IoU", "boundary_iou": "boundary IoU"}  # other names are read with spaces


def main(argv: Sequence[str]) -> int:
    """Evaluate, print the figures and name what was written."""
    overrides, words = split_overrides(argv, known=[])
    parser = Parser("unetdiff evaluate", "Judge a trained model on a split of its data set, or of another.", USAGE)
    parser.add_argument("path", type=Path, help="a run directory or a model directory")
    parser.add_argument("--split", choices=("val", "train"), default="val", help="the split to judge on")
    parser.add_argument("--output", type=Path, help="folder of what is written; none given: PATH/evaluation-SPLIT")
    parser.add_argument(
        "--worst", type=int, default=20, help="segmentation: pictures on the page of the worst; 0: none"
    )
    parser.add_argument("--samples", type=int, default=30, help="diffusion: pictures drawn of each class; 0: none")
    parser.add_argument("--steps", type=int, default=50, help="diffusion: denoising steps of these")
    parser.add_argument("--guidance", type=float, help="diffusion: guidance of these; none given: the run's")
    parser.add_argument("--seed", type=int, default=0, help="diffusion: of their noise")
    add_inference(parser)
    given = parser.parse_strictly(words)
    for name in ("samples", "worst"):
        if getattr(given, name) < 0:
            raise UserError(f"--{name}: {getattr(given, name)} is too small; use 0 or more")
    data = data_section(given.path, overrides) if overrides else None

    from unetdiff.segmentation.pipeline import saved_inference
    from unetdiff.training.checkpoints import model_directory
    from unetdiff.training.evaluation import evaluate

    figures = evaluate(
        given.path,
        data=data,
        split=given.split,
        output=given.output,
        samples_per_class=given.samples,
        steps=given.steps,
        guidance_scale=given.guidance,
        seed=given.seed,
        inference=inference_options(given, saved_inference(model_directory(given.path))),
        worst=given.worst,
    )
    print(table(figures))
    output = given.output or given.path / f"evaluation-{given.split}"
    print(f"{output}: {', '.join(name for name in WRITTEN if (output / name).is_file())}")
    return 0


def data_section(path: Path, overrides: Sequence[str]) -> Any:
    """The run's `data:` section with overrides on it (the defaults where `path` has no config.yaml)."""
    from unetdiff.config import parse

    for word in overrides:
        if word.startswith("--") and not word.startswith("--data."):
            raise UserError(f"{word}: only --data.KEY can be overridden here")
    config = next((p / "config.yaml" for p in (path, path.parent) if (p / "config.yaml").is_file()), None)
    return parse(config, overrides).data


def table(figures: Mapping[str, Any]) -> str:
    """Figures as aligned lines, then a table of those by class; lists are left to metrics.json."""
    single = [(name, value) for name, value in figures.items() if not isinstance(value, Mapping | list | tuple)]
    lines = aligned([(name, _figure(value)) for name, value in single], "<")
    by_class: dict[tuple[str, ...], dict[str, Mapping[str, Any]]] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping) and name.endswith("_per_class"):
            by_class.setdefault(tuple(value), {})[name.rpartition("/")[2].removesuffix("_per_class")] = value
    for classes, columns in by_class.items():
        rows = [["class", *(LABELS.get(name, name.replace("_", " ")) for name in columns)]]
        rows += [[label, *(_figure(column[label]) for column in columns.values())] for label in classes]
        lines += ["", *aligned(rows)]
    return "\n".join(lines)


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return "–" if value != value else f"{value:.4f}"
    return str(value)
