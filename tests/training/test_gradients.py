"""Comparison of the two losses' gradients: reference values, and no effect on the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from unetdiff.config.schema import RunConfig
from unetdiff.data.base import collate
from unetdiff.data.build import build_dataset
from unetdiff.models.param_groups import parameters_by_level
from unetdiff.training import checkpoints
from unetdiff.training import runtime as machine
from unetdiff.training.gradients import GradientComparison
from unetdiff.training.logger import read_lines
from unetdiff.training.tasks.build import build_task
from unetdiff.training.tasks.joint import JointTask
from unetdiff.training.trainer import train

Tiny = Callable[..., RunConfig]


@pytest.mark.parametrize("parts", [1, 2])
def test_it_is_the_cosine_of_what_each_task_alone_would_do(tiny: Tiny, parts: int) -> None:
    exact = {
        "training__mixed_precision": "no",
        "training__gradient_accumulation_steps": parts,
        "model__residual__dropout": 0.0,
    }
    config = tiny("joint", **exact)
    data = build_dataset(config.data, "train", True)
    torch.manual_seed(0)
    task = build_task(config, data, build_dataset(config.data, "val", True))
    assert isinstance(task, JointTask)
    with torch.no_grad():  # past the zeros of the start
        for parameter in task.unet.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    batches = [collate([data[i] for i in range(part, part + 2)]) for part in range(parts)]
    comparison = GradientComparison(task.unet, machine.build_accelerator(config.training))
    for batch in batches:
        losses = task.batch_losses(batch, seed=5)
        comparison({head: losses[f"{head}/loss"] / parts for head in ("segmentation", "diffusion")})
        losses["loss"].backward()  # the graph is still there
    metrics = comparison.metrics()

    groups = parameters_by_level(task.unet)
    gradients: dict[str, dict[str, torch.Tensor]] = {}
    for head, alone in (("segmentation", task.segmentation), ("diffusion", task.diffusion)):
        task.zero_grad()
        for batch in batches:
            (alone.batch_losses(batch, 5)["loss"] / parts).backward()
        gradients[head] = {
            group: torch.cat(
                [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in named.values()]
            )
            for group, named in groups.items()
        }
        gradients[head]["all"] = torch.cat(list(gradients[head].values()))
    assert {name.split("/")[0] for name in metrics} == {*groups, "all"}
    for group, gradient in gradients["segmentation"].items():
        other = gradients["diffusion"][group]
        cosine = torch.nn.functional.cosine_similarity(gradient, other, dim=0)
        assert metrics[f"{group}/cosine"] == pytest.approx(float(cosine), abs=1e-4) and abs(cosine) > 1e-4
        assert metrics[f"{group}/segmentation_norm"] == pytest.approx(float(gradient.norm()), rel=1e-3)
        assert metrics[f"{group}/diffusion_norm"] == pytest.approx(float(other.norm()), rel=1e-3)


@pytest.mark.parametrize(
    "options", [{}, {"training__gradient_checkpointing": True, "training__gradient_accumulation_steps": 2}]
)
def test_the_run_is_the_same_bit_for_bit(tiny: Tiny, options: dict[str, Any]) -> None:
    options = {**options, "training__validate_every": 6}
    plain = train(tiny("joint", "plain", **options))
    logged = train(tiny("joint", "logged", joint__log_gradients=2, **options))
    for file in (checkpoints.MODEL, checkpoints.EMA_WEIGHTS, checkpoints.OPTIMIZER):
        a, b = (load_file(checkpoints.newest(run) / file) for run in (plain, logged))  # type: ignore[operator]
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    lines = [line for line in read_lines(logged / "metrics.jsonl") if line["kind"] == "gradients"]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert all(-1 <= line["all/cosine"] <= 1 and line["encoder.0/diffusion_norm"] > 0 for line in lines)
    assert not [line for line in read_lines(plain / "metrics.jsonl") if line["kind"] == "gradients"]
