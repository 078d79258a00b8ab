"""`accelerate launch --cpu --num_processes N` starts a single process, whatever N (huggingface/accelerate issue 2741).

It does say, in the environment of the one that it starts, that there should be several. What was asked for is then read
from the launcher's own command line, by the launcher's own parser, and started by torch's launcher.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from unetdiff.errors import UserError


def lone_of_several(environment: Mapping[str, str]) -> bool:
    """Whether this process is the only one of several that were asked for on a CPU."""
    on_cpu = environment.get("ACCELERATE_USE_CPU", "").lower() == "true"
    return on_cpu and "MASTER_PORT" in environment and "RANK" not in environment and "PMI_RANK" not in environment


def asked_processes(launcher: Sequence[str]) -> int:
    """`--num_processes` of an `accelerate launch` command line; 1 where it is none."""
    from accelerate.commands.launch import launch_command_parser

    words = list(launcher)
    if "launch" in words:
        words = words[words.index("launch") + 1 :]
    else:
        starts = [i for i, word in enumerate(words) if "launch" in word]
        words = words[starts[0] + 1 :] if starts else []
    try:
        given, _ = launch_command_parser().parse_known_args(words)
    except SystemExit:
        return 1
    return given.num_processes or 1


def torch_launch(processes: int, port: str, argv: Sequence[str]) -> list[str]:
    """The command that starts `unetdiff ARGV` in that many processes on this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    return [*launcher, "--master_addr", "127.0.0.1", "--master_port", port, "-m", "unetdiff", *argv]


def start_the_others(argv: Sequence[str]) -> None:
    """Replace this process by the several that were asked for; returns where one was asked for.

    Raises:
        UserError: several were asked for, but how many cannot be read.
    """
    if not lone_of_several(os.environ):
        return
    import psutil  # comes with accelerate

    processes = asked_processes(psutil.Process().parent().cmdline())  # type: ignore[union-attr]
    if processes < 2:
        raise UserError(
            "accelerate launch --cpu started one process of several; start them with "
            "`torchrun --nproc_per_node N -m unetdiff ...`"
        )
    command = torch_launch(processes, os.environ["MASTER_PORT"], argv)
    os.execv(command[0], command)
