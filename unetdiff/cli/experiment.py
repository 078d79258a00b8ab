"""`unetdiff experiment NAME ...`: one question about the two heads, answered in a folder that a page can show."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from unetdiff.cli.parser import Parser, split_overrides
from unetdiff.errors import UserError, nearest
from unetdiff.experiments import EXPERIMENTS


def help_text() -> str:
    """What `unetdiff experiment --help` prints."""
    return "\n".join(
        [
            "usage: unetdiff experiment NAME ... [--output DIR]",
            "",
            "One question about the two heads. Its answer is a folder for `unetdiff compare RUN ... --with DIR`.",
            "",
            *(f"  {name:<16}{what}" for name, (_, what) in EXPERIMENTS.items()),
            "",
            "`unetdiff experiment NAME --help` tells what an experiment takes.",
        ]
    )


def main(argv: Sequence[str]) -> int:
    """Do one experiment; prints what came out and where it lies."""
    if not argv or argv[0] in ("-h", "--help"):
        print(help_text())
        return 0
    name = argv[0]
    if name not in EXPERIMENTS:
        near = nearest(name, EXPERIMENTS)
        raise UserError(f"unknown experiment {name!r}; nearest: {near} (one of {', '.join(EXPERIMENTS)})")
    place, what = EXPERIMENTS[name]
    experiment = import_module(place)
    parser = Parser(f"unetdiff experiment {name}", what[0].upper() + what[1:] + ".")
    experiment.add_arguments(parser)
    parser.add_argument("--output", type=Path, default=Path("runs") / name, help="folder of its runs and its record")
    options = [option for action in parser._actions for option in action.option_strings]
    overrides, words = split_overrides(argv[1:], options)
    given = parser.parse_strictly(words)
    command = shlex.join(["unetdiff", "experiment", *argv])

    from unetdiff.reports.record import write_record
    from unetdiff.reports.record_text import record_text

    record = experiment.run(given, overrides, given.output, command)
    write_record(record, given.output)
    print(record_text(record))
    print(given.output)
    return 0
