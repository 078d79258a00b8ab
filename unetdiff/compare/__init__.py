"""What the two heads share: any runs side by side on one page, and the quickstart that makes its first one."""

from __future__ import annotations

from unetdiff.compare.report import write_report
from unetdiff.compare.runs import Run, read_run, read_runs

__all__ = ["Run", "read_run", "read_runs", "write_report"]
