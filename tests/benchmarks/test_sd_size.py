"""The benchmark of Stable Diffusion's size: its arithmetic at that size, and its steps with a tiny network."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import stable_diffusion_size
from diffusers import UNet2DConditionModel

from suite import sd_size

TINY: dict[str, Any] = {
    "in_channels": 4,
    "encoder": {"name": "residual", "channels": [8, 8]},
    "residual": {"layers_per_block": 1, "norm_num_groups": 4, "mid_block": "attention"},
    "conditioning": {"timestep": True, "cross_attention_dim": 8, "attention_levels": [0]},
    "imported": {"attention_heads": [2, 2]},
}


def test_arithmetic_of_stable_diffusion() -> None:
    everything = sd_size.need("all weights", sd_size.STABLE_DIFFUSION, 512, "bf16")
    assert everything.total_parameters == everything.trained == 859_520_964  # its published number of parameters
    assert (everything.weights, everything.gradients, everything.moments) == tuple(n * 859_520_964 for n in (4, 4, 8))
    lora = sd_size.need("LoRA", sd_size.STABLE_DIFFUSION, 512, "bf16")
    assert lora.trained == 797_184  # of rank 4 in all attention layers
    assert lora.activations > 3 * everything.activations > 2e8  # not recomputed


def test_activations_are_counted_once() -> None:
    """Four times the pixels keep four times the bytes, and half the precision half of them."""
    small, large, half = (
        sd_size.need("LoRA", TINY, size, precision) for size, precision in ((128, "no"), (256, "no"), (128, "bf16"))
    )
    assert large.activations == pytest.approx(4 * small.activations, rel=0.05)
    assert half.activations == pytest.approx(small.activations / 2, rel=0.05)


@pytest.mark.parametrize("name", list(sd_size.CASES))
def test_a_step_of_each_case(name: str) -> None:
    result = sd_size.measure(name, TINY, 64, "no", steps=1)
    assert result["seconds"] > 0 and 0 < result["loss"] < 10


def test_a_case_without_memory_is_left_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(stable_diffusion_size, "STABLE_DIFFUSION", TINY)
    monkeypatch.setattr(stable_diffusion_size, "available", lambda: 1e6)
    monkeypatch.setattr(sys, "argv", ["stable_diffusion_size.py", "--cases", "LoRA", "--precision", "no"])
    stable_diffusion_size.main()
    assert "| LoRA | not measured: needs 1.5 GiB, 0.0 GiB are available" in capsys.readouterr().out


def test_the_network_is_diffusers_own() -> None:
    import torch

    with torch.device("meta"):
        ours = sd_size.build(sd_size.CASES["all weights"], sd_size.STABLE_DIFFUSION)
        theirs = UNet2DConditionModel(cross_attention_dim=768)  # its defaults are Stable Diffusion's
    shapes = [sorted(tuple(p.shape) for p in network.parameters()) for network in (ours, theirs)]
    assert shapes[0] == shapes[1]
