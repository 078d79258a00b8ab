"""Attention against its equation."""

from __future__ import annotations

import pytest
import torch

from unetdiff.models.attention import Attention


@pytest.mark.parametrize("keys", [5, 7])
def test_attention_is_the_softmax_of_scaled_products(keys: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 3, 5, 8, generator=generator, requires_grad=True)
    k, v = (torch.randn(2, 3, keys, 8, generator=generator, requires_grad=True) for _ in "kv")
    towards = torch.randn(2, 3, 5, 8, generator=generator)
    result = Attention(24, None, 3).attend(q, k, v)
    expected = (q @ k.transpose(-1, -2) / 8**0.5).softmax(dim=-1) @ v
    torch.testing.assert_close(result, expected)
    for a, b in zip(
        torch.autograd.grad(result, (q, k, v), towards), torch.autograd.grad(expected, (q, k, v), towards), strict=True
    ):
        torch.testing.assert_close(a, b)
