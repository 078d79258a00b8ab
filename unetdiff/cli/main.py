"""The `unetdiff` command: dispatches to a subcommand; a UserError becomes one line and exit status 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import unetdiff
from unetdiff.cli.processes import relaunch_on_cpu, report_once, require_single_process
from unetdiff.cli.streams import status_of, tolerant_streams
from unetdiff.errors import (
    AnotherProcessFailed,
    TrainingStopped,
    UserError,
    did_you_mean,
    in_one_line,
    printable,
    shortened,
)

MAX_MESSAGE_CHARS = 2000
# command -> (module with `main(argv) -> exit status`, help); imported when called, which keeps --help fast
COMMANDS = {
    "quickstart": ("unetdiff.cli.quickstart", "train both heads on the embedded scenes and write a report"),
    "init": ("unetdiff.cli.init", "look at a folder of data and write a config that trains on it"),
    "train": ("unetdiff.cli.train", "train segmentation, diffusion or both jointly from a config file"),
    "configs": ("unetdiff.cli.configs", "list the configs of the package, or print one"),
    "evaluate": ("unetdiff.cli.evaluate", "evaluate a trained model on a split"),
    "predict": ("unetdiff.cli.predict", "predict masks and overlays for images, folders, globs and videos"),
    "sample": ("unetdiff.cli.sample", "sample images, unconditionally or by class, text, layout or image"),
    "experiment": ("unetdiff.cli.experiment", "run an experiment on what the two heads share"),
    "compare": ("unetdiff.cli.compare", "write a report that compares runs and experiments"),
    "app": ("unetdiff.cli.app", "segment, generate and compare on a local page in the browser"),
    "data": ("unetdiff.cli.data", "check a dataset, print its statistics, or download PASCAL VOC and SBD"),
    "export": ("unetdiff.cli.export", "export a network to ONNX, torch.export or diffusers"),
    "push": ("unetdiff.cli.push", "upload a run's model with its model card to the Hugging Face Hub"),
    "benchmark": ("unetdiff.cli.benchmark", "measure training, prediction and sampling speed on this machine"),
}


def help_text() -> str:
    """The text of `unetdiff --help`."""
    lines = [f"  {name:<12}{what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: unetdiff COMMAND ...",
            "",
            "One U-Net, two heads: train a segmenter and a conditional DDPM from one backbone, and compare them.",
            "",
            "commands:",
            *lines,
            "",
            "`unetdiff COMMAND --help` lists a command's options; `unetdiff --version` prints the version.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    0: success. 1: problems found, or a part of the inputs could not be read. 2: invalid input, or a file that cannot be
    read or written. 130: interrupted. 141: the reader of standard output has gone.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    with tolerant_streams() as (out, _):
        try:
            status = _run(words)
        except SystemExit as leave:  # argparse, after --help
            status = leave.code if isinstance(leave.code, int) else 0
        return status_of(status, out)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"unetdiff {unetdiff.__version__}")
        return 0
    try:
        with report_once():
            if words[0] not in COMMANDS:
                near = f"{did_you_mean(words[0], COMMANDS)} (one of {', '.join(COMMANDS)})".lstrip()
                raise UserError(f"unknown command {words[0]!r}. {near}")
            _set_threads()
            if words[0] != "train":
                require_single_process(words[0])
            relaunch_on_cpu(words)
            return import_module(COMMANDS[words[0]][0]).main(words[1:])
    except AnotherProcessFailed:
        return 1
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except Exception as error:
        known = in_one_line(error)
        if known is None:
            raise
        return _fail(str(known), known.status if isinstance(known, TrainingStopped) else 2)


def _fail(message: str, status: int) -> int:
    """Print a message on one line; returns the status."""
    print(f"unetdiff: {shortened(printable(message), MAX_MESSAGE_CHARS)}", file=sys.stderr)
    return status


def _set_threads() -> None:
    """Set OMP_NUM_THREADS, unless set, to the number of physical cores that this process may use.

    Before torch is imported, so that it and its libraries use the same number.
    """
    import psutil  # comes with accelerate

    physical = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else physical
    os.environ.setdefault("OMP_NUM_THREADS", str(min(physical, allowed)))
