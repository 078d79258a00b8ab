"""`unetdiff benchmark CONFIG|RUN`: how fast a network trains, predicts and draws on this machine, by batch size."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unetdiff.cli.parser import Parser, split_overrides
from unetdiff.errors import UserError
from unetdiff.files import require_folder

USAGE = "unetdiff benchmark {CONFIG,RUN} [--batch_sizes N ...] [--output FILE] [--key value ...]"


def main(argv: Sequence[str]) -> int:
    """Measure and print a table in Markdown. Raises UserError for a model, data or a device that cannot be used."""
    parser = build_parser()
    overrides, words = split_overrides(argv, known=[])
    given = parser.parse_strictly(words)
    if not given.path.exists():
        raise UserError(f"no file or directory '{given.path}'; give a config file or a run directory")
    for name, least in {"rounds": 1, "warmups": 0, "steps": 1, "batch_sizes": 1}.items():
        value = min(given.batch_sizes or [1]) if name == "batch_sizes" else getattr(given, name)
        if value < least:
            raise UserError(f"--{name}: {value} is too small; give {least} or more")

    from unetdiff.benchmark import peak_throughput
    from unetdiff.benchmark.device import machine_info, select_device
    from unetdiff.benchmark.run_benchmark import BenchmarkTarget, run_benchmark
    from unetdiff.benchmark.table import peak_line, rows
    from unetdiff.evaluation.types import SamplingConfig
    from unetdiff.text import markdown

    if given.output is not None:
        require_folder(given.output, "--output: ")
    device = select_device(given.device)
    target = BenchmarkTarget(given.path, overrides)
    machine, peak_flops = machine_info(), peak_throughput.measure_peak_flops(device)
    parts = target.task.unet.parameter_counts()
    print(
        f"{given.path}: {sum(parts.values()) / 1e6:.2f} M parameters, {machine['device']}, "
        f"{machine['threads']} threads; {peak_line(peak_flops)}\n"
    )
    sizes = sorted(given.batch_sizes or up_to(target.config.training.batch_size))
    sampling, measured = SamplingConfig(given.steps, given.guidance), []
    for one in run_benchmark(target, sizes, peak_flops, device, given.rounds, given.warmups, sampling, given.memory):
        measured.append(one)
        print(f"{one.kind}, batch {one.batch_size}: {one.images_per_second:.4g} images/s", file=sys.stderr)
    print("\n".join(markdown(rows(measured))))
    if given.output is not None:
        result: dict[str, Any] = {"model": str(given.path), "parameters": parts, "machine": machine}
        result |= {"peak_flops": peak_flops, "rounds": given.rounds, "measured": [asdict(one) for one in measured]}
        given.output.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def build_parser() -> Parser:
    """What the command takes."""
    parser = Parser(
        "unetdiff benchmark", "Time a network on this machine, on its own data: training step, masks, samples.", USAGE
    )
    parser.add_argument("path", type=Path, help="a config file (fresh weights), or a run directory")
    parser.add_argument(
        "--batch_sizes", type=int, nargs="+", metavar="N", help="none given: 1, 4, 16, ... up to training.batch_size"
    )
    parser.add_argument("--rounds", type=int, default=10, help="timed rounds; figures are their medians")
    parser.add_argument("--warmups", type=int, default=3, help="rounds before them that are not timed")
    parser.add_argument("--steps", type=int, default=50, help="denoising steps of samples")
    parser.add_argument("--guidance", type=float, default=2.0, help="guidance of samples; 1: none, half the work")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="none given: what training takes here")
    parser.add_argument(
        "--no-memory", "--no_memory", dest="memory", action="store_false", help="measure no memory (quicker)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write every figure there as JSON")
    return parser


def up_to(most: int) -> list[int]:
    """Batch sizes: the powers of four below `most`, and `most`."""
    sizes = [4**power for power in range(most.bit_length()) if 4**power < most]
    return [*sizes, most]
