"""Equation 2 of Ronneberger et al. 2015, against every distance computed for itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from unetdiff.segmentation.border_weights import BorderWeighted, border_weights
from unetdiff.segmentation.config import BorderWeightsConfig
from unetdiff.segmentation.losses import combined, cross_entropy


def cells(size: int = 64, seed: int = 0) -> np.ndarray:
    """Two classes of blobs on background 0."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((size, size)), 2.5)
    return ((noise > 0.03).astype(np.uint8) + (noise > 0.12)).astype(np.uint8)


def by_hand(mask: np.ndarray, w0: float, sigma: float) -> np.ndarray:
    distances = []
    for label in (1, 2):
        objects, count = ndimage.label(mask == label)
        places = [np.argwhere(objects == n) for n in range(1, count + 1)]
        grid = np.stack(np.meshgrid(*map(np.arange, mask.shape), indexing="ij"), -1).reshape(-1, 1, 2)
        distances += [np.sqrt(((grid - p) ** 2).sum(-1)).min(1).reshape(mask.shape) for p in places]
    nearest = np.sort(np.stack(distances), axis=0)[:2]
    return np.where(mask == 0, w0 * np.exp(-(nearest.sum(0) ** 2) / (2 * sigma**2)), 0)


@pytest.mark.parametrize("sigma", [2.0, 5.0])
def test_weights_are_those_of_the_equation(sigma: float) -> None:
    mask = cells(40)
    weights = border_weights(torch.from_numpy(mask), BorderWeightsConfig(sigma=sigma))
    np.testing.assert_allclose(weights.numpy(), by_hand(mask, 10.0, sigma), atol=1e-4)
    assert weights.dtype == torch.float32 and float(weights.max()) > 1


def test_one_object_has_no_border_and_ignored_pixels_no_weight() -> None:
    mask = torch.zeros(20, 20, dtype=torch.uint8)
    mask[5:9] = 1
    assert not border_weights(mask, BorderWeightsConfig()).any()
    mask[11:15] = 1
    weights = border_weights(mask, BorderWeightsConfig(w0=4, sigma=3))
    assert float(weights[9, 0]) == pytest.approx(4 * np.exp(-(3**2) / 18))  # 1 and 2 pixels away
    mask[9:11] = 255
    assert not border_weights(mask, BorderWeightsConfig())[9:11].any()


def test_loss_with_border_weights() -> None:
    torch.manual_seed(0)
    target = torch.from_numpy(np.stack([cells(24, 1), cells(24, 2)]))
    target[:, :2] = 255
    logits = torch.randn(2, 3, 24, 24, requires_grad=True)
    border = torch.stack([border_weights(mask, BorderWeightsConfig(sigma=2)) for mask in target])
    class_weights = [1.0, 2.0, 0.5]
    loss = combined({"cross_entropy": 1.0}, class_weights=class_weights)
    inputs = loss.prepare(logits, target, border)
    nll = torch.nn.functional.cross_entropy(logits, target.long(), ignore_index=255, reduction="none")
    valid = target != 255
    weight = torch.tensor(class_weights)[target.long().clamp(max=2)] + border
    expected = (nll * weight)[valid].sum() / weight[valid].sum()
    total, _ = loss.total(loss.sums(inputs))
    torch.testing.assert_close(total, expected)
    sums = loss.target_sums(target, 3, border)["cross_entropy"]
    torch.testing.assert_close(sums[1], weight[valid].sum())
    plain = cross_entropy(logits, target, class_weights=class_weights)
    torch.testing.assert_close(loss(logits, target)[0], plain)
    assert not torch.isclose(total, plain)


class _Masks(BorderWeighted):
    def __init__(self) -> None:
        self.classes, self.palette, self.labels = ["ground", "cell"], np.zeros((2, 3), np.uint8), []

    def __len__(self) -> int:
        return 1

    def __getitem__(self, key: object) -> dict:
        return {"image": torch.zeros(1, 64, 64, dtype=torch.uint8), "mask": torch.from_numpy(cells()), "name": "a"}


def test_items_have_the_weights_of_their_mask() -> None:
    data = BorderWeighted(_Masks(), BorderWeightsConfig(), 255)
    item = data[0]
    assert torch.equal(item["border_weight"], border_weights(item["mask"], BorderWeightsConfig()))
