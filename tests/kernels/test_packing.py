"""Packed convolutions, against the network that they were made from."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50

from unetdiff.benchmark.multiply_adds import count_macs
from unetdiff.kernels import packing
from unetdiff.kernels.fold_batch_norm import fold_batch_norm
from unetdiff.kernels.packing import PackedConv, PackedResidual, PackedUpBlock, can_pack, pack
from unetdiff.models.blocks import DoubleConv, ResnetBlock, Upsample2d
from unetdiff.models.decoders import PyramidUpBlock

pytestmark = pytest.mark.skipif(not can_pack(torch.float32), reason="this torch has no oneDNN")


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
        images = drawn(2, 3, height, width)
        torch.testing.assert_close(packed(images), network(images), rtol=1e-4, atol=1e-4)
    assert count_macs(lambda: packed(images)) == count_macs(lambda: network(images)) > 0


@pytest.mark.parametrize("channels", [4, 0])
@pytest.mark.parametrize(("min_pixels", "min_channels"), [(1, 4), (1 << 20, 4), (1, 1)])
@torch.no_grad()
def test_a_decoder_level_upsamples_and_concatenates(
    monkeypatch: pytest.MonkeyPatch, channels: int, min_pixels: int, min_channels: int
) -> None:
    monkeypatch.setattr("unetdiff.kernels.upsample_conv.MIN_PIXELS", min_pixels)
    monkeypatch.setattr("unetdiff.kernels.taps.MIN_CHANNELS", min_channels)
    block = PyramidUpBlock(Upsample2d("nearest", 3), DoubleConv(3 + channels, 6, "none"))
    network = nn.ModuleList([copy.deepcopy(block)])
    pack(network)
    assert isinstance(network[0], PackedUpBlock)
    h = drawn(2, 3, 5, 7)
    for size in [(10, 14)] * 3 + [(9, 13)] * 3 + [(10, 14)] * 2 + [(9, 13), (10, 14)]:
        skip = drawn(2, channels, *size) if channels else None
        for part in (h, h[:1]):
            part_of_skip = None if skip is None else skip[: len(part)]
            expected = block(part, part_of_skip, size, None)
            torch.testing.assert_close(network[0](part, part_of_skip, size, None), expected)
    for _ in range(2):
        network[0](h, drawn(2, channels, 10, 14) if channels else None, (10, 14), None)
    packed = network[0].conv1
    assert packed.packed is not None and packed.packed.is_mkldnn
    assert packed.tapped == (min_channels == 1)
    network.to(torch.bfloat16)
    result = network[0](h.bfloat16(), None if skip is None else skip.bfloat16(), size, None)
    expected = block(h, skip, size, None)
    assert result.dtype == torch.bfloat16 and (result.float() - expected).norm() < 0.02 * expected.norm()


@torch.no_grad()
def test_only_what_nobody_else_reads_is_written_over() -> None:
    network = resnet18().eval()
    fold_batch_norm(network, lambda: network(drawn(1, 3, 64, 64)))
    pack(network)
    seen = {}
    for name in ("layer1.0", "layer1.1", "layer2.0"):
        network.get_submodule(name).register_forward_pre_hook(
            lambda module, given, name=name: seen.update({name: (given[0], given[0].clone())})
        )
    network(drawn(1, 3, 64, 64))
    kept = {name: bool((now == before).all()) for name, (now, before) in seen.items()}
    assert kept == {"layer1.0": True, "layer1.1": False, "layer2.0": True}


@torch.no_grad()
def test_all_weights_are_laid_out_when_a_size_comes_again() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    pack(network)

    def laid_out_after(size: int) -> list[bool]:
        network(drawn(1, 3, size, size))
        return [conv.weight.is_mkldnn for conv in network]

    assert laid_out_after(8) == [False, False]
    assert laid_out_after(8) == [True, True] == laid_out_after(8)
    assert laid_out_after(9) == [False, False]
    network[0](drawn(1, 3, 9, 9))
    assert [conv.weight.is_mkldnn for conv in network] == [True, True]  # the second before it is asked


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
    packed, x = PackedConv.of(conv, [], relu=True), drawn(1, 3, 8, 8)
    for _ in range(3):
        packed(x)
    assert packed.weight.is_mkldnn
    torch.testing.assert_close(packed(x.bfloat16()), conv(x.bfloat16().float()).relu())
    packed.to(torch.bfloat16)
    found = packed(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), conv(x).relu(), rtol=0.05, atol=0.02)


@torch.no_grad()
def test_a_cpu_without_bfloat16_computes_with_plain_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A packed network is moved to a dtype that oneDNN refuses on this CPU: slow, but right."""
    monkeypatch.setattr(packing, "supports", lambda dtype: dtype == torch.float32)
    monkeypatch.setattr(torch.ops.mkldnn, "_convolution_pointwise", refused, raising=False)
    monkeypatch.setattr(torch.ops.mkldnn, "_convolution_transpose_pointwise", refused, raising=False)
    block = PyramidUpBlock(Upsample2d("nearest", 3), DoubleConv(3 + 4, 6, "none"))
    network = nn.ModuleList([copy.deepcopy(block)])
    pack(network)
    network.to(torch.bfloat16)
    h, skip = drawn(2, 3, 5, 7), drawn(2, 4, 10, 14)
    for _ in range(3):
        found = network[0](h.bfloat16(), skip.bfloat16(), (10, 14), None)
    expected = block(h, skip, (10, 14), None)
    assert found.dtype == torch.bfloat16 and (found.float() - expected).norm() < 0.02 * expected.norm()


def refused(*args: object) -> Tensor:
    raise AssertionError("a fused operator was called in an unsupported dtype")


def test_a_gradient_of_what_it_reads_is_the_networks() -> None:
    # oneDNN's operators have none: steering by a prediction of a packed network would have gone without it
    network = resnet18(num_classes=5).eval().requires_grad_(False)
    fold_batch_norm(network, lambda: network(drawn(1, 3, 64, 64)))
    packed = copy.deepcopy(network)
    pack(packed)
    with torch.no_grad():
        for _ in range(2):  # weights are laid out now
            packed(drawn(2, 3, 64, 64))
    gradients = []
    for each in (packed, network):
        images = drawn(2, 3, 64, 64).requires_grad_()
        each(images).square().sum().backward()
        gradients.append(images.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-4)


def test_a_precision_that_the_machine_has_not_is_not_packed() -> None:
    assert not can_pack(torch.float64)


def test_nothing_is_packed_without_torchs_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "OPERATORS", (*packing.OPERATORS, "_no_such_operator"))
    assert not can_pack(torch.float32)
