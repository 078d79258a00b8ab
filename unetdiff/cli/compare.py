"""`unetdiff compare RUN RUN ... --with DIR ...`: the quickstart's page, for any runs and experiments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unetdiff.cli.parser import Parser
from unetdiff.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Write the page; prints where it is."""
    parser = Parser("unetdiff compare", "One self-contained page that shows runs side by side, and experiments.")
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run directories; none: experiments alone")
    parser.add_argument(
        "--with",
        dest="experiments",
        nargs="+",
        default=[],
        type=Path,
        metavar="DIR",
        help="folders of experiments (the --output of `unetdiff experiment`), a section of the page for each",
    )
    parser.add_argument("--output", type=Path, default=Path("report.html"), help="the page")
    given = parser.parse_strictly(argv)
    if not given.runs and not given.experiments:
        raise UserError("compare has nothing to show; give run directories, or --with the folder of an experiment")
    for run in given.runs:
        if not (run / "config.yaml").is_file():
            raise UserError(f"{run}: no run directory (it has no config.yaml); give what training.output_dir named")

    from unetdiff.reports.report import write_report

    write_report(given.runs, given.output, experiments=given.experiments)
    print(given.output)
    return 0
