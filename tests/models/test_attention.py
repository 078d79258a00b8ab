"""Attention of few tokens on a CPU."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from unetdiff.models import attention
from unetdiff.models.attention import Attention, FeedForward, attend


@pytest.mark.parametrize("keys", [5, 7])
def test_plain_products_are_torchs_attention(keys: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 3, 5, 8, generator=generator, requires_grad=True)
    k, v = (torch.randn(2, 3, keys, 8, generator=generator, requires_grad=True) for _ in "kv")
    towards = torch.randn(2, 3, 5, 8, generator=generator)
    ours, theirs = attend(q, k, v), F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(
        torch.autograd.grad(ours, (q, k, v), towards), torch.autograd.grad(theirs, (q, k, v), towards), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("held", [1, 100, 1 << 20])
def test_without_gradients_a_few_images_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch, held: int) -> None:
    monkeypatch.setattr(attention, "HELD", held)
    q, k, v = (torch.randn(5, 2, 3, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    torch.manual_seed(0)
    between = FeedForward(8)
    tokens = torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(4))
    expected = between(tokens)  # with gradients: all at once
    with torch.no_grad():
        torch.testing.assert_close(attend(q, k, v), F.scaled_dot_product_attention(q, k, v))
        torch.testing.assert_close(between(tokens), expected)


@pytest.mark.parametrize(("limit", "grad", "plainly"), [(25, True, True), (24, True, False), (25, False, True)])
def test_few_tokens_attend_plainly(monkeypatch: pytest.MonkeyPatch, limit: int, grad: bool, plainly: bool) -> None:
    called: list[int] = []
    monkeypatch.setattr(attention, "FEW", limit)
    monkeypatch.setattr(attention, "attend", lambda *given: (called.append(1), attend(*given))[1])
    tokens = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    with torch.set_grad_enabled(grad):
        Attention(16, None, 2)(tokens)
    assert bool(called) == plainly
