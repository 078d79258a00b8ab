"""Train one backbone for segmentation, for diffusion and for both jointly, and compare the runs on one page.

    python examples/compare_heads.py
    python examples/compare_heads.py --tiny          # seconds

All three runs have the same `ModelConfig`; the task determines the heads and the loss. Interrupted runs are resumed and
finished ones kept; use another --output for other settings.
"""

from __future__ import annotations

import argparse
import json
from copy import deepcopy
from pathlib import Path
from typing import get_args

from unetdiff.config.schema import RunConfig, Task
from unetdiff.config.training import EMAConfig, OptimizerConfig, TrainingConfig
from unetdiff.data.config import DataConfig, ScenesConfig
from unetdiff.diffusion.config import DiffusionConfig
from unetdiff.models.config import (
    ConditioningConfig,
    EncoderConfig,
    HeadsConfig,
    ModelConfig,
    ResidualConfig,
    SegmentationHeadConfig,
)
from unetdiff.reports.report import write_report
from unetdiff.reports.samples import Budget
from unetdiff.training.run_cache import train_once

METRICS = ("segmentation/mean_iou", "segmentation/pixel_accuracy", "diffusion/loss")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/compare_heads"))
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps of each run")
    parser.add_argument("--tiny", action="store_true", help="a few steps of a small network, for tests")
    args = parser.parse_args()

    backbone = ModelConfig(
        encoder=EncoderConfig(name="residual", channels=[8, 16] if args.tiny else [32, 64, 96]),
        residual=ResidualConfig(layers_per_block=1),
        conditioning=ConditioningConfig(
            cross_attention_dim=8 if args.tiny else 64, attention_levels=[1 if args.tiny else 2], attention_head_dim=8
        ),
        heads=HeadsConfig(segmentation=SegmentationHeadConfig(pyramid=8 if args.tiny else 48)),  # reads every level
    )
    runs = [
        train_once(make_config(task, backbone, args.output / task, 3 if args.tiny else args.steps, args.tiny))
        for task in get_args(Task)
    ]
    for run in runs:
        summary = json.loads((run / "summary.json").read_text())
        count = sum(summary["parameters"].values())
        metrics = [f"{key} {summary['final'][key]:.4f}" for key in METRICS if key in summary["final"]]
        print(f"{summary['task']}: {count / 1e6:.2f} M parameters, {summary['minutes']:.1f} min, {', '.join(metrics)}")
    budget = Budget(images=10, steps=2, classifier_steps=4, rows=2) if args.tiny else Budget()
    print(write_report(runs, args.output / "report.html", budget=budget))


def make_config(task: Task, backbone: ModelConfig, output: Path, steps: int, tiny: bool) -> RunConfig:
    """The config of one run; the three differ in task and output_dir only."""
    return RunConfig(
        task=task,
        model=deepcopy(backbone),
        data=DataConfig(scenes=ScenesConfig(train_images=32, val_images=8) if tiny else ScenesConfig()),
        diffusion=DiffusionConfig(preview_steps=2 if tiny else 25, preview_per_class=1 if tiny else 4),
        training=TrainingConfig(
            output_dir=str(output),
            steps=steps,
            batch_size=4 if tiny else 32,
            validate_every=steps if tiny else max(1, steps // 4),
            optimizer=OptimizerConfig(lr=2e-3),
            ema=EMAConfig(half_life_images=10 if tiny else 2000),
        ),
    )


if __name__ == "__main__":
    main()
