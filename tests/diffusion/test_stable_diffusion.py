"""Stable Diffusion's directories: read, sampled and written, with diffusers' own pipelines as the reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionPipeline
from torch import Tensor

from suite.stable_diffusion import MAX_TOKENS, WIDTH, write_stable_diffusion
from unetdiff import GenerationPipeline
from unetdiff.diffusion.conditioning.prompt import PromptConditioner
from unetdiff.diffusion.conditioning.text_encoder import CachedFeatures, TextEncoder
from unetdiff.diffusion.schedulers import make_scheduler
from unetdiff.errors import UserError
from unetdiff.files.records import read_object, write_json

SAMPLING = {"num_inference_steps": 6, "guidance_scale": 7.5}
PROMPT = {"prompt": "a red cat", "negative_prompt": "dog"}


@pytest.fixture(scope="module")
def inpainting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inpainting")
    write_stable_diffusion(folder, in_channels=9)
    return folder


@pytest.fixture(scope="module")
def saved(stable_diffusion: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read and written again by us, with a segmentation head."""
    pipeline, folder = GenerationPipeline.from_pretrained(stable_diffusion), tmp_path_factory.mktemp("saved")
    pipeline.unet.add_head("segmentation", num_classes=3)  # type: ignore[operator]
    pipeline.save_pretrained(folder)
    return folder


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ours(call: Callable[..., Any], **options: Any) -> Tensor:
    """Latents of our pipeline's call."""
    return call(**PROMPT, **SAMPLING, **options, generator=generator(), output_type="latent").images


def stock(kind: Any, folder: Path, **options: Any) -> Tensor:
    """Latents of diffusers' pipeline."""
    pipeline = kind.from_pretrained(folder)
    return pipeline(**PROMPT, **SAMPLING, **options, generator=generator(), output_type="latent").images


def psnr(one: Tensor, other: Tensor) -> float:
    return float(-10 * (one - other).square().mean().log10() + 20 * other.abs().max().log10())


def test_text_to_image_is_stable_diffusions(stable_diffusion: Path, saved: Path) -> None:
    """Of its own directory, and of the one that we write: prompt embeddings, guidance, scheduler and autoencoder."""
    pipeline = GenerationPipeline.from_pretrained(stable_diffusion)
    assert isinstance(pipeline.conditioner, PromptConditioner) and pipeline.size() == (16, 16)
    images = pipeline(**PROMPT, **SAMPLING, generator=generator(), output_type="pt").images
    for folder in (stable_diffusion, saved):
        call = StableDiffusionPipeline.from_pretrained(folder)
        expected = call(**PROMPT, **SAMPLING, generator=generator(), output_type="pt").images
        assert psnr(images, expected) > 100 and images.std() > 0.05


def test_another_sampler_and_no_guidance(stable_diffusion: Path) -> None:
    pipeline = GenerationPipeline.from_pretrained(stable_diffusion)
    reference = StableDiffusionPipeline.from_pretrained(stable_diffusion)
    reference.scheduler = pipeline.scheduler = make_scheduler(pipeline.scheduler, "dpm++")
    options = {"prompt": ["a cat", "a dog"], "num_inference_steps": 5, "guidance_scale": 1.0}
    images = [call(**options, generator=generator(), output_type="pt").images for call in (pipeline, reference)]
    assert psnr(*images) > 100


def test_a_saved_directory_is_diffusers_own_and_comes_back(stable_diffusion: Path, saved: Path) -> None:
    """No file of it names unetdiff; the schedule's facts and the segmentation head stay."""
    for path in saved.rglob("*.json"):
        assert "unetdiff" not in path.read_text()
    for name in ("scheduler/scheduler_config.json", "text_encoder/config.json"):
        assert read_object(saved / name) == read_object(stable_diffusion / name)
    pipeline = GenerationPipeline.from_pretrained(saved)
    assert pipeline.unet.config["heads"]["segmentation"]["num_classes"] == 3
    original = GenerationPipeline.from_pretrained(stable_diffusion)
    latents = torch.randn(1, 4, 8, 8, generator=generator())
    assert torch.equal(ours(pipeline, latents=latents), ours(original, latents=latents))


def test_image_to_image(saved: Path) -> None:
    """diffusers samples the posterior of an image, we take its mean: given as latents, both are the same."""
    pipeline, image = GenerationPipeline.from_pretrained(saved), torch.rand(1, 3, 16, 16, generator=generator())
    latents = pipeline.codec.encode(image * 2 - 1)
    expected = stock(StableDiffusionImg2ImgPipeline, saved, image=latents, strength=0.5)
    assert psnr(ours(pipeline.image_to_image, image=image, strength=0.5), expected) > 100


def test_inpainting_with_four_channels(saved: Path) -> None:
    pipeline, image = GenerationPipeline.from_pretrained(saved), torch.rand(1, 3, 16, 16, generator=generator())
    mask = torch.zeros(1, 16, 16)
    mask[:, 4:12, 6:] = 1
    options: dict[str, Any] = {"strength": 0.5, "height": 16, "width": 16}
    latents = pipeline.codec.encode(image * 2 - 1)
    given = {"image": latents, "masked_image_latents": latents, "mask_image": mask[:, None]}
    expected = stock(StableDiffusionInpaintPipeline, saved, **given, **options)
    assert psnr(ours(pipeline.inpaint, image=image, mask_image=mask, **options), expected) > 100


def test_inpainting_with_nine_channels(inpainting: Path) -> None:
    pipeline, image = GenerationPipeline.from_pretrained(inpainting), torch.rand(1, 3, 16, 16, generator=generator())
    mask = torch.zeros(1, 16, 16)
    mask[:, 4:12, 6:] = 1
    gray = (image * 2 - 1) * (1 - mask[:, None])
    options: dict[str, Any] = {"masked_image_latents": pipeline.codec.encode(gray), "height": 16, "width": 16}
    latents = torch.randn(1, 4, 8, 8, generator=generator())
    expected = stock(
        StableDiffusionInpaintPipeline,
        inpainting,
        image=image * 2 - 1,
        mask_image=mask[:, None],
        strength=1.0,
        latents=latents,
        **options,
    )
    result = ours(pipeline.inpaint, image=image, mask_image=mask, latents=latents)
    assert psnr(result, expected) > 100
    assert not torch.allclose(result, ours(pipeline, latents=latents))  # without an image: all of it is painted


def test_prompts_are_padded_and_the_empty_one_is_the_null_condition(stable_diffusion: Path, tmp_path: Path) -> None:
    encoder = TextEncoder.from_pretrained(str(stable_diffusion), padded=True)
    conditioner = PromptConditioner(WIDTH, MAX_TOKENS)
    conditioner.features = CachedFeatures(encoder, ["a red cat", ""], tmp_path)
    call = StableDiffusionPipeline.from_pretrained(stable_diffusion)
    expected, null = call.encode_prompt("a red cat", torch.device("cpu"), 1, True)
    conditions = conditioner.from_batch({"caption": ["a red cat", "", "dog"]})
    assert torch.equal(conditioner(conditions).tokens[:2], torch.cat([expected, null]))  # type: ignore[index]
    assert torch.equal(conditioner.null_condition(1), null) and conditions.shape == (3, MAX_TOKENS, WIDTH)
    assert torch.equal(conditions[2:], encoder(["dog"]))  # not in the cache
    assert not list(conditioner.parameters()) and not conditioner.state_dict()


def test_directories_that_are_not_stable_diffusion(stable_diffusion: Path, tmp_path: Path) -> None:
    write_stable_diffusion(tmp_path / "depth", in_channels=5)
    with pytest.raises(UserError, match="in_channels=5: must be 4, or 9 for inpainting"):
        GenerationPipeline.from_pretrained(tmp_path / "depth")
    index = read_object(stable_diffusion / "model_index.json")
    write_json(tmp_path / "model_index.json", {key: value for key, value in index.items() if key != "vae"})
    with pytest.raises(UserError, match="model_index.json: must have the key 'vae'"):
        GenerationPipeline.from_pretrained(tmp_path)
