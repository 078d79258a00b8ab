"""`unetdiff experiment NAME ...`: run one experiment; its folder becomes a section of a report."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from unetdiff.cli.parser import Parser, split_overrides
from unetdiff.errors import UserError, nearest
from unetdiff.experiments import EXPERIMENTS


def help_text() -> str:
    """The text of `unetdiff experiment --help`."""
    return "\n".join(
        [
            "usage: unetdiff experiment NAME ... [--output DIR]",
            "",
            "Experiments on what the two heads share. `unetdiff compare RUN ... --experiments DIR` shows the results.",
            "",
            *(f"  {name:<16}{what}" for name, (_, what) in EXPERIMENTS.items()),
            "",
            "`unetdiff experiment NAME --help` lists an experiment's options.",
        ]
    )


def main(argv: Sequence[str]) -> int:
    """Run one experiment; prints its results and their folder."""
    if not argv or argv[0] in ("-h", "--help"):
        print(help_text())
        return 0
    name = argv[0]
    if name not in EXPERIMENTS:
        near = nearest(name, EXPERIMENTS)
        raise UserError(f"unknown experiment {name!r}. Did you mean {near}? (one of {', '.join(EXPERIMENTS)})")
    module, description = EXPERIMENTS[name]
    experiment = import_module(module)
    parser = Parser(f"unetdiff experiment {name}", description[0].upper() + description[1:] + ".")
    experiment.add_arguments(parser)
    parser.add_argument("--output", type=Path, default=Path("runs") / name, help="folder for its runs and results")
    options = [option for action in parser._actions for option in action.option_strings]
    overrides, words = split_overrides(argv[1:], options)
    args = parser.parse_strictly(words)
    command = shlex.join(["unetdiff", "experiment", *argv])

    from unetdiff.reports.record import write_record
    from unetdiff.reports.record_text import record_text

    record = experiment.run(args, overrides, args.output, command)
    write_record(record, args.output)
    print(record_text(record))
    print(args.output)
    return 0
