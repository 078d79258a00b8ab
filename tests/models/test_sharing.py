"""What the two heads share: decoders that part at a level, the task embedding, the gradient into the shared part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from unetdiff.errors import UserError
from unetdiff.kernels.accelerate import accelerate_training_
from unetdiff.models.param_groups import parameters_by_level
from unetdiff.models.unet import UNet
from unetdiff.training.tasks.base import freeze_unused_heads
from unetdiff.training.weighting import last_shared_weight

RESIDUAL: dict[str, Any] = {
    "encoder": {"channels": [8, 16]},
    "residual": {"norm_num_groups": 4, "layers_per_block": 1},
    "conditioning": {"attention_levels": [1], "cross_attention_dim": 8, "attention_head_dim": 8},
}
NETWORKS: dict[str, dict[str, Any]] = {
    "residual": RESIDUAL,
    "classic": {"encoder": {"name": "classic", "channels": [4, 8, 8]}},
    "resnet18": {"encoder": {"name": "resnet18"}, "decoder": {"channels": [8] * 5}},
}


def network(name: str = "residual", seed: int = 0, **segmentation: Any) -> UNet:
    torch.manual_seed(seed)
    heads = {"segmentation": {"num_classes": 3, **segmentation}, "diffusion": {"out_channels": 3}}
    unet = UNet(**NETWORKS[name], heads=heads)
    for parameter in unet.parameters():  # no zero initialization hides a path
        nn.init.normal_(parameter, std=0.1)
    return unet


@pytest.fixture
def images() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    pixels, sample = torch.randn(2, 3, 11, 14, generator=generator), torch.randn(3, 3, 11, 14, generator=generator)
    return pixels, sample, torch.tensor([1, 50, 900])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("levels", [1, 2])
def test_one_pass_of_both_heads_has_the_numbers_of_two(
    name: str, levels: int, images: tuple[Tensor, Tensor, Tensor]
) -> None:
    unet, (pixels, sample, timesteps) = network(name, own_decoder_levels=levels, task_embedding=True), images
    logits, noise = unet.both(pixels, sample, timesteps)
    torch.testing.assert_close(logits, unet.segment(pixels))
    torch.testing.assert_close(noise, unet(sample, timesteps).sample)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("pyramid", [None, 8])
@pytest.mark.parametrize("clean", [2, 0])
def test_noisy_images_are_segmented_on_the_maps_that_denoise_them(
    name: str, pyramid: int | None, clean: int, images: tuple[Tensor, Tensor, Tensor]
) -> None:
    unet, (pixels, sample, timesteps) = network(name, pyramid=pyramid), images
    tokens = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(2)) if name == "residual" else None
    logits, noise = unet.both(pixels[:clean], sample, timesteps, tokens, segmented=[0, 2])
    of_noisy = unet(sample, timesteps, tokens, head="segmentation").sample[[0, 2]]
    torch.testing.assert_close(logits, torch.cat([unet.segment(pixels)[:clean], of_noisy]))
    torch.testing.assert_close(noise, unet(sample, timesteps, tokens).sample)
    weight = next(unet.decoder.finest_modules(1)[0].parameters())
    logits[clean:].sum().backward()
    assert weight.grad is not None and weight.grad.any()


@pytest.mark.parametrize("own", [{"own_decoder_levels": 1}, {"task_embedding": True}])
def test_a_pass_of_the_segmentation_heads_own_segments_no_noisy_image(
    own: dict[str, Any], images: tuple[Tensor, Tensor, Tensor]
) -> None:
    with pytest.raises(UserError, match=r"segmented: must be \(\) with a decoder or a task embedding"):
        network(**own).both(*images, segmented=[0])


def test_the_own_decoder_is_the_backbones_where_it_has_its_weights(images: tuple[Tensor, Tensor, Tensor]) -> None:
    shared, own = network(), network(own_decoder_levels=1)
    own.load_state_dict(shared.state_dict(), strict=False)
    pixels = images[0]
    assert not torch.allclose(own.segment(pixels), shared.segment(pixels))
    own.heads["segmentation"].own_decoder.up_blocks[0].load_state_dict(shared.decoder.up_blocks[-1].state_dict())
    assert torch.equal(own.segment(pixels), shared.segment(pixels))


def test_the_pyramid_reads_the_levels_of_its_own_decoder(images: tuple[Tensor, Tensor, Tensor]) -> None:
    unet, (pixels, sample, timesteps) = network(own_decoder_levels=1, pyramid=8), images
    torch.testing.assert_close(unet.both(pixels, sample, timesteps)[0], unet.segment(pixels))
    before = unet.segment(pixels)
    nn.init.zeros_(unet.heads["segmentation"].own_decoder.up_blocks[0].resnets[-1].conv2.weight)
    assert not torch.allclose(unet.segment(pixels), before)


@pytest.mark.parametrize("levels", [0, 1])
def test_the_gradient_of_segmentation_enters_the_shared_part_with_a_factor(
    levels: int, images: tuple[Tensor, Tensor, Tensor]
) -> None:
    unet, (pixels, sample, timesteps) = network(own_decoder_levels=levels), images
    shared = [p for members in parameters_by_level(unet).values() for p in members.values()]
    heads = [p for p in unet.heads["segmentation"].parameters() if p.ndim > 1]

    def gradients(factor: float) -> tuple[Tensor, Tensor]:
        logits, _ = unet.both(pixels, sample, timesteps, backbone_gradient=factor)
        logits.square().sum().backward()
        flat = [torch.cat([p.grad.flatten() for p in part if p.grad is not None]) for part in (shared, heads)]
        unet.zero_grad()
        return flat[0], flat[1]

    whole, quarter = gradients(1.0), gradients(0.25)
    assert whole[0].norm() > 0
    torch.testing.assert_close(quarter[0], 0.25 * whole[0])
    torch.testing.assert_close(quarter[1], whole[1])
    logits, _ = unet.both(pixels, sample, timesteps, backbone_gradient=0.0)
    assert all(g is None for g in torch.autograd.grad(logits.sum(), shared, allow_unused=True))


def test_only_what_both_heads_read_counts_as_shared() -> None:
    unet = network(own_decoder_levels=1)
    assert "decoder.0" not in parameters_by_level(unet) and "decoder.1" in parameters_by_level(unet)
    assert last_shared_weight(unet) is [p for p in unet.decoder.up_blocks[0].parameters() if p.ndim == 4][-1]
    counts, one_decoder = unet.parameter_counts(), network().parameter_counts()
    level = sum(p.numel() for p in unet.decoder.up_blocks[-1].parameters())
    assert counts["head.diffusion"] == one_decoder["head.diffusion"] + level
    assert counts["head.segmentation"] == one_decoder["head.segmentation"] + level
    assert sum(counts.values()) == unet.num_parameters()


def test_a_segmenter_trains_no_level_that_only_the_other_head_reads() -> None:
    unet = network(own_decoder_levels=1)
    freeze_unused_heads(unet, "segmentation")
    unet.segment(torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))).sum().backward()
    trained = {name for name, parameter in unet.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in unet.named_parameters() if parameter.grad is not None}


def test_a_new_head_changes_no_noise_and_is_saved_next_to_diffusers_weights(
    tmp_path: Path, images: tuple[Tensor, Tensor, Tensor]
) -> None:
    pixels, sample, timesteps = images
    torch.manual_seed(0)
    denoiser = UNet(**RESIDUAL, heads={"diffusion": {"out_channels": 3}}).eval()
    noise = denoiser(sample, timesteps).sample
    denoiser.add_head("segmentation", num_classes=3, own_decoder_levels=2, task_embedding=True)
    nn.init.normal_(denoiser.heads["segmentation"].task_embedding)
    assert torch.equal(denoiser(sample, timesteps).sample, noise)
    denoiser.to_diffusers(tmp_path / "stock")
    stock = UNet2DConditionModel.from_pretrained(tmp_path / "stock")
    torch.testing.assert_close(stock(sample, timesteps, sample.new_zeros(3, 1, 8)).sample, noise)
    loaded = UNet.from_diffusers(tmp_path / "stock")
    assert torch.equal(loaded.segment(pixels), denoiser.segment(pixels))
    denoiser.save_pretrained(tmp_path / "own")
    assert torch.equal(UNet.from_pretrained(tmp_path / "own").eval().segment(pixels), denoiser.segment(pixels))


def test_the_exchanged_modules_have_the_same_numbers(images: tuple[Tensor, Tensor, Tensor]) -> None:
    unet, (pixels, sample, timesteps) = network(own_decoder_levels=2), images
    plain = unet.both(pixels, sample, timesteps)
    for fast, one in zip(accelerate_training_(unet).both(pixels, sample, timesteps), plain, strict=True):
        torch.testing.assert_close(fast, one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({"segmentation": {"own_decoder_levels": 1}}, "own_decoder_levels=1: must be 0 without a diffusion head"),
        ({"segmentation": {"own_decoder_levels": 3}, "diffusion": {}}, "own_decoder_levels=3: must be at most 2"),
        ({"segmentation": {"task_embedding": True}}, "task_embedding=true: must be false without a diffusion head"),
    ],
)
def test_what_cannot_be_shared_is_refused(heads: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        UNet(**RESIDUAL, heads=heads)
