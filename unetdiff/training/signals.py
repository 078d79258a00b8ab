"""Ctrl-C, SIGTERM and SIGHUP stop a run after the current step, with a checkpoint; a second one ends it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from accelerate import Accelerator

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def signal_name(number: int) -> str:
    """ "Ctrl-C" for SIGINT, the name of another signal."""
    if number == signal.SIGINT:
        return "Ctrl-C"
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class StopRequest:
    """The signal received, if any; a handler for `signal.signal`."""

    number: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            raise KeyboardInterrupt
        self.number = number


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Handle these signals inside the context (main thread only; a no-op in others).

    An ignored SIGHUP stays so: `nohup` ignores it.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    hangup_ignored = "SIGHUP" in dir(signal) and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    handled = [number for number in SIGNALS if not (number.name == "SIGHUP" and hangup_ignored)]
    previous = {number: signal.signal(number, request) for number in handled}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def any_stopped(request: StopRequest, accelerator: Accelerator) -> bool:
    """Whether any process received a stop signal. Collective."""
    stopped = request.number is not None
    if accelerator.num_processes > 1:
        flag = torch.tensor(float(stopped), device=accelerator.device)
        stopped = bool(accelerator.reduce(flag, reduction="sum") > 0)
    return stopped


def ignore_signals(worker: int) -> None:
    """`worker_init_fn` of a DataLoader: a terminal's Ctrl-C also reaches the workers, and the current step still needs
    their batches. They end with the main process."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
