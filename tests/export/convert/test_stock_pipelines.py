"""Our U-Net in diffusers' own pipelines: the images of diffusers' U-Net with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DiffusionPipeline,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image

from unetdiff.errors import UserError
from unetdiff.models.unet import UNet

TOKENS, DIM = 7, 12
SMALL: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": DIM,
    "attention_head_dim": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


def randomized(model: Any, seed: int = 0) -> Any:
    """A model in eval mode, no tensor of which is where its initialization put it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def made(cls: type, **config: Any) -> Any:
    torch.manual_seed(0)
    return randomized(cls(**config))


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    """What a Stable Diffusion pipeline has besides the U-Net; prompts are given as embeddings."""
    vae = made(AutoencoderKL, block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=16)
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    absent = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    return {"vae": vae, "scheduler": scheduler, "requires_safety_checker": False, **absent}


def images(pipeline: Any, negative: bool = True, **options: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    prompts = {
        "prompt_embeds": torch.randn(1, TOKENS, DIM, generator=generator),
        "negative_prompt_embeds": torch.randn(1, TOKENS, DIM, generator=generator),
    }
    if not negative:
        del prompts["negative_prompt_embeds"]
    settings = {"num_inference_steps": 2, "guidance_scale": 4.0, "output_type": "np", "generator": generator}
    return pipeline(**prompts, **settings, **options).images


def require_same(stock: Any, ours: Any) -> None:
    assert stock.std() > 0.01
    np.testing.assert_allclose(ours, stock, rtol=0, atol=1e-5)


PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
HOLE = Image.fromarray(np.pad(np.full((8, 8), 255, np.uint8), 4))
PIPELINES: dict[str, tuple[type, int, dict[str, Any]]] = {
    "text": (StableDiffusionPipeline, 4, {"height": 16, "width": 8}),
    "image": (StableDiffusionImg2ImgPipeline, 4, {"image": PHOTO, "strength": 0.9}),
    "inpaint": (StableDiffusionInpaintPipeline, 4, {"image": PHOTO, "mask_image": HOLE, "height": 16, "width": 16}),
    "inpaint9": (StableDiffusionInpaintPipeline, 9, {"image": PHOTO, "mask_image": HOLE, "height": 16, "width": 16}),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_stable_diffusions_pipelines(name: str, parts: dict[str, Any]) -> None:
    pipeline, channels, options = PIPELINES[name]
    stock = made(UNet2DConditionModel, **{**SMALL, "in_channels": channels})
    both = [images(pipeline(unet=unet, **parts), **options) for unet in (stock, UNet.from_diffusers(stock))]
    require_same(*both)


def test_a_controlnet(parts: dict[str, Any], tmp_path: Path) -> None:
    """Made of diffusers' network, or of what ours writes: its encoder's weights."""
    stock = made(UNet2DConditionModel, **SMALL)
    UNet.from_diffusers(stock).to_diffusers(tmp_path)
    options = {"conditioning_embedding_out_channels": (4,)}
    controlnet = ControlNetModel.from_unet(UNet2DConditionModel.from_pretrained(tmp_path), **options)
    copied = {name for name, tensor in stock.state_dict().items() if name in controlnet.state_dict()}
    assert {name.split(".")[0] for name in copied} == {"conv_in", "time_embedding", "down_blocks", "mid_block"}
    assert all(torch.equal(controlnet.state_dict()[name], stock.state_dict()[name]) for name in copied)
    randomized(controlnet, seed=1)
    both = []
    for unet in (stock, UNet.from_diffusers(stock)):
        pipeline = StableDiffusionControlNetPipeline(unet=unet, controlnet=controlnet, **parts)
        both.append(images(pipeline, image=PHOTO, controlnet_conditioning_scale=0.8, height=16, width=16))
    require_same(*both)
    without = images(StableDiffusionPipeline(unet=stock, **parts), height=16, width=16)
    assert np.abs(both[0] - without).max() > 0.01


def test_a_latent_consistency_model(parts: dict[str, Any]) -> None:
    stock = made(UNet2DConditionModel, **SMALL, time_cond_proj_dim=6)
    both = []
    for unet in (stock, UNet.from_diffusers(stock)):
        given = {k: v for k, v in parts.items() if k != "scheduler"}
        pipeline = LatentConsistencyModelPipeline(unet=unet, scheduler=LCMScheduler(), **given)
        both.append(images(pipeline, negative=False, height=16, width=16))
    require_same(*both)


def test_stable_diffusion_xl(parts: dict[str, Any]) -> None:
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    stock = made(UNet2DConditionModel, **SMALL, **added, projection_class_embeddings_input_dim=10 + 6 * 4)
    pooled = torch.randn(2, 1, 10, generator=torch.Generator().manual_seed(4))
    given = {"pooled_prompt_embeds": pooled[0], "negative_pooled_prompt_embeds": pooled[1]}
    others = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    both = []
    for unet in (stock, UNet.from_diffusers(stock)):
        pipeline = StableDiffusionXLPipeline(
            unet=unet, vae=parts["vae"], scheduler=parts["scheduler"], add_watermarker=False, **others
        )
        both.append(images(pipeline, height=16, width=16, **given))
    require_same(*both)


def test_a_pipeline_with_our_network_is_saved_and_loaded(parts: dict[str, Any], tmp_path: Path) -> None:
    stock = made(UNet2DConditionModel, **SMALL)
    absent = {name: part for name, part in parts.items() if name not in ("vae", "scheduler")}
    size = {"height": 16, "width": 16}
    expected = images(StableDiffusionPipeline(unet=stock, **parts), **size)
    StableDiffusionPipeline(unet=stock, **parts).save_pretrained(tmp_path / "stock")
    unet = UNet.from_diffusers(tmp_path / "stock")
    StableDiffusionPipeline(unet=unet, **parts).save_pretrained(tmp_path / "ours")
    for folder, given in (("stock", {"unet": unet}), ("ours", {})):
        pipeline = DiffusionPipeline.from_pretrained(tmp_path / folder, **given, **absent)
        assert isinstance(pipeline.unet, UNet)
        require_same(expected, images(pipeline, **size))


def test_an_image_prompt_is_refused_by_name(parts: dict[str, Any]) -> None:
    pipeline = StableDiffusionPipeline(unet=UNet.from_diffusers(made(UNet2DConditionModel, **SMALL)), **parts)
    with pytest.raises(UserError, match=r"added_cond_kwargs: must be None, .*Image prompts .* are not supported"):
        images(pipeline, ip_adapter_image_embeds=[torch.randn(2, 1, 4)])
