"""The teaching example holds the tensors of the classic `UNet` and computes the same, at each of its four stages."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unetdiff.models.unet import UNet

EXAMPLE = Path(__file__).parents[2] / "examples" / "minimal_unet.py"
CHANNELS, CONTEXT_DIM, BATCH, SIZE = [32, 64, 128], 16, 2, 16
CLASSIC = {"encoder": {"name": "classic", "channels": CHANNELS, "norm": "group"}, "decoder": {"norm": "group"}}
TIMESTEP = {"timestep": True}
CONDITION = {**TIMESTEP, "cross_attention_dim": CONTEXT_DIM, "attention_head_dim": 32}
SEGMENTATION = {"segmentation": {"num_classes": 5}}


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("minimal_unet", EXAMPLE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def classic_names(minimal: nn.Module) -> dict[str, str]:
    """Each tensor of the example -> the tensor of `UNet` that it is."""
    depth = len(CHANNELS) - 1
    places = [f"encoder.levels.{i}" for i in range(depth)] + ["mid_block.block"]
    places += [f"decoder.up_blocks.{i}.block" for i in range(depth)]
    attentions = {depth - 1: f"encoder.attentions.{depth - 1}", depth: "mid_block.attention"}
    attentions[depth + 1] = f"decoder.attentions.{depth - 1}"
    inner = {
        "self_attention": "transformer_blocks.0.attn1",
        "cross_attention": "transformer_blocks.0.attn2",
        "geglu": "transformer_blocks.0.ff.net.0.proj",
        "linear": "transformer_blocks.0.ff.net.2",
        **{f"norm{i}": f"transformer_blocks.0.norm{i}" for i in (1, 2, 3)},
    }
    denoiser = isinstance(minimal.head, nn.Sequential)
    heads = {"0": "heads.diffusion.norm", "2": "heads.diffusion.conv"}
    names = {}
    for name in minimal.state_dict():
        first, *rest = name.split(".")
        if first == "blocks":
            new = ".".join([places[int(rest[0])], *rest[1:]])
        elif first == "ups":
            new = ".".join(["decoder.up_blocks", rest[0], "upsample.conv", rest[1]])
        elif first == "scale_shift":
            new = ".".join([places[int(rest[0])], "time.linear", rest[2]])
        elif first == "time_mlp":
            new = ".".join(["time_embedding", {"0": "linear_1", "2": "linear_2"}[rest[0]], rest[1]])
        elif first == "attentions":
            parts = [inner.get(rest[1], rest[1]), *rest[2:]]
            new = ".".join([attentions[int(rest[0])], *parts]).replace("to_out.", "to_out.0.")
        else:
            new = ".".join([heads[rest[0]], rest[1]]) if denoiser else ".".join(["heads.segmentation.conv", rest[0]])
        names[name] = new
    return names


STAGES: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ("UNet2015", {"out_channels": 5}, {}, SEGMENTATION),
    ("WithTimestep", {"out_channels": 5}, TIMESTEP, SEGMENTATION),
    ("WithCondition", {"out_channels": 5, "context_dim": CONTEXT_DIM}, CONDITION, SEGMENTATION),
    ("Denoiser", {"context_dim": CONTEXT_DIM}, CONDITION, {"diffusion": {"out_channels": 3}}),
]


@pytest.mark.parametrize(("stage", "arguments", "conditioning", "heads"), STAGES, ids=[stage[0] for stage in STAGES])
def test_each_stage_is_the_classic_unet(
    example: ModuleType, stage: str, arguments: dict[str, Any], conditioning: dict[str, Any], heads: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    unet = UNet(**CLASSIC, conditioning=conditioning, heads=heads).eval()
    minimal = getattr(example, stage)(CHANNELS, 3, **arguments).eval()
    with torch.no_grad():
        for parameter in unet.parameters():  # those that start at 0, too
            parameter.normal_(std=0.1)
    names = classic_names(minimal)
    state = unet.state_dict()
    assert sorted(names.values()) == sorted(state)  # the same tensors, none left over on either side
    minimal.load_state_dict({name: state[new] for name, new in names.items()})

    sample = torch.randn(BATCH, 3, SIZE, SIZE)
    timestep = torch.tensor([3, 700])
    context = torch.randn(BATCH, 4, CONTEXT_DIM)
    given: list[Tensor] = [timestep] * bool(conditioning) + [context] * ("cross_attention_dim" in conditioning)
    head = next(iter(heads))
    with torch.no_grad():
        expected = unet(sample, *given, head=head, return_dict=False)[0]
        torch.testing.assert_close(minimal(sample, *given), expected, rtol=1e-4, atol=1e-5)
        if "cross_attention_dim" in conditioning:  # the condition counts
            assert (minimal(sample, timestep, -context) - expected).abs().max() > 1e-3
        if conditioning:
            assert (minimal(sample, timestep.flip(0), *given[1:]) - expected).abs().max() > 1e-3


def test_it_is_short() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 250


def test_it_trains_and_samples(example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example.main(segmentation_steps=2, diffusion_steps=2, output=str(tmp_path / "samples.png"))
    assert (tmp_path / "samples.png").is_file()
    assert "samples in" in capsys.readouterr().out
