"""Several processes: starting them, and one message where one or all of them fail.

`accelerate launch --cpu --num_processes N` starts a single process for any N (huggingface/accelerate issue 2741). That
process's environment shows that several were requested. Their number is read from the launcher's command line, with the
launcher's own parser, and torch's launcher starts them.

A process whose peer is gone fails in its next collective operation (gloo), or the launcher ends it. Which process
reports is decided at the launcher's store, which outlives them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta

from unetdiff.errors import AnotherProcessFailed, TrainingStopped, UserError

FAILED = "unetdiff/failed"
"""The store's counter of processes that failed."""
LOST_CONNECTION = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe")
"""Parts of torch's messages where a peer is gone (mostly RuntimeErrors, without a class of their own)."""


def needs_relaunch(environment: Mapping[str, str]) -> bool:
    """Whether several processes were requested on a CPU and this is the only one."""
    on_cpu = environment.get("ACCELERATE_USE_CPU", "").lower() == "true"
    return on_cpu and "MASTER_PORT" in environment and "RANK" not in environment and "PMI_RANK" not in environment


def requested_processes(launcher: Sequence[str]) -> int:
    """`--num_processes` of an `accelerate launch` command line; 1 without one."""
    from accelerate.commands.launch import launch_command_parser

    words = list(launcher)
    if "launch" in words:
        words = words[words.index("launch") + 1 :]
    else:
        indices = [i for i, word in enumerate(words) if "launch" in word]
        words = words[indices[0] + 1 :] if indices else []
    try:
        args, _ = launch_command_parser().parse_known_args(words)
    except SystemExit:
        return 1
    return args.num_processes or 1


def torch_launch(processes: int, port: str, argv: Sequence[str]) -> list[str]:
    """The command that runs `unetdiff ARGV` in so many processes on this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    return [*launcher, "--master_addr", "127.0.0.1", "--master_port", port, "-m", "unetdiff", *argv]


def relaunch_on_cpu(argv: Sequence[str]) -> None:
    """Replace this process by the requested number of processes; returns if that is one.

    Raises:
        UserError: several were requested, but their number cannot be read.
    """
    if not needs_relaunch(os.environ):
        return
    import psutil  # comes with accelerate

    processes = requested_processes(psutil.Process().parent().cmdline())  # type: ignore[union-attr]
    if processes < 2:
        raise UserError(
            "accelerate launch --cpu started one process instead of several. Use "
            "`torchrun --nproc_per_node N -m unetdiff ...`."
        )
    command = torch_launch(processes, os.environ["MASTER_PORT"], argv)
    os.execv(command[0], command)


def require_single_process(command: str) -> None:
    """Refuse to run a command in several processes, which would write the same files.

    Raises:
        UserError: started by a launcher of several processes.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1" or needs_relaunch(os.environ):
        raise UserError(f"{command}: must run in a single process. Start it without torchrun or accelerate launch.")


def is_main_process() -> bool:
    """Whether this is the process that prints."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def report_once() -> Iterator[None]:
    """Let the error of the first process that fails pass; no effect on a single process.

    Raises:
        AnotherProcessFailed: instead of the error of any further process.
        TrainingStopped: a peer ended without a message; it was killed, for example.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if os.environ.get("WORLD_SIZE", "1") == "1":
            raise
        lost = _lost_connection(error)
        if not _is_first_failure(lost):
            raise AnotherProcessFailed from error
        if lost:
            raise TrainingStopped(
                "Another process of this run ended without a message. "
                "Add --resume to the command to continue from the latest checkpoint."
            ) from error
        raise


def _is_first_failure(lost: bool) -> bool:
    """Whether no other process has failed; if the store is gone: whether this is the main one, on its own fault."""
    from torch.distributed import TCPStore

    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, None, False, timedelta(seconds=5), wait_for_workers=False)
        return bool(store.add(FAILED, 1) == 1)
    except (KeyError, ValueError, RuntimeError):
        return is_main_process() and not lost


def _lost_connection(error: BaseException) -> bool:
    if not isinstance(error, RuntimeError) or isinstance(error, TrainingStopped):
        return False
    return any(part in str(error).lower() for part in LOST_CONNECTION)
