"""`accelerate launch --cpu --num_processes N` starts a single process for any N (huggingface/accelerate issue 2741).

That process's environment shows that several were requested. Their number is read from the launcher's command line,
with the launcher's own parser, and torch's launcher starts them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from unetdiff.errors import UserError


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
