"""`unetdiff experiment NAME ...`: run an experiment on the two heads and write its record."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from importlib import import_module
from itertools import takewhile
from pathlib import Path

from unetdiff.cli.model_path import local_directory, local_model
from unetdiff.cli.parser import Parser, split_overrides
from unetdiff.config.model_directory import model_directory
from unetdiff.errors import UserError, did_you_mean, printable
from unetdiff.experiments import EXPERIMENTS
from unetdiff.files.writing import file_errors, require_writable

MODELS = {"run": "RUN", "runs": "RUN", **{name: f"--{name}" for name in ("segmenter", "eval_segmenter", "joint_run")}}
"""Arguments of experiments that are models, and their names in messages."""

OF_RUNS = ("agreement", "loss_guidance", "probe", "similarity")
"""Experiments that begin with runs."""


def help_text() -> str:
    """The output of `unetdiff experiment --help`."""
    return "\n".join(
        [
            "usage: unetdiff experiment NAME ... [--output DIR]",
            "",
            "Run an experiment on the two heads. Show its results with `unetdiff compare RUN ... --experiments DIR`.",
            "",
            *(f"  {name:<16}{summary}" for name, (_, summary) in EXPERIMENTS.items()),
            "",
            "`unetdiff experiment NAME --help` lists the options of an experiment.",
        ]
    )


def main(argv: Sequence[str]) -> int:
    """Run one experiment; prints its findings and output folder."""
    if not argv or argv[0] in ("-h", "--help"):
        print(help_text())
        return 0
    name = argv[0]
    if name not in EXPERIMENTS:
        raise UserError(
            f"unknown experiment {name!r}: must be one of {', '.join(EXPERIMENTS)}. "
            f"{did_you_mean(name, EXPERIMENTS)}".rstrip()
        )
    module, summary = EXPERIMENTS[name]
    if name in OF_RUNS:  # a mistyped one is named before torch is imported
        for word in takewhile(lambda word: not word.startswith("-"), argv[1:]):
            model_directory(local_directory(Path(word), "RUN"))
    experiment = import_module(module)
    parser = Parser(f"unetdiff experiment {name}", summary[0].upper() + summary[1:] + ".")
    experiment.add_arguments(parser)
    parser.add_argument("--output", type=Path, default=Path("runs") / name, help="folder of the runs and the record")
    options = [option for action in parser._actions for option in action.option_strings]
    overrides, words = split_overrides(argv[1:], options)
    args = parser.parse_strictly(words)
    require_writable("--output", args.output, folder=True)
    command = shlex.join(["unetdiff", "experiment", *argv])

    from unetdiff.experiments.run_inputs import validate_options
    from unetdiff.reports.record import write_record
    from unetdiff.reports.record_text import record_text

    validate_options(args)
    for name, option in MODELS.items():
        value = getattr(args, name, None)
        if value is not None:
            paths = [local_model(one, option) for one in (value if isinstance(value, list) else [value])]
            setattr(args, name, paths if isinstance(value, list) else paths[0])
    with file_errors(args.output, "Make room, or give another --output; finished parts are kept."):
        record = experiment.run(args, overrides, args.output, command)
    write_record(record, args.output)
    print(record_text(record))
    print(printable(str(args.output)))
    return 0
