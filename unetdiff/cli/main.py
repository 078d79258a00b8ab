"""The `unetdiff` command: finds the subcommand, and turns a UserError into one line and exit status 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import unetdiff
from unetdiff.cli.processes import start_the_others
from unetdiff.errors import TrainingStopped, UserError, nearest

# command -> (module with `main(argv) -> exit status`, what it does); imported when called, so that help is quick
COMMANDS = {
    "quickstart": ("unetdiff.cli.quickstart", "train both heads on the embedded set and write one page about it"),
    "train": ("unetdiff.cli.train", "train segmentation, diffusion or both jointly from a config file"),
    "evaluate": ("unetdiff.cli.evaluate", "judge a trained model on a split, as a table"),
    "predict": ("unetdiff.cli.predict", "masks and overlays for images, folders, globs and videos"),
    "sample": ("unetdiff.cli.sample", "draw images, by class where the model has classes"),
    "experiment": ("unetdiff.cli.experiment", "one question about the two heads, for a section of that page"),
    "compare": ("unetdiff.cli.compare", "one page that shows runs side by side"),
    "data": ("unetdiff.cli.data", "check a data set, count what it holds, or download PASCAL VOC and SBD"),
    "export": ("unetdiff.cli.export", "what runs without this package: ONNX, torch.export or diffusers"),
    "benchmark": ("unetdiff.cli.benchmark", "how fast a network trains, predicts and draws on this machine"),
}


def help_text() -> str:
    """What `unetdiff --help` prints."""
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
            "`unetdiff COMMAND --help` tells what a command takes; `unetdiff --version` the version.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status (0 done, 1 done with faults found, 2 refused, 130 interrupted)."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"unetdiff {unetdiff.__version__}")
        return 0
    try:
        if words[0] not in COMMANDS:
            near = nearest(words[0], COMMANDS)
            raise UserError(f"unknown command {words[0]!r}; nearest: {near} (one of {', '.join(COMMANDS)})")
        _set_threads()
        start_the_others(words)
        return import_module(COMMANDS[words[0]][0]).main(words[1:])
    except UserError as error:
        print(f"unetdiff: {error}", file=sys.stderr)
        return 2
    except TrainingStopped as error:
        print(f"unetdiff: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("unetdiff: interrupted", file=sys.stderr)
        return 130


def _set_threads() -> None:
    """A thread for each physical core that the process may use, unless OMP_NUM_THREADS says otherwise.

    Set before torch is imported, so that it and the libraries below it agree.
    """
    import psutil  # comes with accelerate

    physical = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else physical
    os.environ.setdefault("OMP_NUM_THREADS", str(min(physical, allowed)))
