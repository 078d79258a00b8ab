"""`unetdiff train TASK CONFIG [--key value]`: one run from a config file and overrides."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import get_args

from unetdiff.cli.parser import Parser, split_overrides
from unetdiff.errors import UserError

USAGE = "unetdiff train {segmentation,diffusion,joint} [CONFIG] [--key value ...]"


def main(argv: Sequence[str]) -> int:
    """Train; 0 when the run ends well. Raises UserError for anything that does not fit, before a file is written."""
    from unetdiff.config.command_line import build_parser
    from unetdiff.config.reading import load, to_yaml
    from unetdiff.config.schema import Task

    parser = Parser("unetdiff train", "Train one head, or both jointly, on one U-Net.", usage=USAGE)
    parser.add_argument("task", choices=get_args(Task), help="what is trained")
    parser.add_argument(
        "config", nargs="?", help="YAML file; without one, the defaults, and --training.steps says how long"
    )
    parser.add_argument("--output_dir", "--output-dir", help="short for --training.output_dir")
    parser.add_argument("--resume", action="store_true", help="go on from the run directory's newest checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="delete what the run directory holds")
    parser.add_argument("--print-config", action="store_true", help="print the resolved config and train nothing")

    if any(word in ("-h", "--help") for word in argv):
        print(parser.format_help())
        print("Every key of the config file, as a dotted override:\n")
        print(build_parser("unetdiff train", usage="").format_help().partition("\n\n")[2].strip())
        return 0

    overrides, words = split_overrides(argv, known=[])
    given, unknown = parser.parse_known_args(words)
    overrides += unknown  # a key without a dot is refused with the nearest dotted one
    if unknown and not unknown[0].startswith("--"):
        raise UserError(f"unexpected {unknown[0]!r}: give one config file, then --key value")
    if given.output_dir is not None:
        overrides.append(f"--training.output_dir={given.output_dir}")
    overrides += [f"--training.{flag}=true" for flag in ("resume", "overwrite") if getattr(given, flag)]
    config = load(given.config, overrides, given.task)
    if given.print_config:
        print(to_yaml(config), end="")
        return 0

    from unetdiff.training.trainer import train

    directory = train(config, command=shlex.join(["unetdiff", "train", *argv]))
    print(f"{directory}: done. Next: unetdiff evaluate {directory}", file=sys.stderr)
    return 0
