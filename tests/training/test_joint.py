"""The joint task: its loss is the weighted sum of the losses of the two tasks."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unetdiff.config.schema import RunConfig
from unetdiff.data.base import collate
from unetdiff.data.build import build_dataset
from unetdiff.models.config import SegmentationHeadConfig
from unetdiff.training.tasks.build import build_task
from unetdiff.training.tasks.joint import JointTask
from unetdiff.training.trainer import train

Tiny = Callable[..., RunConfig]


@pytest.mark.parametrize(
    ("fraction", "clean", "process"),
    [
        (1.0, [0, 1, 2, 3], "ddpm"),
        (0.5, [1, 3], "ddpm"),
        (0.3, [3], "ddpm"),
        (0.4, [1, 3], "ddpm"),
        (0.5, [1, 3], "flow"),
    ],
)
def test_the_loss_is_the_weighted_sum_of_both_tasks(
    tiny: Tiny, fraction: float, clean: list[int], process: str
) -> None:
    weights = {"joint__diffusion_weight": 7.0, "joint__segmentation_weight": 0.5, "diffusion__noise__process": process}
    config = tiny("joint", joint__segmentation_fraction=fraction, model__residual__dropout=0.0, **weights)
    train = build_dataset(config.data, "train", True)
    torch.manual_seed(0)
    task = build_task(config, train, build_dataset(config.data, "val", True))
    assert isinstance(task, JointTask)
    batch = collate([train[i] for i in range(4)])
    part = {key: [value[i] for i in clean] if isinstance(value, list) else value[clean] for key, value in batch.items()}
    losses = task.batch_losses(batch, seed=5)
    segmentation, diffusion = (
        alone.batch_losses(images, 5)["loss"] for alone, images in ((task.segmentation, part), (task.diffusion, batch))
    )
    torch.testing.assert_close(losses["segmentation/loss"], segmentation)
    torch.testing.assert_close(losses["diffusion/loss"], diffusion)
    torch.testing.assert_close(losses["loss"], 0.5 * segmentation + 7 * diffusion)


@pytest.mark.parametrize("factor", [1.0, 0.0])
def test_a_run_with_a_decoder_of_its_own_is_resumed(
    tiny: Tiny, cut_and_resumed: Callable[[RunConfig], dict[str, Tensor]], factor: float
) -> None:
    config = tiny("joint", joint__backbone_gradient=factor, joint__segmentation_fraction=0.5)
    config.model.heads.segmentation = SegmentationHeadConfig(own_decoder_levels=1, task_embedding=True)
    weights = cut_and_resumed(config)
    assert any(".own_decoder." in name for name in weights)
    embedding = next(value for name, value in weights.items() if name.endswith("task_embedding"))
    assert embedding.any()


def test_only_labelled_images_are_segmented(
    tiny: Tiny, cut_and_resumed: Callable[..., dict[str, Tensor]], wrong_masks: Callable
) -> None:
    """With wrong masks everywhere else, the weights are the same."""
    options = {"joint__segmentation_fraction": 0.5, "data__label_fraction": 0.2, "training__validate_every": 100}
    weights = cut_and_resumed(tiny("joint", "first", **options))
    with wrong_masks(0.2):
        again = cut_and_resumed(tiny("joint", "second", **options))
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_each_head_is_validated_with_a_count_of_its_own(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("unetdiff.console.LINE_SECONDS", 0.0)
    monkeypatch.delenv("UNETDIFF_NO_BAR", raising=False)
    train(tiny("joint", training__steps=1))
    counts = re.findall(r"validation: (\d+)/(\d+) batches", capsys.readouterr().err)
    total = int(counts[0][1])
    assert [int(count) for count, _ in counts] == [*range(1, total + 1)] * 2
