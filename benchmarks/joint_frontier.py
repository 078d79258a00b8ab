"""Both metrics against minutes: two networks apart, and ways to train both heads on one backbone, each at its lengths.

    python benchmarks/joint_frontier.py --seeds 0 1 2 --output runs/frontier
    python benchmarks/joint_frontier.py --config configs/joint/camvid.yaml --data.root CAMVID \\
        --training.batch_size 16 --steps 300 600

Every run is `unetdiff train` in its own process, one after another, with the config of a joint run (the quickstart's).
Lengths are fractions of the image passes of the two networks apart: `--steps` of a segmenter and a denoiser with the
config's batch. Finished runs are kept: a second call resumes, and `--seeds` and `--ways` share the work between
processes. Prints a table in Markdown and draws curves; ± is the standard deviation over the seeds. Class consistency
is that of `unetdiff compare`, of the last weights, where the denoiser is conditioned on a class.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from unetdiff.config.quickstart import STEPS, quickstart_configs
from unetdiff.config.reading import to_yaml
from unetdiff.config.schema import RunConfig, Task
from unetdiff.experiments.class_consistency import class_consistency
from unetdiff.experiments.runs import base_config, variant, with_shared_backbone
from unetdiff.models.config import SegmentationHeadConfig
from unetdiff.reports.record import Unit, Value
from unetdiff.reports.record_text import as_text
from unetdiff.reports.runs import read_run
from unetdiff.reports.samples import Budget

APART = "two networks"
TASKS: tuple[Task, Task] = ("segmentation", "diffusion")
SAMPLING = Budget(steps=20)
METRICS: dict[str, Unit] = {
    "minutes": "minutes",
    "mIoU": "fraction",
    "loss": "fraction",
    "consistency": "fraction",
    "memory": "megabytes",
}
"""Columns of the table, and their units."""
Row = dict[str, float]


@dataclass(frozen=True)
class Way:
    """A way to train both heads on one backbone."""

    clean: float
    """Fraction of a step's image passes that are segmented; the others are noisy."""
    noisy: bool = False
    """Noisy images with little noise are segmented as well, as the config has it (`joint.segment_noise_below`)."""
    last_map: bool = False
    """The segmentation head is a convolution of the decoder's last map, whatever the config has."""
    own_levels: int = 0
    """Levels of a decoder of its own for the segmentation head."""
    noise_first: float = 0.0
    """Length of a denoiser that it starts from; the rest of its passes are joint."""

    def changes(self, base: RunConfig) -> dict[str, Any]:
        """Config keys of the run: as many image passes in a step as a separate run has."""
        batch, head = base.training.batch_size, base.model.heads.segmentation or SegmentationHeadConfig()
        clean = round(self.clean * batch)
        head = replace(head, own_decoder_levels=self.own_levels, pyramid=None if self.last_map else head.pyramid)
        return {
            "training.batch_size": batch - clean,
            "joint.segmentation_fraction": clean / (batch - clean),
            "joint.segment_noise_below": base.joint.segment_noise_below if self.noisy else 0.0,
            "model.heads.segmentation": head,
        }


WAYS = {
    "one network": Way(0.25, noisy=True),
    "one network, labels of clean images alone": Way(0.25),
    "one network, three eighths clean": Way(0.375, noisy=True),
    "one network, half clean": Way(0.5, noisy=True),
    "one network, head on the last map": Way(0.25, last_map=True),
    "two decoders": Way(0.25, own_levels=3),
    "one network, noise first, then half clean": Way(0.5, noise_first=0.5),
}


@dataclass(frozen=True)
class Study:
    """What all runs share."""

    base: RunConfig
    steps: dict[str, int]
    """Of a segmenter and a denoiser apart, at a length of 1."""
    output: Path

    @property
    def batch(self) -> int:
        """Images in a step of a separate run."""
        return self.base.training.batch_size

    @property
    def passes(self) -> int:
        """Images that pass through the two networks apart."""
        return self.batch * sum(self.steps.values())

    def train(self, task: Task, folder: Path, seed: int, steps: int, changes: Mapping[str, Any]) -> Path:
        """Train, or resume an interrupted run; finished ones are kept."""
        if (folder / "summary.json").is_file():
            return folder
        quarter = -(-steps // 4)
        length = {"training.steps": steps, "training.validate_every": quarter, "training.checkpoint_every": quarter}
        config = variant(self.base, task, folder, {**length, "training.seed": seed, **changes})
        file = folder.with_suffix(".yaml")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(to_yaml(config))
        command = [sys.executable, "-m", "unetdiff", "train", task, str(file)]
        subprocess.run(command + (["--resume"] if folder.exists() else []), check=True)
        return folder


def metrics(folder: Path, cache: Path) -> Row:
    """The figures of a finished run; those that its heads do not have are left out."""
    run = read_run(folder)
    summary = run.summary
    row = {"minutes": summary["train_minutes"], "memory": summary["peak_memory"] / 1e6}
    for name, key in (("mIoU", "segmentation/mean_iou"), ("loss", "diffusion/loss")):
        if key in summary["final"]:
            row[name] = summary["final"][key]
    if "loss" in row:
        found = class_consistency(run, SAMPLING, cache)
        row |= {} if found is None else {"consistency": found.value}
    return row


def two_networks(study: Study, length: float, seed: int) -> Row:
    """A segmenter and a denoiser: minutes add up, and so does the peak memory of their processes."""
    rows = []
    for task in TASKS:
        folder = study.output / f"{task}-{length:g}" / f"seed-{seed}"
        study.train(task, folder, seed, round(length * study.steps[task]), {})
        rows.append(metrics(folder, study.output / ".classifiers"))
    segmentation, diffusion = rows
    return segmentation | diffusion | {key: segmentation[key] + diffusion[key] for key in ("minutes", "memory")}


def one_network(study: Study, way: str, length: float, seed: int) -> Row:
    """A joint run with as many image passes as this fraction of the two networks'."""
    method, passes, minutes = WAYS[way], length * study.passes, 0.0
    folder = study.output / f"joint-{list(WAYS).index(way)}-{length:g}" / f"seed-{seed}"
    changes = method.changes(study.base)
    if method.noise_first:
        start, steps = study.output / "start" / f"seed-{seed}", round(method.noise_first * study.steps["diffusion"])
        study.train("diffusion", start, seed, steps, {})
        minutes = read_run(start).summary["train_minutes"]
        changes, passes = {**changes, "training.init_from": str(start)}, passes - steps * study.batch
    study.train("joint", folder, seed, round(passes / study.batch), changes)
    row = metrics(folder, study.output / ".classifiers")
    return row | {"minutes": minutes + row["minutes"]}


def values(rows: list[Row], key: str) -> Value:
    """A figure over the seeds."""
    return Value.of([row[key] for row in rows if key in row])


def draw(results: dict[tuple[str, float], list[Row]], file: Path) -> None:
    """mIoU and class consistency against minutes, a curve for each way."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), dpi=150)
    for axis, metric, title in zip(axes, ("mIoU", "consistency"), ("mIoU", "class consistency"), strict=True):
        for way in dict.fromkeys(way for way, _ in results):
            points = [rows for (name, _), rows in sorted(results.items(), key=lambda one: one[0][1]) if name == way]
            x, y = ([values(rows, key) for rows in points if metric in rows[0]] for key in ("minutes", metric))
            error = [value.spread or 0.0 for value in y]
            means = ([value.mean for value in side] for side in (x, y))
            axis.errorbar(*means, yerr=error, marker="o", markersize=4, capsize=2, label=way)
        axis.set(xlabel="training minutes, both heads", ylabel=title, xlim=(0, None), ylim=(None, 1))
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="YAML of a joint run (default: the quickstart's)")
    parser.add_argument("--steps", type=int, nargs=2, metavar=("SEGMENTATION", "DIFFUSION"), help="of the two apart")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--apart_lengths", type=float, nargs="+", default=[0.75, 1.0])
    parser.add_argument("--joint_lengths", type=float, nargs="+", default=[0.75])
    parser.add_argument("--ways", nargs="*", default=[APART, *WAYS], choices=[APART, *WAYS])
    parser.add_argument("--output", type=Path, default=Path("runs/frontier"))
    args, overrides = parser.parse_known_args()
    base = with_shared_backbone(base_config(args.config, overrides, quickstart_configs(args.output)["joint"]))
    steps = dict(zip(TASKS, args.steps or [STEPS[task] for task in TASKS], strict=True))
    study = Study(base, steps, args.output)
    results: dict[tuple[str, float], list[Row]] = {}
    for seed in args.seeds:
        for way in args.ways:
            for length in args.apart_lengths if way == APART else args.joint_lengths:
                row = two_networks(study, length, seed) if way == APART else one_network(study, way, length, seed)
                results.setdefault((way, length), []).append(row)
    print("| | length | minutes | mIoU | loss of the noise | class consistency | peak memory |")
    print("|---|---|---|---|---|---|---|")
    for (way, length), rows in results.items():
        cells = [as_text(values(rows, key), unit) for key, unit in METRICS.items()]
        print(f"| {way} | {length:g} | {' | '.join(cells)} |")
    draw(results, args.output / "frontier.png")
    print(args.output / "frontier.png")


if __name__ == "__main__":
    main()
