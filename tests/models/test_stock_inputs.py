"""The inputs of diffusers' `UNet2DConditionModel` beyond sample, timestep, tokens and classes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from unetdiff.errors import UserError
from unetdiff.kernels import conditions
from unetdiff.kernels.accelerate import accelerate_inference_, accelerate_training_
from unetdiff.models.attention import CrossAttentionCache
from unetdiff.models.unet import UNet

DIM = 12
BOTH = {"segmentation": {"num_classes": 3}, "diffusion": {"out_channels": 4}}


def randomize_(model: nn.Module) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def pair() -> tuple[UNet2DConditionModel, UNet]:
    stock = randomize_(
        UNet2DConditionModel(
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            cross_attention_dim=DIM,
            attention_head_dim=2,
            upcast_attention=True,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )
    )
    return stock, UNet.from_diffusers(stock)


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sample, tokens = torch.randn(2, 4, 10, 6, generator=generator), torch.randn(2, 5, DIM, generator=generator)
    return {"sample": sample, "timestep": torch.tensor([3, 700]), "encoder_hidden_states": tokens}


MASK = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0]])


@torch.no_grad()
@pytest.mark.parametrize(
    ("mask", "atol"),
    # A token that is masked gets -10000; where all are, a logit in float32 is a multiple of 2^-10.
    [(MASK.bool(), 2e-6), (MASK.float(), 2e-6), (torch.zeros(2, 5), 5e-4)],
    ids=["bool", "float", "nothing"],
)
def test_masked_tokens(pair: tuple[Any, UNet], inputs: dict[str, Tensor], mask: Tensor, atol: float) -> None:
    stock, ours = pair
    expected = stock(**inputs, encoder_attention_mask=mask).sample
    torch.testing.assert_close(ours(**inputs, encoder_attention_mask=mask).sample, expected, rtol=1e-6, atol=atol)
    cached = {**inputs, "encoder_hidden_states": CrossAttentionCache(inputs["encoder_hidden_states"])}
    torch.testing.assert_close(ours(**cached, encoder_attention_mask=mask).sample, expected, rtol=1e-6, atol=atol)


def test_masked_tokens_change_nothing(pair: tuple[Any, UNet], inputs: dict[str, Tensor]) -> None:
    others = {**inputs, "encoder_hidden_states": inputs["encoder_hidden_states"] + 3 * (1 - MASK)[..., None]}
    with torch.no_grad():
        one, other = (pair[1](**some, encoder_attention_mask=MASK).sample for some in (inputs, others))
        torch.testing.assert_close(one, other, rtol=1e-6, atol=2e-6)
        assert (pair[1](**inputs).sample - pair[1](**others).sample).abs().max() > 1e-3


@pytest.mark.parametrize("pairs", [1, 1 << 16], ids=["fused", "products"])
@pytest.mark.parametrize("grad", [True, False])
def test_kernels_mask_and_add_residuals(
    pair: tuple[Any, UNet], inputs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, pairs: int, grad: bool
) -> None:
    monkeypatch.setattr("unetdiff.kernels.fast_modules.MAX_PRODUCT_PAIRS", pairs)
    monkeypatch.setattr(conditions, "MAX_CACHED_ELEMENTS", 1)  # one image at a time
    fast = accelerate_training_(copy.deepcopy(pair[1]))
    with torch.set_grad_enabled(grad):
        extra = {"encoder_attention_mask": MASK, **residuals(10, 6)}
        result, expected = (unet(**inputs, **extra).sample for unet in (fast, pair[0]))
        torch.testing.assert_close(result, expected, rtol=1e-6, atol=2e-6)


def residuals(height: int, width: int, channels: tuple[int, int] = (8, 16)) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(2)
    fine, coarse = (height, width), ((height + 1) // 2, (width + 1) // 2)
    shapes = [(2, channels[0], *fine)] * 2 + [(2, channels[0], *coarse), (2, channels[1], *coarse)]
    *down, mid_block = [torch.randn(shape, generator=generator) for shape in (*shapes, shapes[-1])]
    return {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": mid_block}


@torch.no_grad()
def test_a_controlnets_residuals(pair: tuple[Any, UNet], inputs: dict[str, Tensor]) -> None:
    stock, ours = pair
    extra = residuals(10, 6)
    expected = stock(**inputs, **extra).sample
    result = ours(**inputs, **extra).sample
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=2e-6)
    assert (result - ours(**inputs).sample).abs().max() > 0.1


def test_residuals_reach_every_family_and_both_heads() -> None:
    unet = randomize_(UNet(in_channels=4, encoder={"name": "classic", "channels": [4, 8]}, heads=BOTH))
    x = torch.randn(1, 4, 8, 8)
    extra: Any = {
        "down_block_additional_residuals": [torch.ones(1, 4, 8, 8)],
        "mid_block_additional_residual": torch.ones(1, 8, 4, 4),
    }
    with torch.no_grad():
        logits = unet.segment(x, **extra)
        assert not torch.equal(logits, unet.segment(x))
        packed = accelerate_inference_(copy.deepcopy(unet))
        torch.testing.assert_close(packed.segment(x, **extra), logits, rtol=1e-5, atol=1e-5)
        assert not torch.equal(unet.features(x, **extra)["last"], unet.features(x)["last"])


X = torch.zeros(2, 4, 10, 6)


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"attention_msk": X}, "attention_msk: must be an input of UNet. Did you mean attention_mask?"),
        ({"attention_mask": X}, "attention_mask: must be None: self-attention takes no mask"),
        ({"timestep_cond": X}, "timestep_cond: must be None without imported.time_cond_proj_dim"),
        ({"added_cond_kwargs": {"image_embeds": X}}, r"added_cond_kwargs: must be None, .*got \[image_embeds\]"),
        ({"cross_attention_kwargs": {"gligen": X}}, r"cross_attention_kwargs: must be None \(got gligen\)"),
        ({"down_intrablock_additional_residuals": [X]}, "down_intrablock_.*: must be None: T2I-Adapters"),
        ({"down_block_additional_residuals": [X]}, "must come with mid_block_additional_residual"),
        ({"mid_block_additional_residual": X}, "must come with down_block_additional_residuals"),
        (
            {"mid_block_additional_residual": X, "down_block_additional_residuals": [X]},
            "down_block_additional_residuals: must have the shapes .*got .*10, 6",
        ),
        ({"encoder_attention_mask": X}, r"encoder_attention_mask: must have .* shape \(2, 5\)"),
    ],
)
def test_refusals(pair: tuple[Any, UNet], inputs: dict[str, Tensor], extra: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        pair[1](**inputs, **extra)


def test_no_mask_without_cross_attention() -> None:
    unet = UNet(encoder={"name": "classic", "channels": [4, 8]}, heads=BOTH)
    with pytest.raises(UserError, match="encoder_attention_mask: must be None without conditioning.cross_attention"):
        unet(torch.zeros(1, 3, 8, 8), encoder_attention_mask=torch.ones(1, 2))


def test_what_changes_nothing_is_taken(pair: tuple[Any, UNet], inputs: dict[str, Tensor]) -> None:
    absent: Any = {"timestep_cond": None, "added_cond_kwargs": {}, "cross_attention_kwargs": None}
    with torch.no_grad():
        assert torch.equal(pair[1](**inputs, **absent).sample, pair[1](**inputs).sample)
