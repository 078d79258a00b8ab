"""`unetdiff train [TASK] CONFIG [--key value]`: one run from a config file and overrides."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from unetdiff.cli.parser import Parser, split_overrides
from unetdiff.cli.processes import is_main_process
from unetdiff.config.model_directory import CONFIG, is_run
from unetdiff.config.reading import from_yaml, load, read_yaml, to_yaml
from unetdiff.config.schema import RunConfig, Task
from unetdiff.config.shipped import default_config, find_config, shipped_configs
from unetdiff.console import say
from unetdiff.errors import UserError, config_error

USAGE = "unetdiff train {segmentation,diffusion,joint} [CONFIG] [--key value ...]"
TASKS = get_args(Task)
CONFIG_SUFFIXES = (".yaml", ".yml")


def main(argv: Sequence[str]) -> int:
    """Train; returns 0 when the run finishes.

    The config is checked before torch is imported, so errors appear at once and nothing is written.

    Raises:
        UserError: an invalid config, or a dataset or run directory that cannot be used.
    """
    from unetdiff.config.help import options_help

    parser = Parser("unetdiff train", "Train one head, or both jointly, on one U-Net.", usage=USAGE)
    parser.add_argument("task", choices=TASKS, help="what to train; may be left out before a file that names it")
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
    args, unknown = parser.parse_known_args(_with_task(words))
    overrides += unknown  # a key without a dot: the error names the nearest dotted one
    if unknown and not unknown[0].startswith("--"):
        raise UserError(f"unexpected argument {unknown[0]!r}. Give one config file, then --key value.")
    path = None if args.config is None else _config_file(args.config, args.task)
    if args.output_dir is not None:
        overrides.append(f"--training.output_dir={args.output_dir}")
    overrides += [f"--training.{flag}=true" for flag in ("resume", "overwrite") if getattr(args, flag)]
    is_of_run = path is not None and path.name == CONFIG and is_run(path.parent)
    if args.resume and path is not None and is_of_run and not _names(overrides, "output_dir"):
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

    if config.training.resume and path is not None and not _names(overrides, "steps", "epochs"):
        notice = length_notice(config, path)
        if notice and is_main_process():
            say(f"unetdiff: {notice}")

    from unetdiff.training.trainer import train

    directory = train(config, command=shlex.join(["unetdiff", "train", *argv]))
    if is_main_process():
        say(f"{directory}: finished. Next:")
        for command in next_commands(config.task, directory):
            say(f"  {command}")
    return 0


def next_commands(task: Task, run: Path) -> list[str]:
    """What a trained model is for."""
    place = shlex.quote(str(run))
    own = {"segmentation": [f"predict {place} IMAGE"], "diffusion": [f"sample {place}"]}
    heads = own.get(task) or [*own["segmentation"], *own["diffusion"]]
    return [f"unetdiff {command}" for command in (f"evaluate {place}", *heads, f"app {place}")]


def length_notice(config: RunConfig, path: Path) -> str:
    """That a resumed run gets the length of its config file, where a flag had given it another; "" where it keeps its
    length.

    Args:
        config: to train, whose length comes from its file.
        path: of the file.
    """
    run = Path(config.training.output_dir)
    if not is_run(run):
        return ""
    (key, now), (old_key, before) = _length(config), _length(from_yaml(run / CONFIG))
    if (key, now) == (old_key, before) or before is None:
        return ""
    return (
        f"{run}: its length changes from {before:g} {old_key} to {now:g} {key}, as in {path}. "
        f"--training.{old_key} {before:g} keeps its length."
    )


def _length(config: RunConfig) -> tuple[str, float | None]:
    training = config.training
    return ("epochs", training.epochs) if training.steps is None else ("steps", training.steps)


def _with_task(words: Sequence[str]) -> list[str]:
    """The words of the command line with the task of a config file that goes first: `unetdiff train cells.yaml`."""
    first = words[0] if words else ""
    is_config = Path(first).suffix in CONFIG_SUFFIXES or is_run(Path(first)) or first in dict(shipped_configs())
    if first in TASKS or not is_config:
        return list(words)
    task = read_yaml(_config_file(first, None)).get("task")
    if task not in TASKS:
        remedy = f"Run `unetdiff train TASK {first}`, or set it in the file."
        raise config_error("task", task, f"one of {', '.join(TASKS)} in {first}", remedy)
    return [str(task), *words]


def _config_file(name: str, task: str | None) -> Path:
    """As `find_config`; a run is named with the command that continues it."""
    if is_run(Path(name)):
        own = from_yaml(Path(name) / CONFIG).task
        command = f"unetdiff train {own} {Path(name) / CONFIG} --resume"
        raise UserError(f"config {name}: must be a file (got a run). Continue it with `{command}`.")
    return find_config(name, task)


def _names(overrides: Sequence[str], *names: str) -> bool:
    """Whether one of these keys of `training` is on the command line."""
    return any(word.partition("=")[0] in {f"--training.{name}" for name in names} for word in overrides)
