"""A command in a process of its own without the seconds that a new interpreter needs to import torch: by fork."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch


class Forked:
    """A forked process in a session of its own, with the part of `subprocess.Popen` that the tests use.

    A CPU's autograd and a single OpenMP thread survive a fork; the tests run with one.

    Args:
        command: called in the process; its result is the exit status.
        folder: for what the process writes to its streams.
    """

    def __init__(self, command: Callable[[], int], folder: Path) -> None:
        self.errors, self.returncode = folder / "stderr.txt", None
        self.pid = os.fork()
        if self.pid:
            return
        status = 70
        try:
            os.setsid()
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            for stream, name in ((1, "stdout.txt"), (2, "stderr.txt")):
                os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
            torch.set_num_threads(1)
            status = command()
        finally:
            os._exit(status)

    returncode: int | None

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float = 120.0) -> int:
        """Its exit status once it has ended."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            assert time.monotonic() < deadline, "the process did not end"
            time.sleep(0.01)
        return self.returncode  # type: ignore[return-value]

    def send_signal(self, number: int) -> None:
        """Send a signal to this process, not to its children."""
        os.kill(self.pid, number)

    def stderr(self) -> str:
        """What it has written so far."""
        return self.errors.read_text()


def run_main(words: Sequence[str], folder: Path) -> Forked:
    """`python -m unetdiff WORDS` in a forked process."""

    def command() -> int:
        import sys

        from unetdiff.cli.main import main

        # pytest has put its own objects in their place
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        try:
            return main(words)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()

    return Forked(command, folder)
