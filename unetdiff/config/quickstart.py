"""The quickstart's three runs: one backbone, trained three ways on the embedded scenes."""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path

from unetdiff.config.model import RunModelConfig
from unetdiff.config.schema import RunConfig, Task
from unetdiff.config.training import EMAConfig, JointConfig, OptimizerConfig, TrainingConfig
from unetdiff.data.config import DataConfig, ScenesConfig
from unetdiff.diffusion.config import DiffusionConfig, NoiseConfig
from unetdiff.models.config import (
    ConditioningConfig,
    EncoderConfig,
    HeadsConfig,
    ResidualConfig,
    SegmentationHeadConfig,
)

TASKS: tuple[Task, ...] = ("segmentation", "diffusion", "joint")

BACKBONE = RunModelConfig(
    sample_size=32,
    patch_size=2,
    encoder=EncoderConfig(name="residual", channels=[48, 96, 96]),
    residual=ResidualConfig(layers_per_block=1, norm_num_groups=8, time_scale_shift="scale_shift"),
    conditioning=ConditioningConfig(
        timestep=True, cross_attention_dim=64, pooled_context=True, attention_levels=[2], attention_head_dim=96
    ),
    heads=HeadsConfig(segmentation=SegmentationHeadConfig(pyramid=48)),
)
"""The backbone of all three runs; the task adds the heads. The segmentation head reads every level of the decoder: its
labels reach the deep levels at once, and both heads learn the digits from fewer images (docs/second_head.md)."""

SCENES = ScenesConfig(colors=2, clutter=0.1, spread=0.0)
"""One red or green digit in the center of each scene, on a low-contrast background: learned in minutes."""

STEPS: dict[Task, int] = {"segmentation": 400, "diffusion": 1300, "joint": 1300}
"""Optimizer steps of each run."""

BATCH_SIZE: dict[Task, int] = {"segmentation": 12, "diffusion": 16, "joint": 12}
"""Images in a step; a joint step passes a third of them through the network once more, clean."""

INPUT_SCALE = 0.35
"""More timesteps at much noise, where shape and color are decided: a scene's flat areas show through little noise."""

GUIDANCE_SCALE = 4.0
"""For the samples: higher than the default, since the runs are short."""

JOINT = JointConfig(segmentation_weight=1.5, diffusion_weight=10.0, segmentation_fraction=0.33, segment_noise_below=0.2)
"""The diffusion loss is the smaller one; a third of each batch is enough for segmentation."""


def quickstart_configs(output: Path, tiny: bool = False) -> dict[Task, RunConfig]:
    """The three runs by task, each in the folder of `output` with the task's name.

    tiny: a few steps of a small network on few images, for tests.
    """
    model = deepcopy(BACKBONE)
    scenes = deepcopy(SCENES)
    if tiny:
        model.encoder.channels = [8, 16]
        model.heads = HeadsConfig(segmentation=SegmentationHeadConfig(pyramid=8))
        model.conditioning = ConditioningConfig(cross_attention_dim=8, attention_levels=[1], attention_head_dim=8)
        scenes = ScenesConfig(train_images=64, val_images=16)
    configs: dict[Task, RunConfig] = {}
    for task in TASKS:
        steps = 4 if tiny else STEPS[task]
        quarter = math.ceil(steps / 4)  # rounded up, so that the fourth is the last step
        configs[task] = RunConfig(
            task=task,
            model=deepcopy(model),
            data=DataConfig(name="scenes", scenes=deepcopy(scenes)),
            diffusion=DiffusionConfig(
                preview_steps=2 if tiny else 25,
                preview_per_class=1 if tiny else 4,
                guidance_scale=DiffusionConfig.guidance_scale if task == "segmentation" else GUIDANCE_SCALE,
                noise=NoiseConfig() if task == "segmentation" else NoiseConfig(input_scale=INPUT_SCALE),
            ),
            joint=deepcopy(JOINT) if task == "joint" else JointConfig(),
            training=TrainingConfig(
                output_dir=str(output / task),
                steps=steps,
                batch_size=8 if tiny else BATCH_SIZE[task],
                eval_batch_size=16 if tiny else 100,
                optimizer=OptimizerConfig(lr=2e-3, betas=[0.9, 0.99]),
                ema=EMAConfig(half_life_images=2000),
                log_every=2 if tiny else 20,
                validate_every=max(2, quarter),
                checkpoint_every=max(2, quarter),
            ),
        )
    return configs
