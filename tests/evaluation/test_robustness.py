"""mIoU under noise: one noise for all, figures by hand, and what a network is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn.metrics import jaccard_score
from torch import Tensor

from unetdiff import UNet
from unetdiff.diffusion.config import DiffusionConfig
from unetdiff.diffusion.objectives import alpha_sigma, build_scheduler
from unetdiff.errors import UserError
from unetdiff.evaluation.robustness import Noises, asks, mean_iou_by_timestep

SCHEDULER = build_scheduler(DiffusionConfig())


@pytest.fixture
def noises(held: Callable[..., Any], noisy: Callable[..., Tensor]) -> Noises:
    images = held(noisy(5, 0))
    images.classes = ["dark", "bright"]
    original = type(images).__getitem__

    class Masked(type(images)):  # type: ignore[misc]
        def __getitem__(self, key: Any) -> dict[str, Any]:
            item = original(self, key)
            return item | {"mask": (item["image"][0] > 127).to(torch.uint8)}

    images.__class__ = Masked
    return Noises(images, SCHEDULER, seed=3)


def test_by_hand_and_against_sklearn(noises: Noises) -> None:
    seen: dict[int, list[Tensor]] = {}

    def red(images: Tensor, timestep: int) -> Tensor:
        seen.setdefault(timestep, []).append(images)
        level = images[:, :1]
        return torch.cat([-level, level], dim=1)

    def dark(images: Tensor, timestep: int) -> Tensor:
        return torch.tensor([1.0, 0.0])[:, None, None].expand(len(images), 2, 8, 8)

    found = mean_iou_by_timestep({"red": red, "dark": dark}, noises, [0, 2, 4], [0, 500], batch_size=2)
    truth = torch.stack([noises.images[i]["mask"] for i in (0, 2, 4)]).flatten()
    assert found["red"][0] == 1
    assert found["dark"] == pytest.approx([float((truth == 0).double().mean()) / 2] * 2)  # bright: 0
    guess = (torch.cat(seen[500])[:, 0] > 0).flatten().int()
    assert found["red"][1] == pytest.approx(jaccard_score(truth, guess, average="macro"))
    assert 0.3 < found["red"][1] < 0.95


def test_one_noise_at_every_timestep(noises: Noises) -> None:
    clean = noises.at(2, 0)
    inside = []
    for t in (300, 700):
        alpha, sigma = (float(level) for level in alpha_sigma(SCHEDULER, torch.tensor([t])))
        inside.append((noises.at(2, t) - alpha * clean) / sigma)
    assert torch.allclose(inside[0], inside[1], atol=1e-5) and inside[0].std() == pytest.approx(1, abs=0.2)
    assert not torch.allclose(noises.at(1, 700) - noises.at(1, 0), noises.at(2, 700) - noises.at(2, 0), atol=0.1)
    other = Noises(noises.images, SCHEDULER, seed=4)
    assert not torch.allclose(noises.at(2, 700), other.at(2, 700), atol=0.1)


def test_what_a_network_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = UNet(encoder={"channels": [8, 8]}, residual={"norm_num_groups": 4}, heads={"segmentation": {}})
    heard = []
    monkeypatch.setattr(unet, "segment", lambda x, timestep: heard.append(timestep) or x)
    for segment in (asks(unet, True), asks(unet, False), asks(unet, True, always=0)):
        segment(torch.zeros(1, 3, 8, 8), 700)
    assert heard == [700, None, 0]


def test_timesteps_that_are_none(noises: Noises) -> None:
    for wrong in ([1000], [-1], []):
        with pytest.raises(UserError, match="timesteps: .* cannot be; use 0"):
            mean_iou_by_timestep({}, noises, [0], wrong)
