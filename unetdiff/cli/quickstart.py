"""`unetdiff quickstart`: train segmentation, diffusion and both jointly on the embedded scenes; one report."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unetdiff.cli.parser import Parser
from unetdiff.config.quickstart import TASKS, quickstart_configs
from unetdiff.config.schema import RunConfig, Task
from unetdiff.errors import UserError
from unetdiff.files.records import read_object
from unetdiff.files.writing import require_writable
from unetdiff.text import aligned

TITLE = "One U-Net, two heads: the quickstart"
REPORT_STEPS = 20
"""Denoising steps of the samples in the report: fewer than in `unetdiff compare`, to save time."""


def main(argv: Sequence[str]) -> int:
    """Run the quickstart; prints the path of the report."""
    parser = Parser("unetdiff quickstart", "Train a segmenter, a denoiser and both jointly on the embedded scenes.")
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart"), help="folder for runs and report")
    parser.add_argument(
        "--resume", action="store_true", help="the default: resume interrupted runs and keep finished ones"
    )
    parser.add_argument("--overwrite", action="store_true", help="delete existing runs and train from scratch")
    parser.add_argument("--tiny", action="store_true", help="a smoke test: a few steps of a small network")
    args = parser.parse_strictly(argv)
    if args.resume and args.overwrite:
        raise UserError("--resume: must not be combined with --overwrite. Choose one of the two.")
    print(run(args.output, overwrite=args.overwrite, tiny=args.tiny))
    return 0


def run(output: Path, overwrite: bool = False, tiny: bool = False) -> Path:
    """Train what is missing in `output`, write report.html there and print its main metrics; returns the report.

    Runs finished with the same config are kept and interrupted ones are resumed, so a second call is quick.
    `overwrite` trains all of them from scratch.

    Raises:
        UserError: a folder of `output` holds a run of another config.
    """
    from unetdiff.console import say
    from unetdiff.reports.report import write_report
    from unetdiff.reports.samples import Budget
    from unetdiff.training.run_cache import run_state

    output = require_writable("--output", output, folder=True)
    configs = quickstart_configs(output, tiny)
    states = {task: "new" if overwrite else run_state(output / task, config) for task, config in configs.items()}
    command = f"unetdiff quickstart --output {output}" + (" --tiny" if tiny else "")
    missing: dict[Task, RunConfig] = {}
    for task, config in configs.items():
        if states[task] == "finished":
            say(f"{task}: already finished, kept", sys.stdout)
            continue
        missing[task] = config
        config.training.overwrite = overwrite
        config.training.resume = states[task] == "interrupted"
        say(
            f"{task}: {'resuming' if config.training.resume else 'training'}, {config.training.steps} steps", sys.stdout
        )
    _train(missing, command)

    page = output / "report.html"
    if set(states.values()) != {"finished"} or not is_newer(page, [output / task / "summary.json" for task in TASKS]):
        say("report: sampling and evaluating", sys.stdout)
        budget = Budget(steps=REPORT_STEPS)
        if tiny:
            budget = Budget(images=10, steps=2, classifier_steps=4, rows=2)
        runs = [output / task for task in TASKS]
        write_report(runs, page, TITLE, budget=budget, command=command, cache=output / ".classifiers")
    say(metrics_table(read_object(page.with_suffix(".json"))), sys.stdout)
    return page


def _train(configs: Mapping[Task, RunConfig], command: str) -> None:
    """Train these runs: on a CPU with several threads, the joint one and the others at the same time."""
    import torch

    from unetdiff.training.side_by_side import train_side_by_side
    from unetdiff.training.trainer import train

    lanes: list[dict[str, RunConfig]] = [
        {task: config for task, config in configs.items() if (task == "joint") == joint} for joint in (False, True)
    ]
    threads = torch.get_num_threads()
    if all(lanes) and threads > 1 and not torch.accelerator.is_available():
        train_side_by_side(lanes, threads, command)
        return
    for config in configs.values():
        train(config, command=command)


def is_newer(page: Path, others: list[Path]) -> bool:
    """Whether a page and its JSON exist and none of the others was written after it."""
    if not (page.is_file() and page.with_suffix(".json").is_file()):
        return False
    return all(other.stat().st_mtime <= page.stat().st_mtime for other in others)


def metrics_table(report: Mapping[str, Any]) -> str:
    """The main metrics of report.json as a table for the terminal."""
    from unetdiff.reports.table import DASH, fraction, minutes, percent

    columns = (
        ("time", "minutes", minutes),
        ("mIoU", "segmentation.mean_iou", fraction),
        ("pixel accuracy", "segmentation.pixel_accuracy", fraction),
        ("class consistency", "diffusion.class_consistency", percent),
    )
    rows = [["", *(title for title, _, _ in columns)]]
    for entry in report["runs"]:
        values = [entry["metrics"].get(key) for _, key, _ in columns]
        cells = [DASH if value is None else text(value) for value, (_, _, text) in zip(values, columns, strict=True)]
        rows.append([entry["name"], *cells])
    return "\n" + "\n".join(aligned(rows)) + "\n"
