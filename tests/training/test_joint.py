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
from unetdiff.training.draws import whole_batch
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


@pytest.mark.parametrize("process", ["ddpm", "flow"])
def test_images_with_little_noise_are_segmented_too(tiny: Tiny, process: str) -> None:
    """Against a pass of each head: of the clean image, and of the first quarter of the noisy ones."""
    keys = {"joint__segment_noise_below": 0.25, "joint__segmentation_fraction": 0.25, "model__residual__dropout": 0.0}
    config = tiny("joint", diffusion__noise__process=process, diffusion__condition_dropout=0.0, **keys)
    train = build_dataset(config.data, "train", True)
    task = build_task(config, train, build_dataset(config.data, "val", True))
    assert isinstance(task, JointTask) and task.diffusion.conditioner is not None
    for parameter in task.unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    batch, draws = collate([train[i] for i in range(8)]), whole_batch(5, 8, "cpu")
    rows = task.noisy_rows(task.diffusion.timesteps(batch, draws.again()), draws)
    assert rows == {"ddpm": [0, 1], "flow": [0]}[process]  # of eight stratified timesteps
    sums, noisy = task(batch, draws.again()), task.diffusion.add_noise(batch, draws.again())
    tokens, x0 = noisy.conditioning.tokens, noisy.x0
    assert tokens is not None and x0 is not None
    for name, value in task.diffusion.sums(task.diffusion.predict(noisy), noisy).items():
        torch.testing.assert_close(sums[f"diffusion/{name}"], value, rtol=1e-4, atol=1e-4)
    clean = task.unet.segment(x0[[3, 7]])
    of_noisy = task.unet(noisy.sample, noisy.timesteps, tokens, head="segmentation").sample[rows]
    for name, value in task.segmentation.sums(torch.cat([clean, of_noisy]), batch["mask"][[3, 7, *rows]]).items():
        torch.testing.assert_close(sums[f"segmentation/{name}"], value, rtol=1e-4, atol=1e-4)


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


@pytest.mark.parametrize("below", [0.0, 1.0])
def test_only_labelled_images_are_segmented(
    tiny: Tiny, cut_and_resumed: Callable[..., dict[str, Tensor]], wrong_masks: Callable, below: float
) -> None:
    """With wrong masks everywhere else, the weights are the same; `below`: of the noisy images, too."""
    options = {"joint__segmentation_fraction": 0.5, "data__label_fraction": 0.2, "training__validate_every": 100}
    options["joint__segment_noise_below"] = below
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
