"""One optimizer step is one batch: the weights after training in one process, in two, and with gradient accumulation.

Each case is trained with the same batches cut in four ways; the table has the largest difference of a weight from that
of one process without accumulation. Data and text encoders are made up, widths and sizes are small, everything else is
as shipped.

OMP_NUM_THREADS=1 python benchmarks/one_step.py
OMP_NUM_THREADS=1 python benchmarks/one_step.py joint/scenes OHEM --dtype float64
"""

from __future__ import annotations

import argparse
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, multiprocessing

from suite.one_step import CASES, Case, make_data
from unetdiff.training.step import optimizer_step
from unetdiff.training.trainer import Trainer


def trained(case: Case, root: Path, accumulation: int, dtype: torch.dtype, steps: int) -> dict[str, Tensor]:
    """The weights and buffers after `steps` steps, in float64; in every process that calls it."""
    config = case.config(root, steps, accumulation)
    trainer = Trainer(config, None)
    if dtype != torch.float32:
        trainer.task.to(dtype)
        trainer._wrap()  # again: DDP's buffers have the type of the weights
    settings = trainer.config.training
    batches = trainer.data.batches(settings, 0, steps, trainer.lr.strong_until, trainer.accelerator)
    for step in range(steps):
        trainer._freeze()
        trainer.lr.set(trainer.optimizer, step)
        trainer.task.set_progress(step / steps)
        losses, _, _ = optimizer_step(
            trainer.model, trainer.prepared_optimizer, batches, step, settings, trainer.accelerator, trainer.layers
        )
        if not losses["loss"].isfinite():
            raise RuntimeError(f"the loss of step {step} is not finite")
    weights = {name: value.detach().double().clone() for name, value in trainer.task.state_dict().items()}
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    return weights


def differences(one: dict[str, Tensor], other: dict[str, Tensor]) -> tuple[float, str]:
    """The largest difference of a number, and the tensor that has it."""
    by_name = {name: float((one[name] - other[name]).abs().max()) for name in one if one[name].numel()}
    worst = max(by_name, key=by_name.__getitem__)
    return by_name[worst], worst


def two_processes(rank: int, port: int, names: list[str], root: str, dtype: torch.dtype, steps: int) -> None:
    """Trains all cases in one of two processes; the first one saves the weights."""
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    os.environ |= environment | ranks
    torch.set_num_threads(1)
    for name in names:
        weights = trained(CASES[name], Path(root), 1, dtype, steps)
        if rank == 0:
            torch.save(weights, Path(root) / f"{name.replace('/', '-')}.pt")
    torch.distributed.destroy_process_group()


def compare(
    names: list[str],
    root: Path,
    dtype: torch.dtype,
    steps: int,
    accumulations: Sequence[int] = (2, 4),
    start_method: str = "spawn",
) -> Iterator[tuple[str, str, float, str]]:
    """(case, cut, largest difference, its tensor) of each; `start_method` is that of the two processes."""
    make_data(root, [CASES[name] for name in names])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = (port, names, str(root), dtype, steps)
    processes = multiprocessing.start_processes(two_processes, arguments, 2, join=False, start_method=start_method)
    for name in names:
        one = trained(CASES[name], root, 1, dtype, steps)
        for parts in accumulations:
            yield name, f"accumulation {parts}", *differences(one, trained(CASES[name], root, parts, dtype, steps))
        torch.save(one, root / f"{name.replace('/', '-')}-one.pt")
    while not processes.join():
        pass
    for name in names:
        one, two = (torch.load(root / f"{name.replace('/', '-')}{end}.pt") for end in ("-one", ""))
        yield name, "2 processes", *differences(one, two)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"default: all of {', '.join(CASES)}")
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps (default: 30)")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="default: float32")
    args = parser.parse_args()
    os.environ["UNETDIFF_NO_BAR"] = "1"
    began = time.perf_counter()
    print("| case | cut | largest difference | tensor |\n|---|---|---|---|")
    with TemporaryDirectory() as folder:
        for name, cut, value, tensor in compare(
            args.cases or list(CASES), Path(folder), getattr(torch, args.dtype), args.steps
        ):
            print(f"| {name} | {cut} | {value:.1e} | {tensor} |", flush=True)
    print(f"\n{args.dtype}, {args.steps} steps, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
