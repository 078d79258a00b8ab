"""What makes the difference: a config, and the same with one thing changed at a time, for the same minutes of training.

    python benchmarks/one_change.py configs/segmentation/voc_mobilenet_v2.yaml --minutes 7 --images 1464 \\
        --with data.root=VOC --change "every image alike: data.repeat_factor_threshold=0" \\
        --change "no Dice: segmentation.losses={cross_entropy: 1.0}"

Each is trained by the command line in a process of its own, one after another, so nothing is shared but the machine. A
short probe tells how fast it trains; its epochs are those that fit the minutes, so a change that costs time pays for
it. What has run already is kept: a second call goes on. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

PROBE = 40  # optimizer steps that tell the speed


def train(config: Path, output: Path, overrides: list[str]) -> dict:
    """A finished run's summary; an interrupted one goes on."""
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
    """Passes over the training split that fit the minutes, by a probe's speed."""
    only_speed = ["--training.epochs=null", f"--training.steps={PROBE}", f"--training.validate_every={PROBE}"]
    summary = train(config, output, [*overrides, *only_speed])
    return minutes * 60 * summary["images_per_second"] / images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--minutes", type=float, required=True, help="of training, for each")
    parser.add_argument("--images", type=int, required=True, help="in the training split")
    parser.add_argument("--with", dest="common", action="append", default=[], metavar="KEY=VALUE", help="for all")
    parser.add_argument("--change", action="append", default=[], metavar="NAME: KEY=VALUE; ...")
    parser.add_argument("--output", type=Path, default=Path("runs/one_change"))
    given = parser.parse_args()
    common = [word for text in given.common for word in options(text)]
    changes = {"as it is": ""} | {name.strip(): text for name, _, text in (c.partition(":") for c in given.change)}
    rows = []
    for number, (name, text) in enumerate(changes.items()):
        overrides = [*common, *options(text)]
        probe, run = given.output / f"{number}-probe", given.output / str(number)
        epochs = epochs_for(given.minutes, given.config, probe, overrides, given.images)
        summary = train(given.config, run, [*overrides, f"--training.epochs={epochs:.2f}"])
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
