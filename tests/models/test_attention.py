"""Attention against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from unetdiff.models.attention import Attention


@pytest.mark.parametrize("keys", [5, 7])
def test_attention_is_torchs_scaled_dot_product_attention(keys: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 3, 5, 8, generator=generator, requires_grad=True)
    k, v = (torch.randn(2, 3, keys, 8, generator=generator, requires_grad=True) for _ in "kv")
    towards = torch.randn(2, 3, 5, 8, generator=generator)
    result, expected = Attention(24, None, 3).attend(q, k, v), F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(result, expected)
    for a, b in zip(
        torch.autograd.grad(result, (q, k, v), towards), torch.autograd.grad(expected, (q, k, v), towards), strict=True
    ):
        torch.testing.assert_close(a, b)
