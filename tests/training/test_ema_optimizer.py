"""EMA, AdamW and learning rates against reference computations."""

from __future__ import annotations

import pytest
import torch

from unetdiff.config.training import EMAConfig, OptimizerConfig, ScheduleConfig
from unetdiff.data.build import build_dataset
from unetdiff.data.config import DataConfig, ScenesConfig
from unetdiff.models.unet import UNet
from unetdiff.segmentation.config import SegmentationConfig
from unetdiff.training.ema import EMA, ema_decay
from unetdiff.training.optimizer import LearningRate, build_optimizer, match_memory_formats
from unetdiff.training.tasks.segmentation import SegmentationTask

VAL = build_dataset(DataConfig(scenes=ScenesConfig(train_images=1, val_images=2)), "val", True)


def _task(weights: str | None = None) -> SegmentationTask:
    heads = {"segmentation": {"num_classes": 11}}
    unet = UNet(encoder={"name": "resnet18"}, decoder={"channels": [8] * 5}, heads=heads)
    if weights:
        unet.register_to_config(encoder={**unet.config["encoder"], "weights": weights})
    return SegmentationTask(unet, SegmentationConfig(), VAL)


def test_decay_halves_over_the_half_life_and_warms_up() -> None:
    assert ema_decay(10**9, 32, 3200) ** 100 == pytest.approx(0.5)
    assert ema_decay(1000, 32, 10**9) == pytest.approx(0.5 ** (32 / 50))


def test_parameters_are_averaged_and_buffers_copied() -> None:
    torch.manual_seed(0)
    task = _task()
    ema = EMA(task, EMAConfig(half_life_images=100))
    before = {k: v.clone() for k, v in task.named_parameters()}
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.add_(1)
        for buffer in task.buffers():
            buffer.add_(3)
    ema.update(task, images=2000, batch_size=100)
    for name, average in ema.task.named_parameters():
        torch.testing.assert_close(average, before[name] + 0.5)
    for average, buffer in zip(ema.task.buffers(), task.buffers(), strict=True):
        assert torch.equal(average, buffer)
    assert not any(p.requires_grad for p in ema.task.parameters())
    assert ema.task.unet is not task.unet and ema.task.data is task.data


@pytest.mark.parametrize("of_weights", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("of_gradients", [torch.contiguous_format, torch.channels_last])
def test_steps_are_torchs_whatever_lies_how_in_memory(
    of_weights: torch.memory_format, of_gradients: torch.memory_format
) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(6, 5, 3, 3, generator=generator)
    ours = torch.nn.Parameter(start.clone(memory_format=torch.contiguous_format).contiguous(memory_format=of_weights))
    theirs = torch.nn.Parameter(start.clone())
    vectors = torch.nn.Parameter(torch.zeros(5)), torch.nn.Parameter(torch.zeros(5))
    optimizer = torch.optim.AdamW([ours, vectors[0]], lr=0.1, weight_decay=0.2, fused=True)
    optimizer.register_step_pre_hook(match_memory_formats)
    reference = torch.optim.AdamW([theirs, vectors[1]], lr=0.1, weight_decay=0.2, foreach=False)
    for _ in range(3):
        gradient, other = torch.randn(6, 5, 3, 3, generator=generator), torch.randn(5, generator=generator)
        ours.grad, vectors[0].grad = gradient.contiguous(memory_format=of_gradients), other
        theirs.grad, vectors[1].grad = gradient, other
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*vectors)
    for key in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(optimizer.state[ours][key], reference.state[theirs][key])


@pytest.mark.parametrize(
    ("weights", "encoder_lr", "expected"), [(None, None, 1e-2), ("x", None, 1e-3), ("x", 5e-3, 5e-3)]
)
def test_groups_cover_every_parameter_once(weights: str | None, encoder_lr: float | None, expected: float) -> None:
    task = _task(weights)
    optimizer = build_optimizer(task, OptimizerConfig(lr=1e-2, encoder_lr=encoder_lr, weight_decay=0.1))
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in task.parameters()} and len(grouped) == len(set(map(id, grouped)))
    trunk = {id(p) for p in task.unet.encoder.model.parameters()}
    for group in optimizer.param_groups:
        inside = {id(p) in trunk for p in group["params"]}
        assert len(inside) == 1
        assert group["peak_lr"] == (expected if inside == {True} else 1e-2)
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] > 0}


def test_learning_rate_is_the_reference_in_epochs() -> None:
    """50 epochs of 10 steps: the golden values at whole epochs."""
    rate = LearningRate(ScheduleConfig(), steps=500, epochs=50.0)
    golden = {0: 1e-5, 1: 2.44e-5, 2: 6.76e-5, 25: 5.05e-5, 48: 1e-6, 49: 1e-6}
    for epoch, value in golden.items():
        assert rate.at(epoch * 10, 1e-4) == pytest.approx(value, rel=5e-3)
    assert rate.strong_until == 475
    assert LearningRate(ScheduleConfig(), steps=100, epochs=2.0).strong_until == 95


def test_short_runs_have_a_cosine() -> None:
    rate = LearningRate(ScheduleConfig(), steps=100, epochs=1.0)
    values = [rate.at(step, 1.0) for step in range(100)]
    assert values[0] == pytest.approx(0.1) and max(values) > 0.99 and values[-1] == pytest.approx(0.01)
    assert 0.4 < values[50] < 0.6
