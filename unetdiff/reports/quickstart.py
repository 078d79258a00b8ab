"""One backbone, trained three ways on the embedded set, and the page that shows them side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from unetdiff.config.parsing import RunConfig, Task
from unetdiff.data.config import DataConfig, ScenesConfig
from unetdiff.diffusion.config import DiffusionConfig
from unetdiff.models.config import ConditioningConfig, EncoderConfig, ModelConfig, ResidualConfig
from unetdiff.reports.report import write_report
from unetdiff.reports.samples import Budget
from unetdiff.reports.table import DASH, minutes, percent, share
from unetdiff.text import aligned
from unetdiff.training.config import EMAConfig, JointConfig, OptimizerConfig, TrainingConfig
from unetdiff.training.run_cache import run_state

TASKS: tuple[Task, ...] = ("segmentation", "diffusion", "joint")
TITLE = "One U-Net, two heads: the quickstart"

BACKBONE = ModelConfig(
    sample_size=32,
    patch_size=2,
    encoder=EncoderConfig(name="residual", channels=[48, 96, 96]),
    residual=ResidualConfig(layers_per_block=1, norm_num_groups=8, time_scale_shift="scale_shift"),
    conditioning=ConditioningConfig(
        timestep=True, cross_attention_dim=64, pooled_context=True, attention_levels=[2], attention_head_dim=96
    ),
)
"""The one definition that all three runs share; the heads come from the task."""

SCENES = ScenesConfig(colors=2, clutter=0.1, spread=0.0)
"""One red or green digit a scene, in the middle, on a calm background: what can be learned in minutes."""

STEPS: dict[Task, int] = {"segmentation": 450, "diffusion": 1300, "joint": 1800}
"""Optimizer steps of each run."""

BUDGET = Budget(images=300, steps=20)
"""What is sampled and judged for the page: fewer steps than `unetdiff compare` takes, to keep it short."""

GUIDANCE = 6.0
"""Guidance of the samples: more than the default, as a short run needs."""

SHARED = JointConfig(segmentation_weight=0.5, diffusion_weight=10.0, segmentation_fraction=0.25)
"""The label is learned long before the noise: a quarter of the images is enough for it, and most of the weight is the
noise's, whose loss is smaller."""


def quickstart_configs(output: Path, tiny: bool = False) -> dict[Task, RunConfig]:
    """The three runs, by task; each in a folder of `output` with the task's name.

    tiny: a few steps of a small network on few images, for tests.
    """
    model = deepcopy(BACKBONE)
    scenes = deepcopy(SCENES)
    if tiny:
        model.encoder.channels = [8, 16]
        model.conditioning = ConditioningConfig(cross_attention_dim=8, attention_levels=[1], attention_head_dim=8)
        scenes = ScenesConfig(train_images=64, val_images=16)
    configs: dict[Task, RunConfig] = {}
    for task in TASKS:
        steps = 4 if tiny else STEPS[task]
        quarter = math.ceil(steps / 4)  # rounded up: the fourth is the last step, not one just before it
        configs[task] = RunConfig(
            task=task,
            model=deepcopy(model),
            data=DataConfig(name="scenes", scenes=deepcopy(scenes)),
            diffusion=DiffusionConfig(
                preview_steps=2 if tiny else 25,
                preview_per_class=1 if tiny else 4,
                guidance_scale=DiffusionConfig.guidance_scale if task == "segmentation" else GUIDANCE,
            ),
            joint=deepcopy(SHARED) if task == "joint" else JointConfig(),
            training=TrainingConfig(
                output_dir=str(output / task),
                steps=steps,
                batch_size=8 if tiny else 16,
                eval_batch_size=16 if tiny else 100,
                optimizer=OptimizerConfig(lr=2e-3, betas=[0.9, 0.99]),
                ema=EMAConfig(half_life_images=2000),
                log_every=2 if tiny else 20,
                validate_every=max(2, quarter),
                checkpoint_every=max(2, quarter),
            ),
        )
    return configs


def run(output: Path, overwrite: bool = False, tiny: bool = False) -> Path:
    """Train what is missing in `output`, write report.html there, print the main figures; returns the page.

    A part that is finished under the same config is kept, and one that was interrupted goes on: a second call is quick.
    `overwrite` trains everything anew.

    Raises:
        UserError: a folder of `output` holds a run of another config.
    """
    from unetdiff.training.trainer import train  # slow to import, and not needed to read this file's configs

    output = Path(output)
    configs = quickstart_configs(output, tiny)
    states = {task: "new" if overwrite else run_state(output / task, config) for task, config in configs.items()}
    command = f"unetdiff quickstart --output {output}" + (" --tiny" if tiny else "")
    for task, config in configs.items():
        if states[task] == "finished":
            print(f"{task}: finished before, kept")
            continue
        config.training.overwrite = overwrite
        config.training.resume = states[task] == "interrupted"
        print(f"{task}: {'going on' if config.training.resume else 'training'}, {config.training.steps} steps")
        train(config, command)

    page = output / "report.html"
    if set(states.values()) != {"finished"} or not is_newer(page, [output / task / "summary.json" for task in TASKS]):
        print("report: sampling and judging")
        budget = Budget(images=10, steps=2, judge_steps=4, rows=2) if tiny else BUDGET
        parts = [output / task for task in TASKS]
        write_report(parts, page, TITLE, budget=budget, command=command, cache=output / ".judges")
    print(figures_text(json.loads(page.with_suffix(".json").read_text())))
    return page


def is_newer(file: Path, others: list[Path]) -> bool:
    """True where a file exists and none of the others was written after it."""
    if not (file.is_file() and file.with_suffix(".json").is_file()):
        return False
    return all(other.stat().st_mtime <= file.stat().st_mtime for other in others)


def figures_text(report: Mapping[str, Any]) -> str:
    """The main figures of report.json as a small table for the terminal."""
    columns = (
        ("time", "minutes", minutes),
        ("mIoU", "segmentation.mean_iou", share),
        ("pixel accuracy", "segmentation.pixel_accuracy", share),
        ("class consistency", "diffusion.class_consistency", percent),
    )
    rows = [["", *(title for title, _, _ in columns)]]
    for one in report["runs"]:
        numbers = [one["figures"].get(key) for _, key, _ in columns]
        texts = [DASH if n is None else text(n) for n, (_, _, text) in zip(numbers, columns, strict=True)]
        rows.append([one["name"], *texts])
    return "\n" + "\n".join(aligned(rows)) + "\n"
