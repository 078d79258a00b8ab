"""`unetdiff evaluate PATH`: a trained model judged on a split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unetdiff.cli.inference import add_inference, inference_options
from unetdiff.cli.parser import Parser, split_overrides
from unetdiff.errors import UserError

USAGE = "unetdiff evaluate PATH [--split val] [--output DIR] [--tile 512] [--samples 30] [--data.key value ...]"


def main(argv: Sequence[str]) -> int:
    """Evaluate and print a table."""
    overrides, words = split_overrides(argv, known=[])
    parser = Parser("unetdiff evaluate", "Judge a trained model on a split of its data set, or of another.", USAGE)
    parser.add_argument("path", type=Path, help="a run directory or a model directory")
    parser.add_argument("--split", choices=("val", "train"), default="val", help="the split to judge on")
    parser.add_argument("--output", type=Path, help="folder for figures.json; none given: PATH/evaluation-SPLIT")
    parser.add_argument("--samples", type=int, default=30, help="diffusion: pictures drawn of each class; 0: none")
    parser.add_argument("--steps", type=int, default=50, help="diffusion: denoising steps of these")
    parser.add_argument("--guidance", type=float, help="diffusion: guidance of these; none given: the run's")
    parser.add_argument("--seed", type=int, default=0, help="diffusion: of their noise")
    add_inference(parser)
    given = parser.parse_strictly(words)
    if given.samples < 0:
        raise UserError(f"--samples: {given.samples} is too small; use 0 or more")
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
    )
    print(table(figures))
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
    """Figures as aligned lines; figures by class (a mapping or a list) become indented lines."""
    rows: list[tuple[str, str]] = []
    for name, value in figures.items():
        if isinstance(value, Mapping | list | tuple):
            rows.append((name, ""))
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            rows += [(f"  {key}", _figure(item)) for key, item in items]
        else:
            rows.append((name, _figure(value)))
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in rows)


def _figure(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
