"""Stable Diffusion 1.5's size (860 M parameters, random weights): seconds and memory of training steps, and arithmetic.

    python benchmarks/stable_diffusion_size.py --dry                    the arithmetic alone, in a second
    python benchmarks/stable_diffusion_size.py --cases LoRA             measure one case
    python benchmarks/stable_diffusion_size.py --precision no --size 256

Each case is measured in a process of its own by the trainer's step on one image of latents; a case is left out where
less memory is available than its arithmetic needs. Autoencoder and text encoder are not included: latents and prompt
embeddings are computed once. Prints two tables in Markdown: seconds and peak memory, and the arithmetic by purpose.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from suite.sd_size import CASES, STABLE_DIFFUSION, Need, measure, need
from unetdiff.benchmark.memory import run_in_subprocess
from unetdiff.training.runtime import precision

GIB = 2**30
MARGIN = 1.5 * GIB
"""For the process itself and the allocator, next to the arithmetic."""
GPU = 24 * 1e9
"""Memory of a common GPU."""


def available() -> float | None:
    """Bytes of memory that can be taken: of the GPU, or MemAvailable; None where the system does not report it."""
    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0])
    file = Path("/proc/meminfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def arithmetic(needs: dict[str, Need]) -> str:
    """A table of gigabytes (10⁹ bytes) by purpose."""
    rows = [
        "| trained | parameters | weights | autocast's copies | gradients | AdamW | activations | sum | of 24 GB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in needs.items():
        parts = (one.weights, one.casts, one.gradients, one.moments, one.activations, one.total)
        cells = " | ".join(f"{part / 1e9:.2f}" for part in parts)
        rows.append(f"| {name} | {one.trained / 1e6:.1f} M | {cells} | {one.total / GPU:.0%} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES), help="default: all")
    parser.add_argument("--size", type=int, default=512, help="height and width of the image, a multiple of 64")
    parser.add_argument("--precision", choices=["bf16", "fp16", "no", "auto"], default="bf16")
    parser.add_argument("--steps", type=int, default=2, help="the last one is timed")
    parser.add_argument("--dry", action="store_true", help="the arithmetic alone")
    args = parser.parse_args()
    chosen = precision(args.precision)
    needs = {name: need(name, STABLE_DIFFUSION, args.size, chosen) for name in args.cases}
    total = next(iter(needs.values())).total_parameters
    print(f"{total / 1e6:.1f} M parameters, one image of {args.size} x {args.size}, {chosen}\n\n{arithmetic(needs)}\n")
    if args.dry:
        return
    print("| trained | seconds per step | peak memory | arithmetic |\n|---|---|---|---|", flush=True)
    for name, one in needs.items():
        free = available()
        if free is not None and free < one.total + MARGIN:
            wanted, got = (one.total + MARGIN) / GIB, free / GIB
            print(f"| {name} | not measured: needs {wanted:.1f} GiB, {got:.1f} GiB are available | | |", flush=True)
            continue
        result = run_in_subprocess(measure, name, STABLE_DIFFUSION, args.size, chosen, args.steps)
        peak = "unknown" if result["peak"] is None else f"{result['peak'] / GIB:.1f} GiB"
        print(f"| {name} | {result['seconds']:.1f} | {peak} | {one.total / GIB:.1f} GiB |", flush=True)


if __name__ == "__main__":
    main()
