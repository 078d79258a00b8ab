"""What makes a comparison fair: the same work, the same weights, the same images; each against its own library."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

pytest.importorskip("segmentation_models_pytorch", exc_type=ImportError)

from suite.cases import denoiser, loss, sampling, segmentation  # noqa: E402
from suite.cases.case import Cost, Side, same_work  # noqa: E402
from suite.cases.images import RandomImages, normalized  # noqa: E402
from unetdiff.benchmark import counting  # noqa: E402
from unetdiff.benchmark.multiply_adds import parameters  # noqa: E402
from unetdiff.data.sampling import SampleKey
from unetdiff.errors import UserError  # noqa: E402

CPU = torch.device("cpu")
X = torch.randn(2, 3, 8, 8)


def side(name: str, network: nn.Module) -> Side:
    return Side(name, network, "float32", lambda: lambda: network(X))


def convolution(width: int, kernel: int = 3) -> nn.Module:
    return nn.Conv2d(3, width, kernel, padding=kernel // 2)


class TestSameWork:
    def check(self, ours: nn.Module, theirs: nn.Module) -> tuple[Cost, Cost]:
        sides = side("ours 1.0", ours), side("peer 2.0", theirs)
        numbers = [parameters(network) for network in (ours, theirs)]
        return same_work("a step", *sides, {one.name: one.start() for one in sides}, numbers)

    def test_a_few_per_cent_apart_is_the_same(self) -> None:
        ours, theirs = self.check(convolution(40), convolution(41))
        assert ours == Cost(40 * 28, 2 * 64 * 40 * 27) and theirs == Cost(41 * 28, 2 * 64 * 41 * 27)

    def test_more_parameters_are_refused_and_both_are_named(self) -> None:
        found = r"^a step: parameters differ, ours 1.0 has 0.11 M and peer 2.0 0.12 M, more than 5 % apart"
        with pytest.raises(UserError, match=found):
            self.check(convolution(4000), convolution(4300))

    def test_more_multiply_adds_are_refused(self) -> None:
        class Half(nn.Conv2d):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return super().forward(x[..., ::2])

        with pytest.raises(UserError, match=r"^a step: multiply-adds differ, ours 1.0 has 0.14 M and peer 2.0 0.07 M"):
            self.check(convolution(40), Half(3, 40, 3, padding=1))


def test_the_full_cases_do_the_same_work() -> None:
    """Counted on tensors without numbers, so that nothing is computed."""
    segmenter, denoising = segmentation.inference_cases(False)[0], denoiser.cases(False)[0]
    pixels, told = torch.zeros(1, 3, 256, 256, device="meta"), torch.zeros(32, 1, denoiser.TOKEN, device="meta")
    noisy, timesteps = torch.zeros(32, 3, 32, 32, device="meta"), torch.zeros(32, dtype=torch.long, device="meta")
    ours, theirs = segmenter.our_task(), segmenter.their_network()
    pairs = [((ours, lambda: ours.unet.segment(pixels)), (theirs, lambda: theirs(pixels)))]
    task, network = denoising.our_task(), denoising.their_network()
    unets = task.unet, network["unet"]
    forward = [lambda unet=unet: unet(noisy, timesteps, told) for unet in unets]
    pairs.append(((task, forward[0]), (network, forward[1])))
    for pair in pairs:
        for whole, _ in pair:
            nn.Module.to(whole, "meta")
        costs = [Cost(counting.parameters(whole), counting.macs(run)) for whole, run in pair]
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


def test_normalised_is_torchvisions() -> None:
    from torchvision.transforms import v2

    image = RandomImages(1, 8).batch()["image"]
    expected = v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])(image / 255)
    torch.testing.assert_close(normalized(image), expected)
    assert normalized(image).is_contiguous(memory_format=torch.channels_last)
    assert normalized(image, torch.contiguous_format).is_contiguous()


@pytest.mark.parametrize("which", ["ours", "theirs"])
def test_every_norm_of_both_segmenters_is_folded(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(segmentation.inference_cases(True)[1], batch=1, size=32)
    before = getattr(case, which)(CPU)
    norms = [module for module in before.network.modules() if isinstance(module, nn.BatchNorm2d)]
    monkeypatch.setattr(nn.BatchNorm2d, "forward", lambda self, x: seen.append(x) or x)
    seen: list[torch.Tensor] = []
    round_ = before.start()
    seen.clear()  # folding looks at them once
    masks = round_()
    assert case.best and norms and not seen
    assert torch.as_tensor(masks[0]).shape == (32, 32) and torch.as_tensor(masks[0]).dtype == torch.uint8


def test_the_denoisers_have_the_same_weights_and_draw_the_same_images() -> None:
    case = sampling.cases(True)[0]
    ours, theirs = case.ours(CPU), case.theirs(CPU)
    before = ours.network.unet.state_dict()["encoder.conv_in.weight"].clone()
    figures = case.match(ours, theirs)
    assert figures["difference"] < 1e-5 and figures["psnr"] >= case.figure_targets["psnr"] == 50
    assert not torch.equal(before, ours.network.unet.state_dict()["encoder.conv_in.weight"])
    torch.nn.init.normal_(theirs.network["table"].weight)
    assert sampling.psnr(case._our_draw(ours.network)(), case._their_draw(theirs.network)()) < 50


def test_psnr() -> None:
    assert sampling.psnr(torch.zeros(4), torch.full((4,), 0.1)) == pytest.approx(20)
    assert sampling.psnr(torch.zeros(4), torch.zeros(4)) == math.inf


def test_both_losses_look_at_the_same_pixels() -> None:
    """The values differ by design (void in Dice's mean over absent classes); where every class is there they agree."""
    case = replace(loss.cases(True)[0], classes=2)
    values = [float(one.start()()) for one in (case.ours(CPU), case.theirs(CPU))]
    assert values[0] == pytest.approx(values[1], rel=1e-3)


@pytest.mark.parametrize("case", [segmentation.training_cases(True)[0], denoiser.cases(True)[1]])
def test_both_sides_of_a_training_step_learn(case) -> None:
    sides = case.ours(CPU), case.theirs(CPU)
    case.match(*sides)
    for one in sides:
        before = [parameter.detach().clone() for parameter in one.network.parameters()]
        one.start()()
        moved = [not torch.equal(a, b) for a, b in zip(before, one.network.parameters(), strict=True)]
        assert sum(moved) > 0.9 * len(moved)
