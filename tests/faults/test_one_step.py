"""One optimizer step is one batch, in any number of micro-batches and processes (faults A2 and A3)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import one_step
import pytest
import torch
from torch import Tensor

from unetdiff.config.schema import RunConfig
from unetdiff.config.training import OptimizerConfig, TrainingConfig
from unetdiff.config.validation.run import validate
from unetdiff.data.build import build_dataset
from unetdiff.data.loaders import eval_loader
from unetdiff.errors import UserError
from unetdiff.models.attention import AttentionBlock
from unetdiff.models.unet import UNet
from unetdiff.segmentation.config import OHEMConfig, SegmentationConfig
from unetdiff.training.draws import StepDraws
from unetdiff.training.runtime import build_accelerator
from unetdiff.training.step import optimizer_step
from unetdiff.training.step_layers import StepLayers
from unetdiff.training.sums import require_sums
from unetdiff.training.tasks.build import build_task
from unetdiff.training.tasks.joint import JointTask
from unetdiff.training.tasks.segmentation import SegmentationTask

Tiny = Callable[..., RunConfig]
WEIGHTS = [0.2, 3.0, 1.0]
LOSSES: dict[str, dict[str, Any]] = {
    "cross-entropy": {"losses": {"cross_entropy": 1.0}},
    "class weights": {"losses": {"cross_entropy": 1.0}, "class_weights": WEIGHTS},
    "label smoothing": {"losses": {"cross_entropy": 1.0}, "label_smoothing": 0.2},
    "focal": {"losses": {"focal": 1.0}, "class_weights": WEIGHTS},
    "Dice": {"losses": {"dice": 1.0}},
    "OHEM": {"losses": {"cross_entropy": 1.0}, "ohem": OHEMConfig(0.3, 0.4), "class_weights": WEIGHTS},
    "all": {"losses": {"cross_entropy": 1.0, "dice": 0.5, "focal": 2.0}, "ohem": OHEMConfig(0.3, 0.4)},
}


def step_of(config: SegmentationConfig, parts: int, padding: str) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Losses, gradients and forward passes of a step over two images, one with 4 valid pixels, one with all."""
    torch.manual_seed(0)
    encoder = {"name": "classic", "channels": [4, 8], "norm": "none", "padding": padding}
    unet = UNet(encoder=encoder, decoder={"norm": "none"}, heads={"segmentation": {"num_classes": 3}})
    data: Any = None  # never read
    task = SegmentationTask(unet, config, data)
    mask = torch.randint(3, (2, 48, 48), dtype=torch.uint8)
    mask[0] = 255
    mask[0, 22:24, 22:24] = torch.tensor([[0, 1], [1, 2]])
    image, names, count = torch.randint(256, (2, 3, 48, 48), dtype=torch.uint8), ["a", "b"], 2 // parts
    rows = [slice(i, i + count) for i in range(0, 2, count)]
    batches = iter([{"image": image[part], "mask": mask[part], "name": names[part]} for part in rows])
    before = {name: value.detach().clone() for name, value in task.named_parameters()}
    unclipped = OptimizerConfig(max_grad_norm=0.0)
    settings = TrainingConfig(gradient_accumulation_steps=parts, mixed_precision="no", optimizer=unclipped)
    optimizer = torch.optim.SGD(task.parameters(), lr=1.0)
    passes: list[int] = []
    task.unet.register_forward_hook(lambda *_: passes.append(1))
    losses, _, _ = optimizer_step(task, optimizer, batches, 0, settings, build_accelerator(settings), StepLayers(task))
    return (
        losses,
        {name: before[name].detach() - value.detach() for name, value in task.named_parameters()},
        len(passes),
    )


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("name", LOSSES)
def test_a2_uneven_ignored_pixels(name: str, padding: str) -> None:
    config = SegmentationConfig(**LOSSES[name])
    losses, gradients, passes = step_of(config, 1, padding)
    assert passes == 1  # nothing is computed twice where nothing is cut
    cut, cut_gradients, cut_passes = step_of(config, 2, padding)
    is_linear = set(config.losses) <= {"cross_entropy", "focal"} and config.ohem is None
    assert cut_passes == (2 if is_linear and padding == "same" else 4)
    assert losses.keys() == cut.keys()
    for key, loss in losses.items():
        torch.testing.assert_close(cut[key], loss, rtol=1e-5, atol=1e-7)
    scale = max(float(gradient.abs().max()) for gradient in gradients.values())
    for key, gradient in gradients.items():
        torch.testing.assert_close(cut_gradients[key], gradient, rtol=1e-4, atol=1e-5 * scale)


def test_a3_random_numbers_follow_the_image() -> None:
    step = StepDraws(3, 8, "cpu")

    def drawn(first: int, count: int, of: StepDraws = step) -> list[Tensor]:
        rows = of.rows(first, count)
        return [
            rows(lambda count, generator: torch.rand(count, generator=generator)),
            rows(lambda count, generator: torch.randn(count, 3, 2, generator=generator), (3, 2)),
        ]

    whole = drawn(0, 8)
    for parts in (2, 4, 8):
        count = 8 // parts
        for of in (step, StepDraws(3, 8, "cpu")):  # of micro-batches, of another process
            cut = [drawn(i * count, count, of) for i in range(parts)]
            for number, value in enumerate(whole):
                assert torch.equal(torch.cat([part[number] for part in cut]), value)
    assert not torch.equal(whole[0], drawn(0, 8, StepDraws(4, 8, "cpu"))[0])


@pytest.mark.parametrize(("fraction", "chosen"), [(0.01, 1), (0.25, 4), (0.3, 5), (0.5, 8), (0.9, 14), (1.0, 16)])
def test_a3_which_images_a_joint_step_segments(tiny: Tiny, fraction: float, chosen: int) -> None:
    task = JointTask.__new__(JointTask)
    torch.nn.Module.__init__(task)
    config = tiny("joint", joint__segmentation_fraction=fraction)
    task.config, task.segmentation = config.joint, SimpleNamespace(config=config.segmentation)
    step = StepDraws(0, 16, "cpu")
    whole = task.clean_rows(step.rows(0, 16))
    gaps = [b - a for a, b in zip(whole, [*whole[1:], whole[0] + 16], strict=True)]
    assert len(whole) == chosen and max(gaps) - min(gaps) <= 1  # evenly spaced
    for count in (8, 4, 2, 1):
        cut = [first + row for first in range(0, 16, count) for row in task.clean_rows(step.rows(first, count))]
        assert cut == whole


def test_a3_a_key_bias_has_no_gradient() -> None:
    attention = AttentionBlock(8, 2, 2, 1e-6)
    torch.nn.init.normal_(attention.to_out[0].weight)
    StepLayers(attention)
    attention(torch.randn(2, 8, 4, 4)).square().sum().backward()
    gradients = [projection.bias.grad.abs().max() for projection in (attention.to_q, attention.to_k, attention.to_v)]
    assert gradients[0] > 0 and gradients[1] == 0 and gradients[2] > 0


@pytest.mark.parametrize(
    "options", [{}, {"segmentation__ohem": {"min_fraction": 0.3}}, {"segmentation__losses": {"lovasz": 1.0}}]
)
def test_a2_validation_loss_of_any_batch_size(tiny: Tiny, options: dict[str, Any]) -> None:
    config = tiny("segmentation", **options)
    val = build_dataset(config.data, "val", True)
    torch.manual_seed(0)
    task, accelerator = build_task(config, val, val), build_accelerator(TrainingConfig(mixed_precision="no"))
    losses = [task.evaluate(eval_loader(val, size, 0, 1), accelerator)["segmentation/loss"] for size in (1, 4, 6)]
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-5)


def test_a2_lovasz_is_refused_where_the_batch_is_cut(tiny: Tiny) -> None:
    config = tiny("segmentation", segmentation__losses={"lovasz": 1.0})
    validate(config)
    require_sums(config, 1)
    with pytest.raises(UserError, match=r"segmentation.losses={lovasz: 1.0}: must be without lovasz in 2 processes"):
        require_sums(config, 2)
    config.training.gradient_accumulation_steps = 2
    with pytest.raises(UserError, match="training.gradient_accumulation_steps=2: must be 1 with lovasz"):
        validate(config)


TRAINED = ["joint, dropout, OHEM", "classic, BatchNorm"]


def test_a3_weights_of_every_cut(tmp_path: Path) -> None:
    """A few steps of a few runs; 30 steps of every shipped config: `python benchmarks/one_step.py`."""
    found = list(one_step.compare(TRAINED, tmp_path, torch.float64, 2, accumulations=(4,), start_method="fork"))
    assert len(found) == 2 * len(TRAINED)
    assert not [result for result in found if not result[2] < 1e-9]
