"""Progress lines outside of a terminal, and a bar where it is one."""

from __future__ import annotations

import io
import re

import pytest

from unetdiff import console
from unetdiff.console import duration, progress_bar


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_thirty_seconds(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    for item in progress_bar(range(40), desc="sampling", unit="batch"):
        clock[0] += 5 if item < 13 else 1  # five seconds a batch: at 6 and 12; then one
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "sampling: 6/40 batches (15 %), 0.2 batches/s, ETA 2 min 50 s"
    assert lines[1].startswith("sampling: 12/40 batches (30 %), 0.2 batches/s, ETA 2 min 20 s")
    assert len(lines) == 3


def test_the_status_stands_for_the_speed(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(total=5000, initial=1000, status=lambda: "loss 0.5, lr 1.00e-03, 35 images/s") as bar:
        clock[0] += 29
        bar.update(20)
        assert not capsys.readouterr().err  # a short task says nothing
        clock[0] += 11
        bar.update(20)
    # 40 steps in 40 seconds, 3,960 to go
    line = "1040/5000 steps (21 %), loss 0.5, lr 1.00e-03, 35 images/s, ETA 1 h 6 min"
    assert capsys.readouterr().err.splitlines() == [line]


def test_a_bar_in_a_terminal_and_nothing_where_it_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    assert list(progress_bar([1, 2, 3], desc="things")) == [1, 2, 3]
    assert re.search(r"things: 100%.*3/3", terminal.getvalue())
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    assert list(progress_bar([1, 2, 3], enabled=False)) == [1, 2, 3]
    monkeypatch.setenv("UNETDIFF_NO_BAR", "1")
    assert list(progress_bar([1, 2, 3])) == [1, 2, 3]
    assert terminal.getvalue() == ""


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0.4, 59.6, 200, 4000)] == ["0 s", "1 min 0 s", "3 min 20 s", "1 h 6 min"]
