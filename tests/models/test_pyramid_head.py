"""The pyramid head: its maps and attention against diffusers' own network, its pyramid against torchvision's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork

from unetdiff.errors import UserError
from unetdiff.kernels.accelerate import accelerate_training_
from unetdiff.models.pyramid_head import PyramidHead
from unetdiff.models.unet import UNet

CLASSES, DIM = 5, 12


@pytest.fixture(scope="module")
def stock() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=DIM,
        attention_head_dim=2,
    ).eval()


@pytest.fixture(scope="module")
def unet(stock: UNet2DConditionModel) -> UNet:
    torch.manual_seed(1)
    return UNet.from_diffusers(stock).add_head("segmentation", num_classes=CLASSES, pyramid=8, attention_maps=True)


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    # a side that is no multiple of the strides
    return torch.randn(2, 4, 9, 8, generator=generator), torch.randn(2, CLASSES, DIM, generator=generator)


class Storing:
    """diffusers' attention processor (AttnProcessor) that keeps softmax(q kᵀ / √d) of cross-attention."""

    def __init__(self) -> None:
        self.kept: dict[int, list[Tensor]] = {}

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, attention_mask: None = None
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key, value = attn.head_to_batch_dim(attn.to_k(context)), attn.head_to_batch_dim(attn.to_v(context))
        scores = attn.get_attention_scores(query, key)  # (B heads, N, M)
        if encoder_hidden_states is not None:
            mean = rearrange(scores, "(b heads) n m -> b heads n m", heads=attn.heads).mean(dim=1)
            self.kept.setdefault(scores.shape[1], []).append(mean)
        return attn.to_out[0](attn.batch_to_head_dim(torch.bmm(scores, value)))


@pytest.mark.parametrize("fast", [False, True])
def test_maps_and_attention_are_those_of_diffusers(
    stock: UNet2DConditionModel, unet: UNet, inputs: tuple[Tensor, Tensor], fast: bool
) -> None:
    latents, tokens = inputs
    hooked: list[Tensor] = []
    last = [
        stock.up_blocks[2].resnets[-1],
        stock.up_blocks[1].attentions[-1],
        stock.up_blocks[0].attentions[-1],
    ]
    hooks = [m.register_forward_hook(lambda _m, _x, out: hooked.append(out)) for m in last]
    storing, processors = Storing(), stock.attn_processors
    stock.set_attn_processor(storing)
    with torch.no_grad():
        stock(latents, 0, tokens, return_dict=False)
    stock.set_attn_processor(processors)
    for hook in hooks:
        hook.remove()
    network = accelerate_training_(UNet.from_diffusers(stock)) if fast else unet
    if fast:
        network.add_head("segmentation", num_classes=CLASSES, pyramid=8, attention_maps=True).eval()
    seen: list[Any] = []
    hook = network.heads["segmentation"].register_forward_pre_hook(lambda _m, args: seen.append(args))
    with torch.no_grad():
        logits = network.segment(latents, 0, tokens)
    hook.remove()
    assert logits.shape == (2, CLASSES, 9, 8)
    _, maps, recorder = seen[0]
    assert list(maps) == ["decoder.2.1", "decoder.1.1", "decoder.0.1"]
    for name, expected in zip(maps, hooked, strict=True):
        torch.testing.assert_close(maps[name], expected[0] if isinstance(expected, tuple) else expected)
    for size, layers in (((5, 4), 3), ((3, 2), 4)):  # down, up twice; and the mid block
        kept = storing.kept[size[0] * size[1]]
        assert len(kept) == layers
        expected = rearrange(torch.stack(kept).mean(dim=0), "b (h w) m -> b m h w", h=size[0])
        torch.testing.assert_close(recorder.maps(size), expected)


def test_without_attention_maps_nothing_is_recorded(stock: UNet2DConditionModel, inputs: tuple[Tensor, Tensor]) -> None:
    unet = UNet.from_diffusers(stock).add_head("segmentation", num_classes=CLASSES, pyramid=8)
    seen: list[Any] = []
    unet.heads["segmentation"].register_forward_pre_hook(lambda _m, args: seen.append(args))
    unet.segment(inputs[0], 0, inputs[1][:, :3])  # any number of tokens
    assert seen[0][2] is None


def test_the_pyramid_is_torchvisions_and_its_stages_are_those_of_semantic_fpn() -> None:
    torch.manual_seed(0)
    sizes, widths = [(7, 9), (4, 5), (2, 3)], {"a": 4, "b": 8, "c": 12}
    head = PyramidHead(widths, 8, 3, 4, 1e-5)
    fpn = FeaturePyramidNetwork(list(widths.values()), 8)
    for index in range(3):
        fpn.inner_blocks[index][0].load_state_dict(head.laterals[index].state_dict())
        fpn.layer_blocks[index][0].load_state_dict(head.smooth[index].state_dict())
    maps = {name: torch.randn(2, widths[name], *size) for name, size in zip(widths, sizes, strict=True)}
    normed = {name: F.group_norm(one, 4) for name, one in maps.items()}
    levels = list(fpn(normed).values())

    def stage(level: int, step: int, x: Tensor) -> Tensor:
        conv, norm, _ = head.stages[level][step]
        return F.relu(F.group_norm(F.conv2d(x, conv.weight, padding=1), norm.num_groups))

    def up(x: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)

    total = stage(0, 0, levels[0])  # the finest: one convolution, no upsampling
    total = total + up(stage(1, 0, levels[1]), sizes[0])
    total = total + up(stage(2, 1, up(stage(2, 0, levels[2]), sizes[1])), sizes[0])
    torch.testing.assert_close(head(maps["a"], maps), head.conv(total))


def test_gradients_with_recorded_attention_are_the_same_under_checkpointing(
    stock: UNet2DConditionModel, inputs: tuple[Tensor, Tensor]
) -> None:
    torch.manual_seed(0)
    unet = UNet.from_diffusers(stock).add_head("segmentation", num_classes=CLASSES, pyramid=8, attention_maps=True)
    unet.train()
    gradients = []
    for checkpointing in (False, True):
        unet.zero_grad()
        unet.gradient_checkpointing = checkpointing
        unet.segment(inputs[0], 0, inputs[1]).square().mean().backward()
        gradients.append([p.grad.clone() for p in unet.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("attention_maps", [False, True])
def test_a_pyramid_head_lies_beside_diffusers_weights_and_comes_back(
    stock: UNet2DConditionModel, inputs: tuple[Tensor, Tensor], attention_maps: bool, tmp_path: Path
) -> None:
    head = {"num_classes": CLASSES, "pyramid": 8, "attention_maps": attention_maps}
    head |= {"own_decoder_levels": 0, "task_embedding": False}
    unet = UNet.from_diffusers(stock).add_head("segmentation", **head).eval()
    unet.to_diffusers(tmp_path / "stock")
    unet.save_pretrained(tmp_path / "own")
    expected = unet.segment(inputs[0], 0, inputs[1])
    for back in (UNet.from_diffusers(tmp_path / "stock"), UNet.from_pretrained(tmp_path / "own")):
        assert back.config["heads"]["segmentation"] == head
        assert torch.equal(back.segment(inputs[0], 0, inputs[1]), expected)
    assert UNet2DConditionModel.from_pretrained(tmp_path / "stock").config.block_out_channels == [8, 16, 16]


@pytest.mark.parametrize(
    "encoder", [{"name": "classic", "channels": [4, 4, 8]}, {"name": "mobilenet_v2"}, {"channels": [4, 8]}]
)
def test_every_kind_of_backbone_can_have_a_pyramid(encoder: dict[str, Any]) -> None:
    heads = {"segmentation": {"num_classes": 3, "pyramid": 4}, "diffusion": {}}
    unet = UNet(encoder=encoder, residual={"norm_num_groups": 4}, heads=heads).eval()
    clean, noisy = torch.randn(1, 3, 33, 40), torch.randn(2, 3, 33, 40)
    logits, noise = unet.both(clean, noisy, torch.tensor([3, 500]))
    torch.testing.assert_close(logits, unet.segment(clean), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(noise, unet(noisy, torch.tensor([3, 500])).sample, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("head", "options", "message"),
    [
        ({"attention_maps": True}, {}, "heads.segmentation.attention_maps=true: must be false without"),
        ({"attention_maps": True, "pyramid": 8}, {}, "without conditioning.cross_attention_dim"),
        ({"pyramid": 8}, {"encoder": {"name": "classic", "padding": "valid"}}, "heads.segmentation.pyramid=8"),
        ({"pyramid": 8}, {"imported": {"segmentation_kernel_size": 3}}, "imported.segmentation_kernel_size=3"),
    ],
)
def test_heads_that_contradict_the_backbone_are_refused(head: dict, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        UNet(heads={"segmentation": head}, **options)


def test_another_number_of_tokens_is_refused(unet: UNet, inputs: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(UserError, match="encoder_hidden_states: must be one token per class, 5"):
        unet.segment(inputs[0], 0, inputs[1][:, :3])
    assert torch.equal(unet.segment(inputs[0]), unet.segment(inputs[0], 0, torch.zeros_like(inputs[1])))
    with pytest.raises(UserError, match="both: must be two passes"):
        unet.both(inputs[0], inputs[0], torch.tensor([1, 2]))
