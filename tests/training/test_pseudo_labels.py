"""Pseudo-labels: which pixels have one, what the network learns from them, and that the other masks are not used."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from unetdiff.config.schema import RunConfig
from unetdiff.data.base import collate
from unetdiff.data.build import build_dataset
from unetdiff.segmentation.config import PseudoLabelsConfig
from unetdiff.training.draws import whole_batch
from unetdiff.training.tasks.build import build_task
from unetdiff.training.tasks.pseudo_labels import as_teacher, confident_labels, pseudo_losses, pseudo_sums
from unetdiff.training.tasks.segmentation import SegmentationTask
from unetdiff.training.trainer import train

Tiny = Callable[..., RunConfig]
FEW = {"data__label_fraction": 0.2, "training__validate_every": 100, "joint__segmentation_fraction": 0.5}


def with_pseudo_labels(config: RunConfig, **keys: float) -> RunConfig:
    config.segmentation.pseudo_labels = PseudoLabelsConfig(**keys)  # type: ignore[arg-type]
    return config


def test_confident_pixels_have_their_class_and_the_others_none() -> None:
    probability = torch.tensor([[0.97, 0.02, 0.01], [0.5, 0.3, 0.2], [0.01, 0.03, 0.96], [0.0, 1.0, 0.0]])
    logits = probability.clamp(min=1e-9).log().T[None, :, None]  # (1, 3 classes, 1, 4 pixels)
    assert confident_labels(logits, 0.95, 255).tolist() == [[[0, 255, 2, 1]]]
    assert confident_labels(logits, 0.4, ignore_index=1).tolist() == [[[0, 0, 2, 255]]]


def test_the_loss_is_over_all_pixels_of_the_images_without_masks() -> None:
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.full((2, 4, 4), 255)
    labels[0, 0, :2] = 1
    losses = pseudo_losses(pseudo_sums(logits, labels))
    two = F.cross_entropy(logits[0, :, 0, :2].T, torch.tensor([1, 1]), reduction="sum")
    torch.testing.assert_close(losses["pseudo_loss"], two / 32)  # FixMatch, equation 4: unsure ones count as zeros
    assert float(losses["pseudo_fraction"]) == 2 / 32


def test_the_teacher_takes_no_gradient_from_the_student() -> None:
    """With autocast's cache, the student's weights would be the teacher's, without a gradient."""
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    x = torch.ones(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        with as_teacher(net, x.device):
            assert not net.training and not net[1].training
            taught = net(x)
        loss = net(x).sum()
    loss.backward()
    assert net.training and net[1].training and not taught.requires_grad and net[0].weight.grad is not None


def test_labelled_rows_learn_from_masks_and_the_others_from_the_network(tiny: Tiny) -> None:
    options = {"data__label_fraction": 0.2, "model__residual__dropout": 0.0}
    config = with_pseudo_labels(tiny("segmentation", **options), confidence=0.0, weight=3.0, max_noise=0.25)
    data = build_dataset(config.data, "train", True)
    torch.manual_seed(0)
    task = build_task(config, data, build_dataset(config.data, "val", True))
    assert isinstance(task, SegmentationTask)
    batch = collate([data[i] for i in range(4)])
    losses = task.batch_losses(batch, seed=5)
    task.config.pseudo_labels = None
    masked = {key: value[1::2] for key, value in batch.items()}
    alone = task.batch_losses(masked, 5)["loss"]
    torch.testing.assert_close(losses["loss"], alone + 3 * losses["pseudo_loss"])
    task.config.pseudo_labels = PseudoLabelsConfig(confidence=0.0, max_noise=0.25)
    draws, clean = whole_batch(5, 4, task.unet.device), task.encode(batch)[0]
    labels, sample, timesteps = task.with_pseudo_labels([0, 2], *task.add_noise(clean, draws), clean, (32, 32), draws)
    assert labels is not None and torch.equal(sample[1::2], clean[1::2]) and not torch.equal(sample[0::2], clean[0::2])
    assert timesteps is None or (timesteps[1::2].tolist() == [0, 0] and int(timesteps.max()) < 250)
    assert torch.equal(labels, task.unet.eval().segment(clean[0::2], None).argmax(dim=1))
    task.unet.train()
    wanted = F.cross_entropy(task.unet.segment(sample, timesteps)[0::2], labels)
    torch.testing.assert_close(losses["pseudo_loss"], wanted)
    assert float(losses["pseudo_fraction"]) == 1


@pytest.mark.parametrize("task", ["segmentation", "joint"])
def test_masks_of_unlabelled_images_are_never_read(
    tiny: Tiny, task: str, cut_and_resumed: Callable[..., dict[str, Tensor]], wrong_masks: Callable
) -> None:
    """Resumed runs with right and with wrong masks there end with the same weights."""
    weights = cut_and_resumed(with_pseudo_labels(tiny(task, "first", **FEW), confidence=0.12))
    with wrong_masks(0.2):
        again = cut_and_resumed(with_pseudo_labels(tiny(task, "second", **FEW), confidence=0.12))
    assert all(torch.equal(weights[name], again[name]) for name in weights)


@pytest.mark.parametrize("task", ["segmentation", "joint"])
def test_a_batch_in_parts_trains_as_a_whole_one(tiny: Tiny, task: str) -> None:
    options = FEW | {"training__mixed_precision": "no"}  # bf16 rounds a part by another unit than the whole

    def trained(name: str, parts: int) -> dict[str, Tensor]:
        config = tiny(task, name, training__gradient_accumulation_steps=parts, **options)
        run = train(with_pseudo_labels(config, confidence=0.12))
        return load_file(run / "latest" / "unet" / "diffusion_pytorch_model.safetensors")

    whole, parts = trained("whole", 1), trained("parts", 4)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-5)
