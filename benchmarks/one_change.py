"""Ablation: a config, and the same with one change at a time, each for the same training time.

    python benchmarks/one_change.py configs/segmentation/voc_mobilenet_v2.yaml --minutes 7 --images 1464 \\
        --common data.root=VOC --change "no repeat factors: data.repeat_factor_threshold=0" \\
        --change "no Dice: segmentation.losses={cross_entropy: 1.0}"

Each is trained by the command line in its own process, one after another. A short probe measures the training speed,
and sets the epochs that fit the minutes, so that slower changes train for fewer epochs. Finished runs are kept: a
second call resumes. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

PROBE_STEPS = 40  # to measure the training speed


def train(config: Path, output: Path, overrides: list[str]) -> dict:
    """Train, or resume an interrupted run; returns the summary of the finished run."""
    if not (output / "summary.json").is_file():
        task = yaml.safe_load(config.read_text())["task"]
        words = [sys.executable, "-m", "unetdiff", "train", task, str(config), *overrides]
        words += [f"--training.output_dir={output}"]
        subprocess.run(words + (["--resume"] if output.exists() else []), check=True)
    return json.loads((output / "summary.json").read_text())


def options(text: str) -> list[str]:
    """ "a.b=1; c.d=2" as command-line words."""
    return [f"--{part.strip()}" for part in text.split(";") if part.strip()]


def epochs_for(minutes: float, config: Path, output: Path, overrides: list[str], images: int) -> float:
    """Epochs that fit the minutes, from the speed of a probe."""
    probe = ["--training.epochs=null", f"--training.steps={PROBE_STEPS}", f"--training.validate_every={PROBE_STEPS}"]
    summary = train(config, output, [*overrides, *probe])
    return minutes * 60 * summary["images_per_second"] / images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--minutes", type=float, required=True, help="training time of each")
    parser.add_argument("--images", type=int, required=True, help="in the training split")
    parser.add_argument("--common", action="append", default=[], metavar="KEY=VALUE", help="overrides for all")
    parser.add_argument("--change", action="append", default=[], metavar="NAME: KEY=VALUE; ...")
    parser.add_argument("--output", type=Path, default=Path("runs/one_change"))
    args = parser.parse_args()
    common = [word for text in args.common for word in options(text)]
    changes = {"unchanged": ""} | {name.strip(): text for name, _, text in (c.partition(":") for c in args.change)}
    rows = []
    for number, (name, text) in enumerate(changes.items()):
        overrides = [*common, *options(text)]
        probe, run = args.output / f"{number}-probe", args.output / str(number)
        epochs = epochs_for(args.minutes, args.config, probe, overrides, args.images)
        summary = train(args.config, run, [*overrides, f"--training.epochs={epochs:.2f}"])
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
        final = summary["final"]
        rows.append(
            f"| {name} | {epochs:.1f} | {summary['train_minutes']:.1f} | {summary['images_per_second']:.1f} | "
            f"{final['segmentation/mean_iou']:.3f} | {final['segmentation/pixel_accuracy']:.3f} |"
        )
    print("| | epochs | minutes | images/s | mIoU | pixel accuracy |\n|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
