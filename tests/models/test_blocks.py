"""Blocks whose start or statistics are a promise."""

from __future__ import annotations

import copy

import pytest
import torch

from unetdiff.models.attention import Attention, CrossAttentionCache
from unetdiff.models.blocks import FrozenBatchNorm2d, ResnetBlock, Upsample2d, make_norm, replace_batch_norm


def test_frozen_batch_norm_never_looks_at_its_batch() -> None:
    norm = FrozenBatchNorm2d(3)
    x = torch.randn(4, 3, 5, 5) * 7 + 2
    for module in (norm, norm.train(), torch.nn.Sequential(norm).train()):
        torch.testing.assert_close(module(x), x / (1 + norm.eps) ** 0.5)
    assert not norm.running_mean.any()  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["frozen", "group"])
def test_replaced_batch_norm_keeps_its_tensors(kind: str) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.BatchNorm2d(8))
    for _ in range(3):
        module(torch.randn(4, 3, 5, 5))
    torch.nn.init.normal_(module[1].weight)
    before, x = module.eval().state_dict(), torch.randn(2, 3, 5, 5)
    expected = module(x)
    replace_batch_norm(module, kind)
    assert torch.equal(module[1].weight, before["1.weight"])
    if kind == "frozen":
        torch.testing.assert_close(module.train()(x), expected)


def test_a_new_transposed_convolution_keeps_the_variance() -> None:
    """Within a factor of two: torch's own start would leave a third of it or less."""
    torch.manual_seed(0)
    h = torch.randn(8, 64, 16, 16)
    assert 0.5 < Upsample2d("transposed", 64)(h, None).var() / h.var() < 2.0


def test_a_new_residual_block_passes_its_input_on() -> None:
    h = torch.randn(2, 32, 8, 8)
    block = ResnetBlock(32, 32, None, groups=8)
    torch.testing.assert_close(block(h), h + block.conv2.bias[:, None, None])


def test_group_norm_has_four_channels_a_group_and_at_most_32_groups() -> None:
    assert [make_norm("group", c).num_groups for c in (3, 8, 12, 64, 128, 512)] == [1, 2, 3, 16, 32, 32]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("upcast", [False, True])
def test_attention_is_in_float32_if_upcast(upcast: bool, autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    used, attend = [], Attention.attend

    def spy(self: Attention, *inputs: torch.Tensor) -> torch.Tensor:
        used.append(attend(self, *inputs).dtype)
        return attend(self, *inputs)

    monkeypatch.setattr(Attention, "attend", spy)
    attention = Attention(8, 6, heads=2, upcast=upcast).to(torch.float32 if autocast else torch.bfloat16)
    tokens, context = (torch.randn(1, n, dim).to(attention.to_q.weight.dtype) for n, dim in ((5, 8), (3, 6)))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert attention(tokens, context).dtype == torch.bfloat16
    assert used == [torch.float32 if upcast else torch.bfloat16]
    if not autocast:  # gradients are in float32 on a CPU, and the result is in the precision of the weights again
        assert attention(tokens, context).dtype == torch.bfloat16


@pytest.mark.parametrize("tokens", [1, 5])
def test_attention_is_torchs_own_and_cached_projects_once(tokens: int) -> None:
    torch.manual_seed(0)
    attention = Attention(8, 6, 2)
    queries, context = torch.randn(2, 7, 8), torch.randn(2, tokens, 6)
    reference = torch.nn.MultiheadAttention(8, 2, bias=False, kdim=6, vdim=6, batch_first=True)
    reference.q_proj_weight, reference.k_proj_weight, reference.v_proj_weight = (
        torch.nn.Parameter(part.weight.detach().clone()) for part in (attention.to_q, attention.to_k, attention.to_v)
    )
    reference.out_proj = copy.deepcopy(attention.to_out[0])
    expected = reference(queries, context, context, need_weights=False)[0]
    weights = torch.randn(2, 7, 8)
    (expected * weights).sum().backward()
    (attention(queries, context) * weights).sum().backward()
    torch.testing.assert_close(attention.to_q.weight.grad, reference.q_proj_weight.grad)
    torch.testing.assert_close(attention.to_k.weight.grad, reference.k_proj_weight.grad)
    torch.testing.assert_close(attention.to_v.weight.grad, reference.v_proj_weight.grad)
    torch.testing.assert_close(attention.to_out[0].bias.grad, reference.out_proj.bias.grad)

    cached = CrossAttentionCache(context)
    calls: list[int] = []
    attention.to_k.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        for found in (attention(queries, context), attention(queries, cached), attention(queries, cached)):
            torch.testing.assert_close(found.expand_as(expected), expected)
    assert len(calls) == 2  # without, and the first time with
