"""Linear CKA, held against Gram matrices in the open."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unetdiff.experiments.cka import CKA, grid_examples, unbiased_hsic


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def hsic(x: Tensor, y: Tensor) -> float:
    """The unbiased estimate as the mean over all ordered quadruples that it is (Song et al. 2012, equation 4)."""
    k, n = x @ x.T, len(x)
    l = y @ y.T  # noqa: E741
    pair = triple = quad = 0.0
    for i in range(n):
        for j in range(n):
            if j == i:
                continue
            pair += float(k[i, j] * l[i, j])
            for q in range(n):
                if q in (i, j):
                    continue
                triple += float(k[i, j] * l[i, q])
                quad += sum(float(k[i, j] * l[q, r]) for r in range(n) if r not in (i, j, q))
    p2, p3, p4 = n * (n - 1), n * (n - 1) * (n - 2), n * (n - 1) * (n - 2) * (n - 3)
    return pair / p2 + quad / p4 - 2 * triple / p3


def cka(*batches: list[Tensor]) -> Tensor:
    table = CKA()
    for batch in batches:
        table.update(batch)
    return table.compute()


def test_hsic_is_the_mean_over_quadruples():
    x, y = randn(7, 3), randn(7, 5, seed=1)
    result = unbiased_hsic(torch.stack([x @ x.T, y @ y.T]))
    for (i, a), (j, b) in [((0, x), (1, y)), ((0, x), (0, x)), ((1, y), (1, y))]:
        assert float(result[i, j]) == pytest.approx(hsic(a, b), abs=1e-10)


def test_stream_is_the_ratio_of_mean_hsics():
    batches = [
        (randn(6, 3, seed=s), randn(6, 4, seed=s + 10) + randn(6, 3, seed=s) @ randn(3, 4, seed=99)) for s in range(3)
    ]
    result = cka(*([x, y] for x, y in batches))
    means = [
        sum(hsic(a, b) for a, b in pairs) / 3
        for pairs in (batches, [(x, x) for x, _ in batches], [(y, y) for _, y in batches])
    ]
    assert float(result[0, 1]) == pytest.approx(means[0] / (means[1] * means[2]) ** 0.5, abs=1e-9)


def test_many_examples_agree_with_the_plain_form():
    x = randn(600, 4)
    y = x @ randn(4, 6, seed=1) + 0.5 * randn(600, 6, seed=2)
    a, b = x - x.mean(0), y - y.mean(0)
    plain = (a.T @ b).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())  # Kornblith et al. 2019, equation 3
    assert float(cka([x, y])[0, 1]) == pytest.approx(float(plain), abs=5e-3)


def test_rotation_scale_and_shift_change_nothing():
    x, y = randn(40, 8), randn(40, 5, seed=1) + randn(40, 8)[:, :5]
    rotation = torch.linalg.qr(randn(8, 8, seed=2)).Q
    result = cka([x, 1e-3 * x @ rotation + 100, y])
    assert float(result[0, 1]) == pytest.approx(1, abs=1e-9)
    assert float(result[0, 2]) == pytest.approx(float(result[1, 2]), abs=1e-9)
    stretched = x @ torch.diag(torch.linspace(0.1, 10, 8, dtype=torch.float64))
    assert float(cka([x, stretched])[0, 1]) < 0.9  # but a general linear map does


def test_independent_layers_are_near_zero_where_the_plain_form_is_not():
    pairs = [[randn(16, 200, seed=s), randn(16, 200, seed=s + 500)] for s in range(40)]
    assert abs(float(cka(*pairs)[0, 1])) < 0.05
    a, b = (x - x.mean(0) for x in pairs[0])
    assert float((a.T @ b).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())) > 0.8


def test_a_constant_layer_is_nan():
    result = cka([randn(8, 3), torch.ones(8, 2, dtype=torch.float64)])
    assert result[0, 1].isnan() and float(result[0, 0]) == pytest.approx(1)


def test_examples_are_the_means_of_cells():
    maps = torch.arange(2 * 3 * 4 * 4, dtype=torch.float64).reshape(2, 3, 4, 4)
    result = grid_examples(maps, 2)
    assert result.shape == (8, 3)
    assert torch.equal(result[1], maps[0, :, :2, 2:].mean(dim=(1, 2)))  # the first image's upper right
    assert grid_examples(maps[..., :1, :1], 2).unique(dim=0).shape[0] == 2  # one cell for all four


def test_too_few_examples():
    with pytest.raises(ValueError, match="at least 4"):
        CKA().update([randn(3, 2)])
