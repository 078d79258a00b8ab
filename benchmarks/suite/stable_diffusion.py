"""Stable Diffusion with random weights and a few channels, that tests and benchmarks write in a moment."""

from __future__ import annotations

import shutil
import string
from pathlib import Path
from typing import Any

MAX_TOKENS = 24
WIDTH = 8
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def write_stable_diffusion(folder: Path, in_channels: int = 4, prediction_type: str = "epsilon", seed: int = 0) -> None:
    """Write a `StableDiffusionPipeline` as diffusers does: networks of (4, 8) channels, an autoencoder of factor 2.

    Args:
        folder: the pipeline directory.
        in_channels: 4, or 9 for the inpainting model's.
        prediction_type: "epsilon" (1.x, 2 base) or "v_prediction" (2.x).
        seed: of the weights.
    """
    import torch
    from diffusers import (
        AutoencoderKL,
        PNDMScheduler,
        StableDiffusionInpaintPipeline,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )

    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
    )
    tokenizer, text_encoder = _text_parts()
    scheduler = PNDMScheduler(
        **BETAS, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1, prediction_type=prediction_type
    )
    kind: Any = StableDiffusionPipeline if in_channels == 4 else StableDiffusionInpaintPipeline
    pipeline = kind(
        vae, text_encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )  # no safety checker, no feature extractor
    pipeline.save_pretrained(folder)


def _text_parts() -> tuple[Any, Any]:
    """CLIP's tokenizer with letters as tokens, and its text encoder."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    vocabulary = {word: number for number, word in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=MAX_TOKENS)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": len(letters), "eos_token_id": len(letters) + 1, "pad_token_id": len(letters) + 1}
    config = CLIPTextConfig(vocab_size=len(vocabulary), max_position_embeddings=MAX_TOKENS, **sizes, **ids)
    return tokenizer, CLIPTextModel(config)


def write_latent_diffusion(folder: Path) -> None:
    """Write an `LDMTextToImagePipeline` of the same sizes, with a text encoder of diffusers' own and 77 tokens."""
    import torch
    from diffusers import DDIMScheduler, LDMTextToImagePipeline, StableDiffusionPipeline
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    write_stable_diffusion(folder / "parts")
    parts = StableDiffusionPipeline.from_pretrained(folder / "parts")
    torch.manual_seed(1)
    sizes = {"encoder_layers": 1, "encoder_ffn_dim": 16, "encoder_attention_heads": 2, "head_dim": 4, "d_model": WIDTH}
    text_encoder = LDMBertModel(LDMBertConfig(vocab_size=len(parts.tokenizer), **sizes)).eval()
    parts.tokenizer.model_max_length = 512
    scheduler = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    pipeline = LDMTextToImagePipeline(parts.vae, text_encoder, parts.tokenizer, parts.unet, scheduler)
    pipeline.save_pretrained(folder)
    shutil.rmtree(folder / "parts")
