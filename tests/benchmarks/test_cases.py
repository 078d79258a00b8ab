"""Fair comparison: the same work, weights and images; each workload against its own library."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

pytest.importorskip("segmentation_models_pytorch", exc_type=ImportError)

from suite.cases import denoiser, loss, sampling, segmentation  # noqa: E402
from suite.cases.case import Cost, Side, same_work  # noqa: E402
from suite.cases.images import RandomImages, normalize_imagenet  # noqa: E402
from unetdiff.benchmark.multiply_adds import count_macs, count_parameters  # noqa: E402
from unetdiff.data.sampling import SampleKey
from unetdiff.errors import UserError  # noqa: E402

CPU = torch.device("cpu")
X = torch.randn(2, 3, 8, 8)


def side(name: str, network: nn.Module) -> Side:
    return Side(name, network, "float32", lambda: lambda: network(X))


def convolution(width: int, kernel: int = 3) -> nn.Module:
    return nn.Conv2d(3, width, kernel, padding=kernel // 2)


class TestSameWork:
    def check(self, unetdiff: nn.Module, peer: nn.Module) -> tuple[Cost, Cost]:
        sides = side("unetdiff 1.0", unetdiff), side("peer 2.0", peer)
        numbers = [count_parameters(network) for network in (unetdiff, peer)]
        return same_work("a step", *sides, {one.name: one.start() for one in sides}, numbers)

    def test_small_differences_are_allowed(self) -> None:
        unetdiff, peer = self.check(convolution(40), convolution(41))
        assert unetdiff == Cost(40 * 28, 2 * 64 * 40 * 27) and peer == Cost(41 * 28, 2 * 64 * 41 * 27)

    def test_different_parameters(self) -> None:
        message = r"^a step: parameters must agree within 5 % .got 0.11 M in unetdiff 1.0 and 0.12 M in peer 2.0."
        with pytest.raises(UserError, match=message):
            self.check(convolution(4000), convolution(4300))

    def test_different_multiply_adds(self) -> None:
        class Half(nn.Conv2d):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return super().forward(x[..., ::2])

        message = r"^a step: multiply-adds must agree within 5 % .got 0.14 M in unetdiff 1.0 and 0.07 M in peer 2.0."
        with pytest.raises(UserError, match=message):
            self.check(convolution(40), Half(3, 40, 3, padding=1))


def test_full_cases_do_the_same_work() -> None:
    """Counted on meta tensors."""
    segmenter, denoising = segmentation.inference_cases(False)[0], denoiser.cases(False)[0]
    pixels, tokens = torch.zeros(1, 3, 256, 256, device="meta"), torch.zeros(32, 1, denoiser.TOKEN_DIM, device="meta")
    noisy, timesteps = torch.zeros(32, 3, 32, 32, device="meta"), torch.zeros(32, dtype=torch.long, device="meta")
    unetdiff, peer = segmenter.unetdiff_task(), segmenter.peer_network()
    pairs = [((unetdiff, lambda: unetdiff.unet.segment(pixels)), (peer, lambda: peer(pixels)))]
    task, network = denoising.unetdiff_task(), denoising.peer_network()
    unets = task.unet, network["unet"]
    forward = [lambda unet=unet: unet(noisy, timesteps, tokens) for unet in unets]
    pairs.append(((task, forward[0]), (network, forward[1])))
    for pair in pairs:
        for whole, _ in pair:
            nn.Module.to(whole, "meta")
        costs = [Cost(count_parameters(whole), count_macs(run)) for whole, run in pair]
        assert costs[0].parameters == pytest.approx(costs[1].parameters, rel=0.05)
        assert costs[0].macs == pytest.approx(costs[1].macs, rel=0.05) and costs[0].macs > 1e9
    assert len(segmentation.training_cases(False)) == 4 and len(segmentation.inference_cases(False)) == 12


def test_random_images_are_the_same_every_time() -> None:
    images = RandomImages(3, 32, classes=5)
    a, b = images.batch(), images.batch()
    assert torch.equal(a["image"], b["image"]) and torch.equal(a["mask"], b["mask"])
    assert torch.equal(images[SampleKey(2, 9, True)]["image"], a["image"][2])
    assert a["image"].shape == (3, 3, 32, 32) and set(a["mask"].unique().tolist()) <= {0, 1, 2, 3, 4, 255}
    assert not torch.equal(a["image"][0], a["image"][1]) and 255 in a["mask"]


def test_normalize_imagenet_is_torchvisions() -> None:
    from torchvision.transforms import v2

    image = RandomImages(1, 8).batch()["image"]
    expected = v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])(image / 255)
    torch.testing.assert_close(normalize_imagenet(image), expected)
    assert normalize_imagenet(image).is_contiguous(memory_format=torch.channels_last)
    assert normalize_imagenet(image, torch.contiguous_format).is_contiguous()


@pytest.mark.parametrize("which", ["unetdiff", "peer"])
def test_every_norm_of_both_segmenters_is_folded(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(segmentation.inference_cases(True)[1], batch=1, size=32)
    before = getattr(case, which)(CPU)
    norms = [module for module in before.network.modules() if isinstance(module, nn.BatchNorm2d)]
    monkeypatch.setattr(nn.BatchNorm2d, "forward", lambda self, x: seen.append(x) or x)
    seen: list[torch.Tensor] = []
    round_ = before.start()
    seen.clear()  # folding runs them once
    masks = round_()
    assert case.best and norms and not seen
    assert torch.as_tensor(masks[0]).shape == (32, 32) and torch.as_tensor(masks[0]).dtype == torch.uint8


def test_denoisers_have_the_same_weights_and_samples() -> None:
    case = sampling.cases(True)[0]
    unetdiff, peer = case.unetdiff(CPU), case.peer(CPU)
    before = unetdiff.network.unet.state_dict()["encoder.conv_in.weight"].clone()
    agreement = case.match_weights(unetdiff, peer)
    assert agreement["difference"] < 1e-5 and agreement["psnr"] >= case.min_agreement["psnr"] == 50
    assert not torch.equal(before, unetdiff.network.unet.state_dict()["encoder.conv_in.weight"])
    torch.nn.init.normal_(peer.network["table"].weight)
    assert sampling.psnr(case._unetdiff_sampler(unetdiff.network)(), case._peer_sampler(peer.network)()) < 50


def test_psnr() -> None:
    assert sampling.psnr(torch.zeros(4), torch.full((4,), 0.1)) == pytest.approx(20)
    assert sampling.psnr(torch.zeros(4), torch.zeros(4)) == math.inf


def test_both_losses_agree() -> None:
    """The means of Dice over absent classes differ by design; with all classes present the values agree."""
    case = replace(loss.cases(True)[0], classes=2)
    values = [float(one.start()()) for one in (case.unetdiff(CPU), case.peer(CPU))]
    assert values[0] == pytest.approx(values[1], rel=1e-3)


@pytest.mark.parametrize("case", [segmentation.training_cases(True)[0], denoiser.cases(True)[1]])
def test_both_sides_of_a_training_step_learn(case) -> None:
    sides = case.unetdiff(CPU), case.peer(CPU)
    case.match_weights(*sides)
    for one in sides:
        before = [parameter.detach().clone() for parameter in one.network.parameters()]
        one.start()()
        moved = [not torch.equal(a, b) for a, b in zip(before, one.network.parameters(), strict=True)]
        assert sum(moved) > 0.9 * len(moved)
