"""BatchNorm and dropout are functions of the optimizer step's batch; BatchNorm over one value is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from unetdiff import UNet
from unetdiff.config.schema import RunConfig
from unetdiff.config.training import TrainingConfig
from unetdiff.errors import UserError
from unetdiff.kernels.accelerate import accelerate_training_
from unetdiff.models.blocks import FrozenBatchNorm2d
from unetdiff.training.batch_norm import SharedBatchNorm2d
from unetdiff.training.dropout import StepDropout
from unetdiff.training.step_layers import StepLayers, require_batch_norm_images
from unetdiff.training.trainer import train


def test_a3_statistics_of_groups_of_images() -> None:
    """Each group as `nn.BatchNorm2d` alone; running statistics once per step, by the mean over its groups."""
    torch.manual_seed(0)
    shared, plain = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    layers = StepLayers(shared, batch_norm_images=2)
    assert type(shared) is SharedBatchNorm2d and shared.state_dict().keys() == plain.state_dict().keys()
    x = (5 + 2 * torch.randn(8, 3, 4, 5)).to(memory_format=torch.channels_last)
    layers.begin_step()
    out = torch.cat([shared(part) for part in x.split(4)])  # two micro-batches
    assert shared.num_batches_tracked == 0
    layers.end_step(finite=True)
    means, variances = [], []
    for number, group in enumerate(x.split(2)):
        plain.reset_running_stats()
        torch.testing.assert_close(out[2 * number : 2 * number + 2], plain(group))
        means.append(plain.running_mean.clone())
        variances.append(plain.running_var.clone())
    torch.testing.assert_close(shared.running_mean, torch.stack(means).mean(0))
    torch.testing.assert_close(shared.running_var, torch.stack(variances).mean(0))
    assert shared.num_batches_tracked == 1
    shared.eval()
    torch.testing.assert_close(shared(x), copy.deepcopy(shared)(x))


@pytest.mark.parametrize("images", [None, 2])
def test_a3_a_nonfinite_step_leaves_the_statistics(images: int | None) -> None:
    norm = nn.BatchNorm2d(3)
    layers = StepLayers(norm, batch_norm_images=images)
    before = copy.deepcopy(norm.state_dict())
    for finite in (False, True):
        layers.begin_step()
        norm(torch.full((4, 3, 2, 2), torch.nan) if not finite else torch.randn(4, 3, 2, 2))
        layers.end_step(finite)
        assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items()) != finite
    assert norm.running_var.isfinite().all()


def test_a3_half_precision_and_frozen_norms() -> None:
    norm = nn.BatchNorm2d(3)
    frozen = FrozenBatchNorm2d(3)
    StepLayers(nn.Sequential(norm, frozen), batch_norm_images=2)
    assert type(frozen) is FrozenBatchNorm2d
    x = torch.randn(4, 3, 8, 8)
    assert norm(x.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(norm(x.bfloat16()).float(), norm(x), rtol=0.02, atol=0.02)


BATCH_NORM = {"model__encoder__name": "classic", "training__steps": 1, "data__scenes__train_images": 4}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"training__gradient_accumulation_steps": 2},
            "training.batch_norm_images=null: must be set with training.gradient_accumulation_steps=2, as BatchNorm "
            "sees one micro-batch a time. Use 2, or model.encoder.norm and model.decoder.norm group or frozen.",
        ),
        (
            {"training__gradient_accumulation_steps": 2, "training__batch_norm_images": 4},
            "training.batch_norm_images=4: must be a divisor of 2, the images of a micro-batch",
        ),
        ({"training__batch_norm_images": 0}, "training.batch_norm_images=0: must be at least 1"),
    ],
)
def test_a3_batch_norm_that_a_micro_batch_cannot_compute(
    options: dict[str, int], message: str, tiny: Callable[..., RunConfig], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        train(tiny("segmentation", **BATCH_NORM, **options))
    assert str(caught.value).startswith(message)
    assert not (tmp_path / "run").exists()


RESNET = {
    "model__encoder__name": "resnet18",
    "model__encoder__channels": None,
    "data__augment__crop": [32, 32],
    "training__steps": 1,
    "training__batch_size": 1,
    "data__scenes__train_images": 4,
    "data__scenes__val_images": 1,
}


@pytest.mark.parametrize("options", [{}, {"training__batch_size": 2, "training__batch_norm_images": 1}])
def test_c_batch_norm_over_one_value(options: dict[str, int], tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    key = "training.batch_norm_images" if options else "training.batch_size"
    with pytest.raises(
        UserError, match=f"^{key}=1: must be greater than 1 where BatchNorm normalizes maps of one pixel"
    ):
        train(tiny("segmentation", **RESNET | options))
    assert not (tmp_path / "run").exists()


def test_c_one_image_without_batch_statistics_or_with_larger_maps() -> None:
    small, large = ({(0, 0, True): {"image": torch.zeros(3, side, side)}} for side in (32, 64))
    encoder, heads = {"name": "resnet18"}, {"segmentation": {"num_classes": 2}}
    frozen, whole = TrainingConfig(batch_size=1, freeze_encoder=1.0), TrainingConfig(batch_size=1)
    group = UNet(encoder=encoder | {"norm": "frozen"}, decoder={"norm": "group"}, heads=heads)
    batch = UNet(encoder=encoder, decoder={"norm": "group"}, heads=heads)
    for unet, settings, data in ((group, whole, small), (batch, frozen, small), (batch, whole, large)):
        require_batch_norm_images(unet, settings, 1, data)
    with pytest.raises(UserError, match="^training.batch_size=1: must be greater than 1"):
        require_batch_norm_images(batch, whole, 1, small)


# ---------------------------------------------------------------------- dropout


def masks(layers: StepLayers, layer: nn.Module, seed: int, rows: range, clean: range = range(0)) -> Tensor:
    with layers.part(seed, rows, clean):
        return layer(torch.ones(len(clean) + len(rows), 8, 4, 4))


@pytest.mark.parametrize("kind", [nn.Dropout(0.5), StochasticDepth(0.5, "row")], ids=["dropout", "stochastic_depth"])
def test_a3_masks_are_functions_of_seed_row_and_layer(kind: nn.Module) -> None:
    network = nn.Sequential(kind, copy.deepcopy(kind))
    plain = copy.deepcopy(network)
    layers = StepLayers(network)
    assert network.state_dict().keys() == plain.state_dict().keys()
    whole = masks(layers, network[0], 1, range(64))
    parts = [masks(layers, network[0], 1, range(start, start + 16)) for start in range(0, 64, 16)]
    assert torch.equal(torch.cat(parts), whole)
    assert 0.3 < (whole == 2).float().mean() < 0.7 and set(whole.unique().tolist()) == {0.0, 2.0}
    others = [masks(layers, network[1], 1, range(64)), masks(layers, network[0], 2, range(64))]
    assert not any(torch.equal(other, whole) for other in others)
    both = masks(layers, network[0], 1, range(64), range(16))  # a joint pass: 16 clean images, 64 noisy ones
    assert torch.equal(both[16:], whole) and not torch.equal(both[:16], whole[:16])
    torch.manual_seed(0)
    drawn = network(torch.ones(8, 3))  # outside of a step
    torch.manual_seed(0)
    assert torch.equal(drawn, plain(torch.ones(8, 3)))
    assert torch.equal(network.eval()(torch.ones(2, 3)), torch.ones(2, 3))


def test_a3_checkpointing_and_faster_modules_draw_the_same_masks() -> None:
    torch.manual_seed(0)
    encoder = {"name": "residual", "channels": [4, 8]}
    residual = {"layers_per_block": 1, "norm_num_groups": 2, "dropout": 0.5}
    plain = UNet(encoder=encoder, residual=residual, heads={"segmentation": {"num_classes": 2}}).train()
    for parameter in plain.parameters():  # not zero, as a new block's last convolution is
        nn.init.normal_(parameter, std=0.3)
    recomputing, fast = copy.deepcopy(plain), accelerate_training_(copy.deepcopy(plain))
    recomputing.enable_gradient_checkpointing()
    x, gradients = torch.randn(2, 3, 16, 16), []
    for network in (plain, recomputing, fast):
        layers = StepLayers(network)
        assert any(type(module) is StepDropout for module in network.modules())
        with layers.part(3, range(2)):
            network.segment(x).square().mean().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in network.parameters()]))
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(gradients[2], gradients[0], rtol=1e-3, atol=1e-5)
