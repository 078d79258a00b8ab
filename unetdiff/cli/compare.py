"""`unetdiff compare RUN RUN ... --experiments DIR ...`: a report that compares runs and shows experiments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unetdiff.cli.model_path import local_directory
from unetdiff.cli.parser import Parser
from unetdiff.config.model_directory import no_model
from unetdiff.errors import UserError, printable


def main(argv: Sequence[str]) -> int:
    """Write the report; prints its path."""
    parser = Parser("unetdiff compare", "Write a self-contained HTML report that compares runs and shows experiments.")
    parser.add_argument(
        "runs",
        nargs="*",
        type=Path,
        metavar="RUN",
        help="run directories, or OWNER/NAME on the Hub; none: only experiments",
    )
    parser.add_argument(
        "--experiments",
        nargs="+",
        default=[],
        type=Path,
        metavar="DIR",
        help="folders of experiments (--output of `unetdiff experiment`); each becomes a section of the report",
    )
    parser.add_argument("--output", type=Path, default=Path("report.html"), help="the HTML file")
    args = parser.parse_strictly(argv)
    if not args.runs and not args.experiments:
        raise UserError("nothing to show. Give run directories, or --experiments DIR.")
    runs = [local_directory(run, "RUN") for run in args.runs]
    for run in runs:
        if not (run / "config.yaml").is_file() and not (run / "model_index.json").is_file():
            raise no_model(run)

    from unetdiff.reports.report import write_report

    write_report(runs, args.output, experiments=args.experiments)
    print(printable(str(args.output)))
    return 0
