"""Exchanged modules against the plain ones."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from unetdiff.kernels import accelerate, conditions, fast_modules
from unetdiff.kernels.accelerate import accelerate_training_
from unetdiff.kernels.fast_modules import FastAttention, FastFeedForward
from unetdiff.models.attention import Attention, FeedForward
from unetdiff.models.unet import UNet

BOTH = {"segmentation": {"num_classes": 3}, "diffusion": {"out_channels": 3}}
NETWORKS: dict[str, dict[str, Any]] = {
    "residual": {
        "encoder": {"channels": [8, 16, 16]},
        "residual": {"norm_num_groups": 4, "layers_per_block": 1},
        "conditioning": {"cross_attention_dim": 8, "attention_head_dim": 8},
    },
    "scale_shift": {
        "encoder": {"channels": [8, 16]},
        "residual": {"norm_num_groups": 4, "layers_per_block": 1, "time_scale_shift": "scale_shift"},
        "imported": {"resample": "resnet"},
    },
    "classic": {"encoder": {"name": "classic", "channels": [8, 12, 16]}},
    "nearest": {"encoder": {"name": "classic", "channels": [8, 12, 16]}, "decoder": {"upsample": "nearest"}},
    "resnet18": {"encoder": {"name": "resnet18"}, "decoder": {"channels": [8] * 5}},
}


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unetdiff.kernels.upsample_conv.MIN_PIXELS", 1)


@pytest.fixture(params=NETWORKS)
def pair(request: pytest.FixtureRequest) -> tuple[UNet, UNet]:
    """A plain network without zero parameters, and its accelerated copy."""
    torch.manual_seed(0)
    plain = UNet(**NETWORKS[request.param], heads=BOTH)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    return plain, accelerate_training_(copy.deepcopy(plain))


def outputs(unet: UNet) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, timestep = torch.randn(2, 3, 32, 48, generator=generator), torch.tensor([3, 700])
    dim = unet.config["conditioning"]["cross_attention_dim"]
    results = []
    for tokens in (1, 3) if dim else (0,):
        context = torch.randn(2, tokens, dim, generator=generator) if dim else None
        results += [unet(x, timestep, context, head=head).sample for head in unet.heads]  # type: ignore[arg-type]
    return results


def gradients(unet: UNet) -> list[Tensor]:
    unet.zero_grad()
    sum(output.square().mean() for output in outputs(unet)).backward()  # type: ignore[union-attr]
    return [parameter.grad for parameter in unet.parameters()]  # type: ignore[misc]


def test_exchanged_networks_have_the_same_names_numbers_and_gradients(pair: tuple[UNet, UNet]) -> None:
    plain, fast = pair
    assert [*fast.state_dict()] == [*plain.state_dict()]
    assert {type(module) for module in fast.modules()} & set(accelerate.EXCHANGED.values())
    for mode in (True, False):
        plain.train(mode), fast.train(mode)
        for a, b in zip(outputs(fast), outputs(plain), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        for a, b in zip(outputs(fast), outputs(plain), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    plain.to(memory_format=torch.channels_last), fast.to(memory_format=torch.channels_last)
    for a, b in zip(gradients(copy.deepcopy(fast)), gradients(plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    fast.enable_gradient_checkpointing()
    fast.train(), plain.train()
    for a, b in zip(gradients(fast), gradients(plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_with_hooks_or_a_counter_every_module_computes_its_plain_forward(pair: tuple[UNet, UNet]) -> None:
    plain, fast = (network.eval() for network in pair)
    with FlopCounterMode(display=False) as of_plain:
        expected = outputs(plain)
    with FlopCounterMode(display=False) as of_fast:
        counted = outputs(fast)
    assert of_fast.get_total_flops() == of_plain.get_total_flops()
    heard: set[str] = set()
    for name, module in fast.named_modules():
        module.register_forward_hook(lambda *_, name=name: heard.add(name))
    for a, b, c in zip(outputs(fast), counted, expected, strict=True):
        torch.testing.assert_close(a, c, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(b, c, rtol=1e-5, atol=1e-6)
    containers = nn.ModuleList | nn.ModuleDict | nn.Identity
    leaves = {name for name, m in fast.named_modules() if not list(m.children()) and not isinstance(m, containers)}
    assert leaves <= heard


def test_an_exchanged_network_saves_and_loads(pair: tuple[UNet, UNet], tmp_path: Any) -> None:
    plain, fast = (network.eval() for network in pair)
    fast.save_pretrained(tmp_path)
    with torch.no_grad():
        for a, b in zip(outputs(UNet.from_pretrained(tmp_path)), outputs(plain), strict=True):
            assert torch.equal(a, b)


def test_functional_transforms_take_the_plain_forward(pair: tuple[UNet, UNet]) -> None:
    _, fast = pair
    fast.eval()
    parameters = {name: parameter.detach() for name, parameter in fast.named_parameters()}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        arguments = (torch.ones(1, 3, 32, 32), 5)
        return torch.func.functional_call(fast, parameters, arguments, {"return_dict": False})[0].square().mean()

    gradient = torch.func.grad(loss)(parameters)
    assert all(part.isfinite().all() for part in gradient.values())


def test_nothing_is_exchanged_without_torchs_private_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerate, "PRIVATE_NAMES", (*accelerate.PRIVATE_NAMES, (torch, "_no_such_name")))
    with pytest.warns(UserWarning, match="lacks _no_such_name: the network keeps its plain modules"):
        unet = accelerate_training_(UNet(**NETWORKS["residual"], heads=BOTH))
    assert not {type(module) for module in unet.modules()} & set(accelerate.EXCHANGED.values())


def exchanged(module: nn.Module, kind: type[nn.Module]) -> nn.Module:
    module.__class__ = kind
    return module


@pytest.mark.parametrize("cached", [1, 100, 1 << 20])
def test_without_gradients_a_few_images_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch, cached: int) -> None:
    monkeypatch.setattr(conditions, "MAX_CACHED_ELEMENTS", cached)
    torch.manual_seed(0)
    tokens = torch.randn(5, 3, 8)
    for module, kind in ((FeedForward(8), FastFeedForward), (Attention(8, None, 2), FastAttention)):
        expected = module(tokens)
        with torch.no_grad():
            torch.testing.assert_close(exchanged(module, kind)(tokens), expected)


def saved_bytes(module: nn.Module, tokens: torch.Tensor) -> tuple[int, list[torch.Tensor]]:
    """Bytes that a forward pass saves for its gradients, each memory once; and the gradients."""
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = module(tokens)
    return sum(saved.values()), list(torch.autograd.grad(out.square().sum(), [tokens, *module.parameters()]))


def test_the_feed_forward_saves_less_for_the_same_gradients() -> None:
    torch.manual_seed(0)
    module, tokens = FeedForward(8), torch.randn(5, 64, 8, requires_grad=True)
    plain, expected = saved_bytes(module, tokens)
    fast, result = saved_bytes(exchanged(module, FastFeedForward), tokens)
    assert plain - fast >= 5 * 64 * 32 * 4  # GELU(gate), float32 (B, N, 4 C)
    for a, b in zip(result, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("keys", [5, 7])
def test_attention_by_products_is_torchs_scaled_dot_product_attention(keys: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 3, 5, 8, generator=generator, requires_grad=True)
    k, v = (torch.randn(2, 3, keys, 8, generator=generator, requires_grad=True) for _ in "kv")
    towards = torch.randn(2, 3, 5, 8, generator=generator)
    result, expected = FastAttention(24, None, 3).attend(q, k, v), F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(result, expected)
    for a, b in zip(
        torch.autograd.grad(result, (q, k, v), towards), torch.autograd.grad(expected, (q, k, v), towards), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("limit", "grad", "fused"), [(25, True, False), (24, True, True), (25, False, False)])
def test_few_tokens_attend_by_products(monkeypatch: pytest.MonkeyPatch, limit: int, grad: bool, fused: bool) -> None:
    called: list[int] = []
    monkeypatch.setattr(fast_modules, "MAX_PRODUCT_PAIRS", limit)
    attend = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *inputs: (called.append(1), attend(*inputs))[1])
    tokens = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    with torch.set_grad_enabled(grad):
        exchanged(Attention(16, None, 2), FastAttention)(tokens)
    assert bool(called) == fused
