"""`unetdiff compare RUN RUN ...`: the quickstart's page, for any runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unetdiff.cli.parser import Parser
from unetdiff.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Write the page; prints where it is."""
    parser = Parser("unetdiff compare", "One self-contained page that shows runs side by side.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories")
    parser.add_argument("--output", type=Path, default=Path("report.html"), help="the page")
    given = parser.parse_strictly(argv)
    for run in given.runs:
        if not (run / "config.yaml").is_file():
            raise UserError(f"{run}: no run directory (it has no config.yaml); give what training.output_dir named")

    from unetdiff.compare.report import write_report

    write_report(given.runs, given.output)
    print(given.output)
    return 0
