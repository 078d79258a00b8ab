"""`unetdiff train TASK CONFIG [--key value]`: one run from a config file and overrides."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from unetdiff.cli.parser import Parser, split_overrides
from unetdiff.cli.processes import is_main_process
from unetdiff.errors import UserError

USAGE = "unetdiff train {segmentation,diffusion,joint} [CONFIG] [--key value ...]"


def main(argv: Sequence[str]) -> int:
    """Train; returns 0 when the run finishes.

    The config is checked before torch is imported, so errors appear at once and nothing is written.

    Raises:
        UserError: an invalid config, or a dataset or run directory that cannot be used.
    """
    from unetdiff.config.help import options_help
    from unetdiff.config.reading import load, to_yaml
    from unetdiff.config.schema import Task
    from unetdiff.config.shipped import default_config, find_config
    from unetdiff.console import say

    parser = Parser("unetdiff train", "Train one head, or both jointly, on one U-Net.", usage=USAGE)
    parser.add_argument("task", choices=get_args(Task), help="what to train")
    parser.add_argument(
        "config",
        nargs="?",
        help="YAML file, or the name of a config of the package (unetdiff configs); without one: scenes, or for a "
        "segmenter on other data: default",
    )
    parser.add_argument("--output_dir", help="run directory; short for --training.output_dir")
    parser.add_argument("--resume", action="store_true", help="resume from the run directory's latest checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="delete the contents of the run directory first")
    parser.add_argument("--print_config", action="store_true", help="print the resolved config without training")

    if any(word in ("-h", "--help") for word in argv):
        print(parser.format_help())
        print("Every key of the config file is also a dotted option:\n")
        print(options_help())
        return 0

    overrides, words = split_overrides(argv, known=[])
    args, unknown = parser.parse_known_args(words)
    overrides += unknown  # a key without a dot: the error names the nearest dotted one
    if unknown and not unknown[0].startswith("--"):
        raise UserError(f"unexpected argument {unknown[0]!r}. Give one config file, then --key value.")
    path = None if args.config is None else find_config(args.config, args.task)
    if args.output_dir is not None:
        overrides.append(f"--training.output_dir={args.output_dir}")
    overrides += [f"--training.{flag}=true" for flag in ("resume", "overwrite") if getattr(args, flag)]
    if args.resume and path is not None and not _names_output(overrides) and _is_run(path):
        overrides.append(f"--training.output_dir={path.parent}")
    notes: list[str] = []
    is_default = path is None
    has_own_data = any(word.startswith(("--data.name", "--data.root")) for word in overrides)
    if path is None:
        path = default_config(args.task, has_own_data)
    config = load(path, overrides, args.task, notes, is_default)
    if is_default and not has_own_data and is_main_process():
        say("No dataset was given: using the embedded scenes. For a config of your own images: unetdiff init PATH")
    for note in notes if is_main_process() and not is_default else []:
        say(f"unetdiff: {note}")
    if args.print_config:
        if is_main_process():
            print(to_yaml(config), end="")
        return 0

    from unetdiff.training.trainer import train

    directory = train(config, command=shlex.join(["unetdiff", "train", *argv]))
    if is_main_process():
        say(f"{directory}: finished. Next: unetdiff evaluate {directory}")
    return 0


def _names_output(overrides: Sequence[str]) -> bool:
    return any(word.partition("=")[0] == "--training.output_dir" for word in overrides)


def _is_run(file: Path) -> bool:
    """Whether a config file is that of a run that was started: it continues where it lies now, moved or not."""
    run = file.parent
    return file.name == "config.yaml" and ((run / "checkpoints").is_dir() or (run / "metrics.jsonl").is_file())
