"""mIoU under noise: a fixed noise for each image, metrics against scikit-learn, and timestep conditioning."""

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
from unetdiff.evaluation.robustness import NoisedImages, as_segment_function, mean_iou_by_timestep

SCHEDULER = build_scheduler(DiffusionConfig())


@pytest.fixture
def noises(in_memory: Callable[..., Any], noisy: Callable[..., Tensor]) -> NoisedImages:
    images = in_memory(noisy(5, 0))
    images.classes = ["dark", "bright"]
    original = type(images).__getitem__

    class Masked(type(images)):  # type: ignore[misc]
        def __getitem__(self, key: Any) -> dict[str, Any]:
            item = original(self, key)
            return item | {"mask": (item["image"][0] > 127).to(torch.uint8)}

    images.__class__ = Masked
    return NoisedImages(images, SCHEDULER, seed=3)


def test_against_sklearn(noises: NoisedImages) -> None:
    seen: dict[int, list[Tensor]] = {}

    def red(images: Tensor, timestep: int) -> Tensor:
        seen.setdefault(timestep, []).append(images)
        level = images[:, :1]
        return torch.cat([-level, level], dim=1)

    def dark(images: Tensor, timestep: int) -> Tensor:
        return torch.tensor([1.0, 0.0])[:, None, None].expand(len(images), 2, 8, 8)

    result = mean_iou_by_timestep({"red": red, "dark": dark}, noises, [0, 2, 4], [0, 500], batch_size=2)
    target = torch.stack([noises.images[i]["mask"] for i in (0, 2, 4)]).flatten()
    assert result["red"][0] == 1
    assert result["dark"] == pytest.approx([float((target == 0).double().mean()) / 2] * 2)  # bright: 0
    prediction = (torch.cat(seen[500])[:, 0] > 0).flatten().int()
    assert result["red"][1] == pytest.approx(jaccard_score(target, prediction, average="macro"))
    assert 0.3 < result["red"][1] < 0.95


def test_one_noise_at_every_timestep(noises: NoisedImages) -> None:
    clean = noises.noised_image(2, 0)
    inside = []
    for t in (300, 700):
        alpha, sigma = (float(level) for level in alpha_sigma(SCHEDULER, torch.tensor([t])))
        inside.append((noises.noised_image(2, t) - alpha * clean) / sigma)
    assert torch.allclose(inside[0], inside[1], atol=1e-5) and inside[0].std() == pytest.approx(1, abs=0.2)
    assert not torch.allclose(
        noises.noised_image(1, 700) - noises.noised_image(1, 0),
        noises.noised_image(2, 700) - noises.noised_image(2, 0),
        atol=0.1,
    )
    other = NoisedImages(noises.images, SCHEDULER, seed=4)
    assert not torch.allclose(noises.noised_image(2, 700), other.noised_image(2, 700), atol=0.1)


def test_timestep_conditioning(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = UNet(encoder={"channels": [8, 8]}, residual={"norm_num_groups": 4}, heads={"segmentation": {}})
    timesteps = []
    monkeypatch.setattr(unet, "segment", lambda x, timestep: timesteps.append(timestep) or x)
    for segment in (
        as_segment_function(unet, True),
        as_segment_function(unet, False),
        as_segment_function(unet, True, fixed_timestep=0),
    ):
        segment(torch.zeros(1, 3, 8, 8), 700)
    assert timesteps == [700, None, 0]


def test_invalid_timesteps(noises: NoisedImages) -> None:
    for wrong in ([1000], [-1], []):
        with pytest.raises(UserError, match="timesteps=.*: must be one or more of 0"):
            mean_iou_by_timestep({}, noises, [0], wrong)
