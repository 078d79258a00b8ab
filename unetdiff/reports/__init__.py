"""What the two heads share: any runs side by side on one page, and the quickstart that makes its first one."""

from __future__ import annotations

from unetdiff.reports.report import write_report
from unetdiff.reports.runs import Run, read_run, read_runs

__all__ = ["Run", "read_run", "read_runs", "write_report"]
