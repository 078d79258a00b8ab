"""Benchmark of unetdiff against other libraries on this machine: speed, memory, growth, utilization.

    pip install segmentation-models-pytorch
    python benchmarks/run.py --output runs/benchmark
    python benchmarks/run.py --only sampling loss --rounds 20
    python benchmarks/run.py --quick            # tiny networks, to test the command

Both sides of a row are timed interleaved in one process, with the same threads, on the same random images. Writes
table.md, table.json and plot.png after every row. The rows and the method are described in docs/performance.md.
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
from suite.growth import Growth, measure_growth, plans
from unetdiff.benchmark.device import machine_info, select_device
from unetdiff.benchmark.peak_throughput import measure_peak_flops
from unetdiff.benchmark.timing import ROUNDS, WARMUPS
from unetdiff.errors import UserError
from unetdiff.files.records import jsonable

WORK: dict[str, Callable[[bool], list[Case]]] = {
    "segmentation-training": segmentation.training_cases,
    "segmentation-inference": segmentation.inference_cases,
    "loss": loss.cases,
    "denoiser-training": denoiser.cases,
    "sampling": sampling.cases,
}
"""Cases by the name of their work; the argument makes them tiny."""
GROWTH = "growth"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*WORK, GROWTH], default=[*WORK, GROWTH], metavar="NAME",
                        help=f"some of {', '.join([*WORK, GROWTH])}")  # fmt: skip
    parser.add_argument("--settings", nargs="+", choices=get_args(Setting), default=get_args(Setting), metavar="NAME",
                        help=f"some of {', '.join(get_args(Setting))}; growth is measured at best")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="timed rounds")
    parser.add_argument("--warmups", type=int, default=WARMUPS, help="untimed rounds before them")
    parser.add_argument("--quick", action="store_true", help="tiny networks and images, to test the command")
    parser.add_argument("--memory", type=int, default=3, metavar="N", help="subprocesses that measure memory; 0: none")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: the device of training")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark"))
    args = parser.parse_args()
    if args.rounds < 1 or args.warmups < 0:
        parser.error(f"--rounds={args.rounds} --warmups={args.warmups}: must be at least 1 and 0.")
    try:
        measure(args)
    except UserError as error:
        raise SystemExit(f"benchmarks: {error}") from None


def measure(args: argparse.Namespace) -> None:
    """Measure the selected rows, writing the results after each."""
    device = select_device(args.device)
    machine = machine_info()
    machine["versions"]["segmentation_models_pytorch"] = version("segmentation_models_pytorch")
    peaks = measure_peak_flops(device, **({"channels": 16, "size": 16} if args.quick else {}))
    args.output.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    growths: list[Growth] = []

    def write(message: str) -> None:
        print(message, file=sys.stderr, flush=True)
        results = table.as_json(machine, peaks, rows, growths)
        (args.output / "table.json").write_text(json.dumps(jsonable(results), indent=1) + "\n")
        text = table.as_markdown(machine, peaks, rows, growths, args.rounds, args.warmups)
        (args.output / "table.md").write_text(text)
        title = f"{machine['device']}, {machine['threads']} threads, torch {machine['versions']['torch']}"
        plot.draw(args.output / "plot.png", rows, growths, title)

    cases = [case for name in WORK if name in args.only for case in WORK[name](args.quick)]
    for case in [case for case in cases if case.setting in args.settings]:
        rows.append(compare(case, device, peaks, args.rounds, args.warmups, args.memory))
        write(f"{case.name}, {case.setting}: {rows[-1].speedup.median:.2f}× faster")
    for case, axis, values in plans(args.quick) if GROWTH in args.only else []:
        growths.append(measure_growth(case, axis, values, device, args.rounds, args.warmups))
        unetdiff, peer = growths[-1].fits
        write(f"{growths[-1].name}, against {axis}: exponents {unetdiff.exponent:.2f} and {peer.exponent:.2f}")
    print((args.output / "table.md").read_text(), end="")
    print(args.output)


if __name__ == "__main__":
    main()
