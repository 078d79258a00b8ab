"""`unetdiff quickstart`: both heads on the embedded set, and one page that shows them side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unetdiff.cli.parser import Parser
from unetdiff.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Run the quickstart; prints where the page is."""
    parser = Parser("unetdiff quickstart", "Train a segmenter, a denoiser and both jointly on the embedded set.")
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart"), help="folder of runs and page")
    parser.add_argument(
        "--resume", action="store_true", help="as without it: what was interrupted goes on, what is done is kept"
    )
    parser.add_argument("--overwrite", action="store_true", help="begin anew")
    parser.add_argument("--tiny", action="store_true", help="a few steps of a small network: does it run at all?")
    given = parser.parse_strictly(argv)
    if given.resume and given.overwrite:
        raise UserError("--resume and --overwrite contradict each other; give one of the two")

    from unetdiff.reports.quickstart import run

    report = run(given.output, overwrite=given.overwrite, tiny=given.tiny)
    print(report)
    return 0
