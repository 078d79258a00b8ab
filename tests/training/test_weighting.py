"""Loss weightings of joint runs: reference values, optimizer, checkpoints, two processes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from unetdiff.config.schema import RunConfig
from unetdiff.config.training import JointConfig, OptimizerConfig
from unetdiff.data.base import collate
from unetdiff.data.build import build_dataset
from unetdiff.models.unet import UNet
from unetdiff.training import checkpoints
from unetdiff.training.logger import read_lines
from unetdiff.training.optimizer import build_optimizer
from unetdiff.training.tasks.build import build_task
from unetdiff.training.tasks.joint import JointTask
from unetdiff.training.trainer import train
from unetdiff.training.weighting import NORM_DECAY, GradientNorm, Uncertainty, last_shared_weight

Tiny = Callable[..., RunConfig]
ENCODERS: dict[str, tuple[dict[str, Any], str]] = {
    "residual": (
        {
            "encoder": {"channels": [8, 16]},
            "residual": {"norm_num_groups": 4, "layers_per_block": 1},
            "conditioning": {"attention_levels": [1]},
        },
        "decoder.up_blocks.1.resnets.1.conv_shortcut.weight",
    ),
    "classic": ({"encoder": {"name": "classic", "channels": [4, 8]}}, "decoder.up_blocks.0.block.conv2.weight"),
    "resnet18": (
        {"encoder": {"name": "resnet18"}, "decoder": {"channels": [8] * 5}},
        "decoder.up_blocks.4.block.conv2.weight",
    ),
}


def _task(config: RunConfig) -> tuple[JointTask, dict[str, Any]]:
    train_set = build_dataset(config.data, "train", True)
    torch.manual_seed(0)
    task = build_task(config, train_set, build_dataset(config.data, "val", True))
    assert isinstance(task, JointTask)
    return task, collate([train_set[i] for i in range(4)])


def test_uncertainty_is_equation_10() -> None:
    """1 / (2 σ_1²) L_1 + 1 / σ_2² L_2 + log σ_1 + log σ_2, with the regression first."""
    weighting = Uncertainty(JointConfig(segmentation_weight=0.5, diffusion_weight=10.0))
    sigma = {"segmentation": 1.7, "diffusion": 0.4}
    with torch.no_grad():
        weighting.log_variances.copy_(torch.tensor([2 * math.log(s) for s in sigma.values()]))
    losses = {"segmentation": torch.tensor(0.8), "diffusion": torch.tensor(0.03)}
    total, weights = weighting(losses)
    first = 10 * 0.03 / (2 * 0.4**2) + math.log(0.4)
    assert total.item() == pytest.approx(first + 0.5 * 0.8 / 1.7**2 + math.log(1.7), rel=1e-5)
    assert weights["diffusion"].item() == pytest.approx(10 / (2 * 0.4**2), rel=1e-5)
    assert weights["segmentation"].item() == pytest.approx(0.5 / 1.7**2, rel=1e-5)


def test_the_uncertainties_settle_where_the_equation_is_smallest() -> None:
    """σ_d² = w L_d for a regression, σ_s² = 2 w L_s for a classification."""
    weighting = Uncertainty(JointConfig(segmentation_weight=0.5, diffusion_weight=10.0))
    losses = {"segmentation": torch.tensor(0.8), "diffusion": torch.tensor(0.03)}
    optimizer = torch.optim.SGD(weighting.parameters(), lr=1.0)
    for _ in range(100):
        optimizer.zero_grad()
        weighting(losses)[0].backward()
        optimizer.step()
    torch.testing.assert_close(weighting.log_variances.exp(), torch.tensor([2 * 0.5 * 0.8, 10 * 0.03]))


def test_uncertainties_are_learned_without_weight_decay_and_kept(tiny: Tiny) -> None:
    config = tiny("joint", joint__weighting="uncertainty")
    task, _ = _task(config)
    groups = build_optimizer(task, OptimizerConfig(weight_decay=0.1)).param_groups
    assert [g["weight_decay"] for g in groups if "weighting.log_variances" in g["names"]] == [0.0]
    run = train(config)
    newest = checkpoints.newest(run)
    assert newest is not None
    learned = load_file(newest / checkpoints.MODEL)["weighting.log_variances"]
    moment = load_file(newest / checkpoints.OPTIMIZER)["weighting.log_variances|exp_avg"]
    assert (learned != 0).all() and (moment != 0).all()
    lines = [line for line in read_lines(run / "metrics.jsonl") if line["kind"] == "train"]
    weights = [(line["weight/segmentation"], line["weight/diffusion"]) for line in lines]
    assert weights[0] == pytest.approx((1.0, 0.5), rel=1e-2) and weights[0] != weights[-1]


def _norms(losses: dict[str, Tensor], layer: torch.nn.Parameter) -> list[float]:
    norms = []
    for head in ("segmentation", "diffusion"):
        layer.grad = None
        losses[f"{head}/loss"].backward(retain_graph=True)
        assert layer.grad is not None
        norms.append(float(layer.grad.norm()))
    return norms


def test_gradient_norms_are_as_the_weights_that_are_given(tiny: Tiny) -> None:
    base = {"joint__segmentation_weight": 0.5, "joint__diffusion_weight": 10.0}
    task, batch = _task(tiny("joint", joint__weighting="gradient_norm", model__residual__dropout=0.0, **base))
    layer = task.unet.get_parameter("decoder.up_blocks.1.resnets.1.conv_shortcut.weight")

    def step(seed: int) -> list[float]:
        """The weights of a step, and the norms of its gradients."""
        losses = task.train().batch_losses(batch, seed)
        weights = [losses[f"weight/{head}"].item() for head in ("segmentation", "diffusion")]
        parts = {head: losses[f"{head}/loss"] for head in ("segmentation", "diffusion")}
        total = weights[0] * parts["segmentation"].item() + weights[1] * parts["diffusion"].item()
        assert losses["loss"].item() == pytest.approx(total, rel=1e-5)
        task.weighting.observe(task.unet, parts)
        task.end_step(True)
        return weights + _norms(losses, layer)

    first = step(5)
    assert first[:2] == pytest.approx([0.5, 10.0])  # nothing was measured yet
    second = step(6)
    assert sum(second[:2]) == pytest.approx(10.5, rel=1e-5)
    assert second[1] * first[3] / (second[0] * first[2]) == pytest.approx(10 / 0.5, rel=1e-3)
    third = step(7)  # the moving average of two steps
    mean = [(NORM_DECAY * a + b) / (1 + NORM_DECAY) for a, b in zip(first[2:], second[2:], strict=True)]
    assert third[1] * mean[1] / (third[0] * mean[0]) == pytest.approx(10 / 0.5, rel=1e-3)


def test_a_gradient_that_is_not_finite_does_not_count() -> None:
    weighting, unet = GradientNorm(JointConfig()), UNet(**ENCODERS["residual"][0], heads={"diffusion": {}})
    layer = last_shared_weight(unet)

    def step(factor: float, finite: bool = True) -> None:
        for _ in range(2):  # of two micro-batches
            weighting.observe(unet, {"segmentation": layer.sum() * factor, "diffusion": layer.sum() / 2})
        weighting.end_step(finite, processes=1)

    step(1.0)
    before = {name: buffer.clone() for name, buffer in weighting.named_buffers()}
    step(math.nan)
    step(3.0, finite=False)
    assert all(torch.equal(buffer, before[name]) for name, buffer in weighting.named_buffers())
    _, weights = weighting({"segmentation": layer.sum(), "diffusion": layer.sum()})
    assert [float(w) for w in weights.values()] == pytest.approx([2 / 3, 4 / 3])


@pytest.mark.parametrize("name", ENCODERS)
def test_the_last_shared_layer_is_the_end_of_the_decoder(name: str) -> None:
    config, last = ENCODERS[name]
    unet = UNet(**config, heads={"segmentation": {"num_classes": 3}, "diffusion": {}})
    assert last_shared_weight(unet) is unet.get_parameter(last)


@pytest.mark.parametrize("weighting", ["uncertainty", "gradient_norm"])
def test_a_resumed_run_weighs_as_one_that_was_never_stopped(tiny: Tiny, weighting: str) -> None:
    runs = []
    for name in ("whole", "cut"):
        config = tiny("joint", name, joint__weighting=weighting, training__log_every=1, training__validate_every=6)
        run = train(config)
        if name == "cut":
            (checkpoints.newest(run) / checkpoints.STATE).unlink()  # type: ignore[operator]
            config.training.resume = True
            train(config)
        runs.append(run)
    files = (checkpoints.MODEL, checkpoints.EMA_WEIGHTS, checkpoints.OPTIMIZER)
    for file in files:
        a, b = (load_file(checkpoints.newest(run) / file) for run in runs)  # type: ignore[operator]
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        assert file == checkpoints.OPTIMIZER or any(name.startswith("weighting.") for name in a)
    a, b = (
        [line["weight/diffusion"] for line in read_lines(run / "metrics.jsonl") if line["kind"] == "train"]
        for run in runs
    )
    assert a == b and len(set(a)) == 6
