"""mIoU by training minutes of runs and peers, as a plot and a table.

    python benchmarks/curves.py unetdiff=runs/voc-mobilenet_v2 "smp U-Net"=runs/peer-voc --output curves.png

Each argument is NAME=FOLDER, a folder with a metrics.jsonl. Minutes are training time without validation.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from unetdiff.training.logger import METRICS, read_lines

METRIC = "segmentation/mean_iou"


def curve(folder: Path) -> list[tuple[float, float]]:
    """(minutes of training, mIoU) of each validation."""
    lines = [line for line in read_lines(folder / METRICS) if line["kind"] == "validation"]
    return [(line.get("train_minutes", line["minutes"]), line[METRIC]) for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--title", default="mIoU by training minutes")
    parser.add_argument("--output", type=Path, default=Path("curves.png"))
    args = parser.parse_args()
    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=150)
    for run in args.runs:
        name, _, folder = run.partition("=")
        points = curve(Path(folder))
        axes.plot([m for m, _ in points], [v for _, v in points], marker="o", markersize=3, label=name)
        print(f"{name}: " + ", ".join(f"{m:.1f} min {v:.3f}" for m, v in points))
    axes.set(xlabel="training minutes", ylabel="mIoU", title=args.title, ylim=(0, None), xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(args.output)
    print(args.output)


if __name__ == "__main__":
    main()
