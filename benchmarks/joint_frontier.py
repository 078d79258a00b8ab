"""Both metrics against minutes: two networks apart, and ways to train both heads on one backbone, each at its lengths.

    python benchmarks/joint_frontier.py --seeds 0 1 2 --output runs/frontier

Every run is `unetdiff train` with the shipped `scenes` configs, in its own process, one after another. Lengths are
fractions of the image passes of the two networks apart (450 and 1,300 steps of 16). Finished runs are kept: a second
call resumes, and `--seeds` and `--ways` share the work between processes. Prints a table in Markdown and draws curves;
± is the standard deviation over the seeds. Class consistency is that of `unetdiff compare`, of the last weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from unetdiff.config.quickstart import STEPS
from unetdiff.experiments.class_consistency import class_consistency
from unetdiff.reports.runs import read_run
from unetdiff.reports.samples import Budget

APART = "two networks"
BATCH = 16
PASSES = BATCH * (STEPS["segmentation"] + STEPS["diffusion"])  # of both apart
SAMPLING = Budget(steps=20)
METRICS = ("minutes", "mIoU", "loss", "consistency", "memory")
Row = dict[str, float]


def joint(noisy: int, clean: int, weight: float = 1.0, own_levels: int = 0) -> list[str]:
    """Command-line words of a joint run: noisy images in each step, and how many of them pass clean as well."""
    words = [f"--training.batch_size={noisy}", f"--joint.segmentation_fraction={clean / noisy:.4f}"]
    words += [f"--joint.segmentation_weight={weight:g}"]
    return words + ([f"--model.heads.segmentation.own_decoder_levels={own_levels}"] if own_levels else [])


WAYS: dict[str, tuple[int, list[str]]] = {  # images that pass in each step, and what is changed
    "joint, 12 noisy + 4 clean": (16, joint(12, 4)),
    "the same, segmentation weight 3": (16, joint(12, 4, weight=3.0)),
    "joint, 8 noisy + 8 clean": (16, joint(8, 8)),
    "joint, 12 + 4, encoder shared alone": (16, joint(12, 4, own_levels=3)),
    "noise first, then 8 + 8": (16, joint(8, 8)),
}
NOISE_FIRST = 0.5
"""Length of the denoiser that the last way starts from; the rest of its passes are joint."""


def train(task: str, folder: Path, seed: int, steps: int, words: list[str]) -> Path:
    """Train, or resume an interrupted run."""
    if not (folder / "summary.json").is_file():
        quarter = -(-steps // 4)
        command = [sys.executable, "-m", "unetdiff", "train", task, "scenes", *words]
        command += [f"--training.output_dir={folder}", f"--training.seed={seed}", f"--training.steps={steps}"]
        command += [f"--training.validate_every={quarter}", f"--training.checkpoint_every={quarter}"]
        subprocess.run(command + (["--resume"] if folder.exists() else []), check=True)
    return folder


def metrics(folder: Path, cache: Path) -> Row:
    """The figures of a finished run; those that its heads do not have are left out."""
    summary = json.loads((folder / "summary.json").read_text())
    row = {"minutes": summary["train_minutes"], "memory": summary["peak_memory"] / 1e6}
    for name, key in (("mIoU", "segmentation/mean_iou"), ("loss", "diffusion/loss")):
        if key in summary["final"]:
            row[name] = summary["final"][key]
    if "loss" in row:
        found = class_consistency(read_run(folder), SAMPLING, cache)
        assert found is not None
        row["consistency"] = found.value
    return row


def two_networks(output: Path, length: float, seed: int) -> Row:
    """A segmenter and a denoiser: minutes and memory add up."""
    rows = []
    for task in ("segmentation", "diffusion"):
        folder = output / f"{task}-{length:g}" / f"seed-{seed}"
        train(task, folder, seed, round(length * STEPS[task]), [])
        rows.append(metrics(folder, output / ".classifiers"))
    segmentation, diffusion = rows
    return segmentation | diffusion | {key: segmentation[key] + diffusion[key] for key in ("minutes", "memory")}


def one_network(output: Path, way: str, length: float, seed: int) -> Row:
    """A joint run with as many image passes as this fraction of the two networks'."""
    images, words = WAYS[way]
    name = f"joint-{list(WAYS).index(way)}-{length:g}"
    folder, passes = output / name / f"seed-{seed}", length * PASSES
    minutes = 0.0
    if way.startswith("noise first"):
        start, steps = output / f"start-{NOISE_FIRST:g}" / f"seed-{seed}", round(NOISE_FIRST * STEPS["diffusion"])
        train("diffusion", start, seed, steps, [])
        minutes = json.loads((start / "summary.json").read_text())["train_minutes"]
        words, passes = [*words, f"--training.init_from={start}"], passes - steps * BATCH
    train("joint", folder, seed, round(passes / images), words)
    row = metrics(folder, output / ".classifiers")
    return row | {"minutes": minutes + row["minutes"]}


def mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def cell(values: Sequence[float], digits: int) -> str:
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def draw(results: dict[tuple[str, float], list[Row]], file: Path) -> None:
    """mIoU and class consistency against minutes, a curve for each way."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), dpi=150)
    for axis, metric, title in zip(axes, ("mIoU", "consistency"), ("mIoU", "class consistency"), strict=True):
        for way in dict.fromkeys(way for way, _ in results):
            points = [rows for (name, _), rows in sorted(results.items(), key=lambda one: one[0][1]) if name == way]
            x, y = ([mean([row[key] for row in rows]) for rows in points] for key in ("minutes", metric))
            error = [statistics.stdev([row[metric] for row in rows]) if len(rows) > 1 else 0.0 for rows in points]
            axis.errorbar(x, y, yerr=error, marker="o", markersize=4, capsize=2, label=way)
        axis.set(xlabel="training minutes, both heads", ylabel=title, xlim=(0, None), ylim=(None, 1))
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--apart_lengths", type=float, nargs="+", default=[0.75, 1.0])
    parser.add_argument("--joint_lengths", type=float, nargs="+", default=[0.75])
    parser.add_argument("--ways", nargs="*", default=[APART, *WAYS], choices=[APART, *WAYS])
    parser.add_argument("--output", type=Path, default=Path("runs/frontier"))
    args = parser.parse_args()
    results: dict[tuple[str, float], list[Row]] = {}
    for seed in args.seeds:
        for way in args.ways:
            for length in args.apart_lengths if way == APART else args.joint_lengths:
                row = (
                    two_networks(args.output, length, seed)
                    if way == APART
                    else one_network(args.output, way, length, seed)
                )
                results.setdefault((way, length), []).append(row)
    print("| | length | minutes | mIoU | loss of the noise | class consistency | peak memory, MB |")
    print("|---|---|---|---|---|---|---|")
    for (way, length), rows in results.items():
        cells = [
            cell([row[key] for row in rows], 0 if key == "memory" else 1 if key == "minutes" else 3) for key in METRICS
        ]
        print(f"| {way} | {length:g} | {' | '.join(cells)} |")
    draw(results, args.output / "frontier.png")
    print(args.output / "frontier.png")


if __name__ == "__main__":
    main()
