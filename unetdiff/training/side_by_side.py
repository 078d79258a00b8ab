"""Several trainings at the same time, each in a process of its own with its share of the CPU's threads.

Small networks leave a part of several threads waiting: two trainings with one thread each end sooner than one after the
other with two. A process that trains is a process group of its own, so that Ctrl-C reaches it once, by way of the
process that started it; and it stops with a checkpoint when that one is gone.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Collection, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from unetdiff.config.schema import RunConfig
from unetdiff.console import Console
from unetdiff.errors import TrainingStopped, in_one_line
from unetdiff.training.signals import signal_name, stop_on_signals

Lane = Mapping[str, RunConfig]
"""Configs of runs that are trained one after the other, by the names that their lines begin with."""
POLL_SECONDS = 0.5


def train_side_by_side(lanes: Sequence[Lane], threads: int, command: str | None = None) -> None:
    """Train the runs of all lanes, the lanes at the same time.

    Args:
        lanes: at least one; each is a process.
        threads: of all lanes together.
        command: as of `train`.

    Raises:
        UserError: of the first run that cannot be trained; the others are stopped with a checkpoint.
        TrainingStopped: likewise; or a signal has stopped all of them.
    """
    context = multiprocessing.get_context("spawn")
    share, started = max(1, threads // len(lanes)), []
    failure: Exception | None = None
    with stop_on_signals() as stop:
        for lane in lanes:
            ours, theirs = context.Pipe()
            process = context.Process(target=_train_lane, args=(dict(lane), share, command, theirs))
            process.start()
            theirs.close()  # so that `ours` ends with the process
            started.append((process, ours))
        running = dict(started)
        while running:
            ready = wait([process.sentinel for process in running], POLL_SECONDS)
            ended = {process: running.pop(process) for process in list(running) if process.sentinel in ready}
            for process, pipe in ended.items():
                process.join()  # its sentinel may be ready before its exit code is
                with pipe:
                    if process.exitcode and failure is None:
                        failure = _failure(pipe)
            if failure is not None or stop.number is not None:
                _stop(running)
    if stop.number is not None:
        message = f"Stopped by {signal_name(stop.number)}. The same command continues from the last checkpoints."
        raise TrainingStopped(message, 128 + stop.number)
    if failure is not None:
        raise failure


def _stop(running: Collection[BaseProcess]) -> None:
    """Ask processes to stop with a checkpoint, and wait for them."""
    for process in running:
        process.terminate()
    for process in running:
        process.join()


def _failure(pipe: Connection) -> Exception:
    """What a process reported before it ended with an error."""
    try:
        found: Exception = pipe.recv()
    except (EOFError, OSError):
        return TrainingStopped("A training ended without a message. The same command continues it.")
    return found


def _train_lane(lane: Lane, threads: int, command: str | None, pipe: Connection) -> None:
    """The process of a lane."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # before torch is imported
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    threading.Thread(target=_stop_when_closed, args=(pipe,), daemon=True).start()
    import torch

    from unetdiff.training.trainer import train

    torch.set_num_threads(threads)
    try:
        for name, config in lane.items():
            sys.stderr = Prefixed(sys.__stderr__, f"{name}: ")  # type: ignore[assignment]
            train(config, command=command)
    except Exception as error:
        known = in_one_line(error)
        if known is None:
            raise
        pipe.send(known)
        sys.exit(1)


def _stop_when_closed(pipe: Connection) -> None:
    """End the training, with a checkpoint, when the process that started it is gone."""
    try:
        pipe.recv()
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)


class Prefixed(Console):
    """A text stream that is not a terminal, each of whose lines begins with the name of its run."""

    def __init__(self, stream: Any, prefix: str) -> None:
        super().__init__(stream)
        self.prefix, self.line = prefix, ""

    def write(self, text: str) -> int:
        *lines, self.line = (self.line + text).split("\n")
        for line in lines:
            super().write(f"{self.prefix}{line}\n" if line else "\n")
        return len(text)

    def isatty(self) -> bool:
        return False
