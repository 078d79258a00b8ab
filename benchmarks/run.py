"""Ours beside its peers on this machine: speed, memory, growth, and the share of what the machine can do.

    pip install segmentation-models-pytorch
    python benchmarks/run.py --output runs/benchmark
    python benchmarks/run.py --only sampling loss --rounds 20
    python benchmarks/run.py --quick            # tiny networks: does everything work?

Both sides of a row run in turns in one process, with the same threads, on the same random images. Writes table.md,
table.json and plot.png after every row. What each row is, and how it is measured: docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import get_args

from suite import plot, table
from suite.cases import denoiser, loss, sampling, segmentation
from suite.cases.case import Case, Setting
from suite.compare import Row, compare
from suite.growth import Growth, grow, plans
from unetdiff.benchmark.ceiling import ceilings
from unetdiff.benchmark.device import claim, facts
from unetdiff.benchmark.timing import ROUNDS, WARMUPS
from unetdiff.errors import UserError
from unetdiff.training.logger import jsonable

WORK: dict[str, Callable[[bool], list[Case]]] = {
    "segmentation-training": segmentation.training_cases,
    "segmentation-inference": segmentation.inference_cases,
    "loss": loss.cases,
    "denoiser-training": denoiser.cases,
    "sampling": sampling.cases,
}
"""Cases by the name of their work; told whether they should be tiny."""
GROWTH = "growth"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*WORK, GROWTH], default=[*WORK, GROWTH], metavar="NAME",
                        help=f"some of {', '.join([*WORK, GROWTH])}")  # fmt: skip
    parser.add_argument("--settings", nargs="+", choices=get_args(Setting), default=get_args(Setting), metavar="NAME",
                        help=f"some of {', '.join(get_args(Setting))}; growth is at best")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="timed rounds")
    parser.add_argument("--warmups", type=int, default=WARMUPS, help="rounds before them that are not timed")
    parser.add_argument("--quick", action="store_true", help="tiny networks and images: figures mean nothing")
    parser.add_argument("--memory", type=int, default=3, metavar="N", help="processes that measure memory; 0: none")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="none given: what training takes here")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark"))
    given = parser.parse_args()
    if given.rounds < 1 or given.warmups < 0:
        parser.error(f"--rounds {given.rounds} --warmups {given.warmups}: give 1 or more rounds, 0 or more warm-ups")
    try:
        measure(given)
    except UserError as error:
        raise SystemExit(f"benchmarks: {error}") from None


def measure(given: argparse.Namespace) -> None:
    """Every row that was asked for, written as it comes."""
    device = claim(given.device)
    machine = facts()
    machine["versions"]["segmentation_models_pytorch"] = version("segmentation_models_pytorch")
    limits = ceilings(device, **({"channels": 16, "side": 16} if given.quick else {}))
    given.output.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    growths: list[Growth] = []

    def write(done: str) -> None:
        print(done, file=sys.stderr, flush=True)
        figures = table.as_json(machine, limits, rows, growths)
        (given.output / "table.json").write_text(json.dumps(jsonable(figures), indent=1) + "\n")
        text = table.as_markdown(machine, limits, rows, growths, given.rounds, given.warmups)
        (given.output / "table.md").write_text(text)
        title = f"{machine['device']}, {machine['threads']} threads, torch {machine['versions']['torch']}"
        plot.draw(given.output / "plot.png", rows, growths, title)

    cases = [case for name in WORK if name in given.only for case in WORK[name](given.quick)]
    for case in [case for case in cases if case.setting in given.settings]:
        rows.append(compare(case, device, limits, given.rounds, given.warmups, given.memory))
        write(f"{case.name}, {case.setting}: {rows[-1].speedup.median:.2f} times as fast")
    for case, axis, values in plans(given.quick) if GROWTH in given.only else []:
        growths.append(grow(case, axis, values, device, given.rounds, given.warmups))
        ours, theirs = growths[-1].laws
        write(f"{growths[-1].name}, against {axis}: exponents {ours.exponent:.2f} and {theirs.exponent:.2f}")
    print((given.output / "table.md").read_text(), end="")
    print(given.output)


if __name__ == "__main__":
    main()
