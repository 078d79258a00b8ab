"""Packed convolutions, against the network that they were made from."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50

from unetdiff.benchmark.counting import macs
from unetdiff.models.blocks import DoubleConv, ResnetBlock
from unetdiff.models.folding import fold_batch_norm
from unetdiff.models.packing import PackedConv, PackedDoubleConv, PackedResidual, can_pack, pack
from unetdiff.models.shortcuts import as_written

pytestmark = pytest.mark.skipif(not can_pack(), reason="this torch has no oneDNN")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("make", [resnet18, resnet50])
@torch.no_grad()
def test_a_folded_trunk_answers_the_same_at_every_size(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    network = make(num_classes=5).eval()
    fold_batch_norm(network, lambda: network(drawn(1, 3, 64, 64)))
    packed = copy.deepcopy(network)
    pack(packed)
    kinds = [type(module) for module in packed.modules()]
    assert nn.Conv2d not in kinds and kinds.count(PackedResidual) == {resnet18: 8, resnet50: 16}[make]
    for height, width in [
        (64, 64),
        (64, 64),
        (64, 64),
        (96, 33),
        (64, 64),
        (33, 96),
        (33, 96),
    ]:
        pictures = drawn(2, 3, height, width)
        torch.testing.assert_close(packed(pictures), network(pictures), rtol=1e-4, atol=1e-4)
    with as_written():
        torch.testing.assert_close(packed(pictures), network(pictures), rtol=1e-4, atol=1e-4)
    assert macs(lambda: packed(pictures)) == macs(lambda: network(pictures)) > 0


@pytest.mark.parametrize("size", [(10, 14), (9, 13)])
@torch.no_grad()
def test_a_double_convolution_grows_and_joins(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]) -> None:
    block = DoubleConv(7, 6, "none")
    packed = PackedDoubleConv(copy.deepcopy(block))
    h, skip = drawn(2, 3, 5, 7), drawn(2, 4, *size)
    expected = block.grown(h, size, skip, None)
    for least in (1, 1 << 20):
        monkeypatch.setattr("unetdiff.models.upsampling.ENOUGH", least)
        for _ in range(3):
            torch.testing.assert_close(packed.grown(h, size, skip, None), expected)


def test_what_cannot_be_packed_stays() -> None:
    network = nn.ModuleDict(
        {
            "timed": DoubleConv(3, 4, "none", time_dim=8),
            "normed": DoubleConv(3, 4, "batch"),
            "residual": ResnetBlock(4, 4, None, groups=2),
            "mirrored": nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        }
    )
    pack(network)
    assert [type(child) for child in network.values()] == [DoubleConv, DoubleConv, ResnetBlock, nn.Conv2d]
    assert isinstance(network["timed"].conv1, PackedConv) and isinstance(network["residual"].conv1, nn.Conv2d)


@torch.no_grad()
def test_it_goes_to_another_precision_and_serves_autocast() -> None:
    conv = nn.Conv2d(3, 4, 3, padding=1)
    packed, x = PackedConv(conv, relu=True), drawn(1, 3, 8, 8)
    for _ in range(3):
        packed(x)
    assert packed.weight.is_mkldnn
    torch.testing.assert_close(packed(x.bfloat16()), conv(x.bfloat16().float()).relu())
    packed.to(torch.bfloat16)
    found = packed(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), conv(x).relu(), rtol=0.05, atol=0.02)
