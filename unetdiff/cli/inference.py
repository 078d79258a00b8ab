"""Options that `predict` and `evaluate` share: how images are seen, and where the network runs."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from unetdiff.cli.parser import Parser
from unetdiff.errors import UserError

if TYPE_CHECKING:
    from unetdiff.segmentation.config import InferenceConfig


def add_inference(parser: Parser) -> None:
    """--tile, --overlap, --flip, --scales; one that is not given is the model's own."""
    group = parser.add_argument_group("how images are seen (none given: as the model's segmentation.json says)")

    def add(*words: str, **settings: Any) -> None:
        group.add_argument(*words, default=argparse.SUPPRESS, **settings)

    add("--tile", type=_tile, metavar="SIDE|H,W", help="overlapping tiles of this size; 0: the whole image")
    add("--overlap", type=float, help="least share of a tile that its neighbour shows too (0 to 0.9)")
    add("--flip", action=argparse.BooleanOptionalAction, help="average with the mirrored image")
    add("--scales", type=_numbers, metavar="A,B,...", help="average over these sizes, e.g. 0.75,1,1.25")


def inference_options(given: argparse.Namespace, saved: InferenceConfig) -> InferenceConfig:
    """The saved options with those given on top; UserError where they cannot be."""
    from unetdiff.segmentation.config import validate_inference

    words = vars(given)
    names = [name for name in ("tile", "overlap", "flip", "scales", "batch_size") if words.get(name) is not None]
    changes: dict[str, Any] = {name: words[name] for name in names}
    if changes.get("tile") == [0, 0]:
        changes["tile"] = None
    config = replace(saved, **changes)
    validate_inference(config, "--")
    return config


def chosen_device(name: str | None) -> Any:
    """A torch device that works; None: a GPU where there is one. UserError where the named one does not."""
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"--device: {name!r} cannot be used here ({reason}); use cpu") from None
    return device


def _tile(word: str) -> list[int]:
    try:
        sides = [int(part) for part in word.split(",")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2):
        raise argparse.ArgumentTypeError(f"{word!r} is no size; give a side such as 512, or height,width")
    return sides * 2 if len(sides) == 1 else sides


def _numbers(word: str) -> list[float]:
    try:
        return [float(part) for part in word.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is no list of numbers; give e.g. 0.75,1,1.25") from None
