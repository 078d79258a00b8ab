"""Calibration of frozen BatchNorm: random networks take statistics from the images, pretrained ones keep theirs."""

from __future__ import annotations

import torch

from unetdiff.data.base import collate
from unetdiff.data.build import build_dataset
from unetdiff.data.config import DataConfig, ScenesConfig
from unetdiff.data.sampling import StepSampler
from unetdiff.data.transforms import to_model_range
from unetdiff.models.blocks import FrozenBatchNorm2d
from unetdiff.models.unet import UNet
from unetdiff.segmentation.config import SegmentationConfig
from unetdiff.training.calibration import calibrate
from unetdiff.training.tasks.segmentation import SegmentationTask

DATA = build_dataset(DataConfig(scenes=ScenesConfig(train_images=16, val_images=2)), "train", True)


def _task() -> SegmentationTask:
    torch.manual_seed(0)
    unet = UNet(
        encoder={"name": "classic", "channels": [4, 8], "norm": "frozen"},
        decoder={"norm": "frozen"},
        heads={"segmentation": {"num_classes": 11}},
    )
    return SegmentationTask(unet, SegmentationConfig(), DATA)


def test_the_statistics_are_those_of_the_images() -> None:
    task = _task()
    norms = [m for m in task.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert calibrate(task, DATA, images=16, batch_size=8) == len(norms) == 6
    block = task.unet.encoder.levels[0]
    batches = [to_model_range(collate([DATA[key] for key in keys])["image"]) for keys in StepSampler(16, 8, 0, stop=2)]
    with torch.no_grad():
        maps = [block.conv1(x) for x in batches]  # (8, 4, 32, 32)
    mean = torch.stack([m.mean(dim=(0, 2, 3)) for m in maps]).mean(dim=0)
    var = torch.stack([m.var(dim=(0, 2, 3)) for m in maps]).mean(dim=0)
    torch.testing.assert_close(block.norm1.running_mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(block.norm1.running_var, var, rtol=1e-4, atol=1e-5)
    assert not any(norm.training for norm in norms) and all(norm.momentum == 0.1 for norm in norms)
    before = block.norm1.running_mean.clone()
    task.train()
    task.batch_losses(collate([DATA[0], DATA[1]]), seed=0)
    assert torch.equal(block.norm1.running_mean, before)


def test_statistics_that_are_there_stay() -> None:
    task = _task()
    norm = task.unet.encoder.levels[0].norm1
    norm.running_mean.fill_(0.5)
    before = norm.running_mean.clone()
    assert calibrate(task, DATA, images=16, batch_size=8) == 5
    assert torch.equal(norm.running_mean, before)
    assert calibrate(task, DATA, images=16, batch_size=8) == 0
