"""A long run stays flat: memory and open files of a joint training, sampled over thousands of steps.

    python benchmarks/soak.py --steps 2000                       # some minutes on one core

A tiny joint run on the scenes with validations, previews and checkpoints, in a process of its own. Prints the means of
the second and of the last quarter of the samples (the first one warms up) and the slope of a fitted line; exits with 1
if memory grew by more than 2 % or a file stayed open.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

from attacks import material
from attacks.process import command, preload, resident, run_forked

GROWTH = 0.02
"""Relative growth of resident memory, from the second to the last quarter, that is still called flat."""


def samples_of(argv: tuple[str, ...], folder: Path, every: float, limit: float) -> tuple[int | None, np.ndarray]:
    """Run a command; its exit status, and rows (seconds, resident bytes, open files), (samples, 3)."""
    log = folder.with_name("samples.csv")

    def run() -> int:
        start = time.monotonic()
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def watch() -> None:
            while True:
                files = len(os.listdir("/proc/self/fd"))
                os.write(handle, f"{time.monotonic() - start:.3f},{resident(os.getpid())},{files}\n".encode())
                time.sleep(every)

        threading.Thread(target=watch, daemon=True).start()
        return command(argv)()

    result = run_forked(run, folder, folder.with_name("streams"), limit)
    if result.status != 0:
        print(result.stderr, file=sys.stderr)
    return result.status, np.loadtxt(log, delimiter=",", ndmin=2)


def report(samples: np.ndarray, steps: int) -> tuple[str, bool]:
    """The table, and whether both are flat; samples (count, 3) as of `samples_of`."""
    quarter = max(1, len(samples) // 4)
    second, last = samples[quarter : 2 * quarter], samples[-quarter:]
    lines = ["| | second quarter | last quarter | slope per 1,000 steps |", "|---|---|---|---|"]
    flat = True
    for column, name, unit, allowed in ((1, "resident memory, MB", 1e6, GROWTH), (2, "open files", 1, 0.0)):
        before, after = second[:, column].mean() / unit, last[:, column].mean() / unit
        place = np.linspace(0.25, 1, len(samples) - quarter) * steps / 1000
        slope = np.polyfit(place, samples[quarter:, column] / unit, 1)[0]
        lines.append(f"| {name} | {before:.1f} | {after:.1f} | {slope:+.2f} |")
        flat &= bool(after <= before * (1 + allowed) + (1 if column == 2 else 0))
    return "\n".join(lines), flat


def build_parser() -> argparse.ArgumentParser:
    """The script's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="optimizer steps (default: 2000)")
    parser.add_argument("--every", type=float, default=0.25, help="seconds between samples (default: 0.25)")
    parser.add_argument("--validate_every", type=int, default=50, help="steps between validations and checkpoints")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Train and sample; returns 1 unless both are flat."""
    args = build_parser().parse_args(argv)
    root = Path(mkdtemp(prefix="soak-"))
    preload()
    material.make(root / "material", [])
    every = str(args.validate_every)
    words = ("--training.steps", str(args.steps), "--training.validate_every", every)
    words = (*words, "--training.checkpoint_every", every, "--training.log_every", "10")
    start = time.monotonic()
    status, samples = samples_of(
        ("train", "joint", "joint.yaml", "--output_dir", "run", *words), root / "material", args.every, 3600
    )
    table, flat = report(samples, args.steps)
    print(f"{table}\n\n{args.steps} steps, {len(samples)} samples in {(time.monotonic() - start) / 60:.1f} minutes")
    shutil.rmtree(root, ignore_errors=True)
    return 0 if status == 0 and flat else 1


if __name__ == "__main__":
    sys.exit(main())
