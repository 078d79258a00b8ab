"""`unetdiff benchmark CONFIG|RUN`: training, prediction and sampling speed on this machine, by batch size."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unetdiff.cli.model_path import local_model
from unetdiff.cli.parser import Parser, split_overrides
from unetdiff.config.shipped import find_config
from unetdiff.errors import printable
from unetdiff.files.records import write_json
from unetdiff.files.writing import file_errors, require_writable

CONFIGS, TASKS = (".yaml", ".yml"), ("segmentation", "diffusion", "joint")
USAGE = "unetdiff benchmark {CONFIG,RUN} [--batch_sizes N ...] [--output FILE] [--key value ...]"


def main(argv: Sequence[str]) -> int:
    """Measure and print a Markdown table.

    Raises:
        UserError: a model, dataset or device that cannot be used.
    """
    parser = build_parser()
    overrides, words = split_overrides(argv, known=[])
    args = parser.parse_strictly(words)
    path = args.path
    is_config = path.is_file() or path.suffix in CONFIGS or path.parts[0] in TASKS or len(path.parts) == 1
    if is_config and not path.is_dir():
        path = args.path = find_config(str(path))
    else:
        path = local_model(path)
    if args.output is not None:
        require_writable("--output", args.output)

    from unetdiff.benchmark import peak_throughput
    from unetdiff.benchmark.device import machine_info, select_device
    from unetdiff.benchmark.run_benchmark import BenchmarkTarget, run_benchmark
    from unetdiff.benchmark.table import peak_line, rows
    from unetdiff.evaluation.types import SamplingConfig
    from unetdiff.text import markdown

    device = select_device(args.device)
    target = BenchmarkTarget(path, overrides)
    machine, peak_flops = machine_info(), peak_throughput.measure_peak_flops(device)
    parts = target.task.unet.parameter_counts()
    print(
        f"{printable(str(args.path))}: {sum(parts.values()) / 1e6:.2f} M parameters, {machine['device']}, "
        f"{machine['threads']} threads; {peak_line(peak_flops)}\n"
    )
    sizes = sorted(args.batch_sizes or batch_sizes_up_to(target.config.training.batch_size))
    sampling, measured = SamplingConfig(args.num_inference_steps, args.guidance_scale), []
    for one in run_benchmark(target, sizes, peak_flops, device, args.rounds, args.warmups, sampling, args.memory):
        measured.append(one)
        if args.output is not None:  # after each, so that a failure keeps the others
            result: dict[str, Any] = {"model": str(args.path), "parameters": parts, "machine": machine}
            result |= {"peak_flops": peak_flops, "rounds": args.rounds, "measured": [asdict(each) for each in measured]}
            with file_errors(args.output):
                write_json(args.output, result)
        print(f"{one.kind}, batch {one.batch_size}: {one.images_per_second:.4g} images/s", file=sys.stderr)
    print("\n".join(markdown(rows(measured))))
    return 0


def build_parser() -> Parser:
    """The command's options."""
    parser = Parser(
        "unetdiff benchmark",
        "Time training steps, predictions and samples of a network on this machine, with its own dataset.",
        USAGE,
    )
    parser.add_argument(
        "path", type=Path, help="a run directory, OWNER/NAME on the Hub, or a config file or TASK/NAME (fresh weights)"
    )
    parser.add_argument(
        "--batch_sizes", type=int, nargs="+", metavar="N", help="default: 1, 4, 16, ... up to training.batch_size"
    )
    parser.add_argument("--rounds", type=int, default=10, help="timed rounds; the median is reported")
    parser.add_argument("--warmups", type=int, default=3, help="untimed rounds before them")
    parser.add_argument("--num_inference_steps", type=int, default=50, help="denoising steps of each sample")
    parser.add_argument("--guidance_scale", type=float, default=2.0, help="1: no guidance, at half the cost")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: the device that training uses")
    parser.add_argument("--no_memory", dest="memory", action="store_false", help="skip the memory measurement (faster)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write all measurements to this JSON file")
    return parser


def batch_sizes_up_to(maximum: int) -> list[int]:
    """The powers of four below `maximum`, and `maximum`."""
    return [*(4**power for power in range(maximum.bit_length()) if 4**power < maximum), maximum]
