"""Inference options of `predict` and `evaluate`, and the device."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from unetdiff.cli.parser import Parser, finite, integer
from unetdiff.errors import config_error

if TYPE_CHECKING:
    from unetdiff.segmentation.config import InferenceConfig


MAX_TILE, MAX_SCALE, MAX_SCALES = 4096, 8, 16
"""Bounds on the memory and time of a prediction."""


def add_inference(parser: Parser) -> None:
    """Add --tile, --overlap, --margin, --flip and --scales; defaults are the model's own."""
    group = parser.add_argument_group("inference (defaults: the model's segmentation.json)")

    def add(*words: str, **settings: Any) -> None:
        group.add_argument(*words, default=argparse.SUPPRESS, **settings)

    add("--tile", type=_tile, metavar="SIDE|H,W", help="size of overlapping tiles; 0: the whole image")
    add("--overlap", type=float, help="minimum overlap of tiles, as a fraction (0 to 0.9)")
    add(
        "--margin", type=int, help="pixels around each tile or image, mirrored beyond the border, that are seen as well"
    )
    add("--flip", action=argparse.BooleanOptionalAction, help="average with the horizontally flipped image")
    add("--scales", type=numbers, metavar="A,B,...", help="average over scales of the image, e.g. 0.75,1,1.25")


def inference_options(args: argparse.Namespace, saved: InferenceConfig) -> InferenceConfig:
    """The saved options, overridden by the command line; UserError for a value out of range."""
    from unetdiff.segmentation.config import validate_inference

    options = vars(args)
    names = ("tile", "overlap", "margin", "flip", "scales", "batch_size", "image_range")
    changes: dict[str, Any] = {name: options[name] for name in names if options.get(name) is not None}
    if changes.get("tile") == [0, 0]:
        changes["tile"] = None
    config = replace(saved, **changes)
    validate_inference(config, "--")
    if config.tile is not None and max(config.tile) > MAX_TILE:
        raise config_error("--tile", config.tile, f"at most {MAX_TILE} on a side")
    if len(config.scales) > MAX_SCALES or not all(1 / MAX_SCALE <= scale <= MAX_SCALE for scale in config.scales):
        raise config_error("--scales", config.scales, f"at most {MAX_SCALES} factors from 1/{MAX_SCALE} to {MAX_SCALE}")
    return config


def chosen_device(name: str | None) -> Any:
    """The torch device `name`, or a GPU if available; UserError if it cannot be used."""
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise config_error("--device", name, f"available on this machine ({reason})", "Use cpu.") from None
    return device


def _tile(word: str) -> list[int]:
    try:
        sides = [integer(part) for part in word.split(",")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2):
        raise argparse.ArgumentTypeError(f"{word}: must be a side such as 512, or height,width")
    return sides * 2 if len(sides) == 1 else sides


def numbers(word: str) -> list[float]:
    """An option's numbers, separated by commas."""
    try:
        return [finite(part) for part in word.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word}: must be a list of numbers, e.g. 0.75,1,1.25") from None
