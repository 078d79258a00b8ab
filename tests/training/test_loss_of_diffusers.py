"""The loss of a batch is what diffusers' examples/text_to_image/train_text_to_image.py computes for it.

Its formulas are written here, around stock diffusers and transformers, for the latents, noise, timesteps and prompts of
our step. What differs is how these are drawn: our timesteps are stratified over the batch, a fraction
`diffusion.condition_dropout` of the prompts is empty (the script drops none), and prompts are the captions as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import compute_snr
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from suite.stable_diffusion import write_stable_diffusion
from unetdiff.config.reading import load
from unetdiff.data.base import collate
from unetdiff.data.sampling import SampleKey
from unetdiff.training.draws import whole_batch
from unetdiff.training.trainer import Trainer

IMAGES = 6


def _script_loss(
    source: Path, latents: Tensor, noise: Tensor, timesteps: Tensor, prompts: list[str], snr_gamma: float | None
) -> Tensor:
    """train_text_to_image.py from `noisy_latents` to `loss`; before diffusers 0.29 Min-SNR of v was another formula."""
    unet = UNet2DConditionModel.from_pretrained(source, subfolder="unet")
    noise_scheduler = DDPMScheduler.from_pretrained(source, subfolder="scheduler")
    tokenizer = CLIPTokenizer.from_pretrained(source, subfolder="tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(source, subfolder="text_encoder")

    input_ids = tokenizer(
        prompts, max_length=tokenizer.model_max_length, padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    noisy_latents = noise_scheduler.add_noise(latents, noise, timesteps)
    encoder_hidden_states = text_encoder(input_ids)[0]
    prediction_type = noise_scheduler.config.prediction_type
    target = noise if prediction_type == "epsilon" else noise_scheduler.get_velocity(latents, noise, timesteps)
    model_pred = unet(noisy_latents, timesteps, encoder_hidden_states, return_dict=False)[0]
    if snr_gamma is None:
        return F.mse_loss(model_pred.float(), target.float(), reduction="mean")
    snr = compute_snr(noise_scheduler, timesteps)
    mse_loss_weights = torch.stack([snr, snr_gamma * torch.ones_like(timesteps)], dim=1).min(dim=1)[0]
    mse_loss_weights = mse_loss_weights / (snr if prediction_type == "epsilon" else snr + 1)
    loss = F.mse_loss(model_pred.float(), target.float(), reduction="none")
    return (loss.mean(dim=[1, 2, 3]) * mse_loss_weights).mean()


def _inpainting_loss(
    source: Path, latents: Tensor, noise: Tensor, timesteps: Tensor, masks: Tensor, masked_latents: Tensor, text: Tensor
) -> Tensor:
    """train_dreambooth_inpaint.py (diffusers' research projects) from `noisy_latents` to `loss`."""
    unet = UNet2DConditionModel.from_pretrained(source, subfolder="unet")
    noise_scheduler = DDPMScheduler.from_pretrained(source, subfolder="scheduler")
    noisy_latents = noise_scheduler.add_noise(latents, noise, timesteps)
    mask = torch.stack([F.interpolate(one[None], size=latents.shape[-2:]) for one in masks])
    mask = mask.reshape(-1, 1, *latents.shape[-2:])
    latent_model_input = torch.cat([noisy_latents, mask, masked_latents], dim=1)
    noise_pred = unet(latent_model_input, timesteps, text).sample
    return F.mse_loss(noise_pred.float(), noise.float(), reduction="mean")


def test_the_loss_of_inpainting(tmp_path: Path) -> None:
    """All latents count, under the mask or not; masks and latents of masked images are new in each step."""
    source = tmp_path / "source"
    write_stable_diffusion(source, in_channels=9)
    trainer = Trainer(_config(source, tmp_path), None)
    trainer.close()
    task: Any = trainer.task.train()
    batch = collate([trainer.data.train[SampleKey(i, i, True)] for i in range(IMAGES)])
    drawn: dict[str, Any] = {}
    add_noise_at, encode = task.add_noise_at, task.codec.encode

    def record(x0: Tensor, noise: Tensor, timesteps: Tensor, *rest: Any) -> Any:
        drawn.update(latents=x0, noise=noise, timesteps=timesteps)
        return add_noise_at(x0, noise, timesteps, *rest)

    def encoded(pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        drawn.update(pixels=pixels, masked_latents=encode(pixels, noise), posterior=noise)
        return drawn["masked_latents"]

    task.add_noise_at, task.codec.encode = record, encoded
    tokenizer = CLIPTokenizer.from_pretrained(source, subfolder="tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(source, subfolder="text_encoder")
    ids = tokenizer(
        batch["caption"],
        max_length=tokenizer.model_max_length,
        padding="max_length",
        truncation=True,
        return_tensors="pt",
    ).input_ids
    vae, seen = AutoencoderKL.from_pretrained(source, subfolder="vae"), []
    for seed in (7, 8):
        with torch.no_grad():
            loss = task.losses(task(batch, whole_batch(seed, IMAGES, "cpu")))["loss"]
            images = batch["image"] / 127.5 - 1
            masks = (drawn["pixels"] != images).any(dim=1, keepdim=True).float()  # gray is no color of the scenes
            posterior = vae.encode(images * (masks < 0.5)).latent_dist
            masked = (posterior.mean + posterior.std * drawn["posterior"]) * vae.config.scaling_factor
            torch.testing.assert_close(drawn["masked_latents"], masked, atol=1e-4, rtol=1e-4)
            names = ("latents", "noise", "timesteps", "masked_latents")
            expected = _inpainting_loss(
                source, masks=masks, text=text_encoder(ids)[0], **{name: drawn[name] for name in names}
            )
        assert loss > 0.01 and float(loss) == pytest.approx(float(expected), abs=1e-5)
        assert 0.05 < masks.mean() < 0.95
        seen.append(masks)
    assert not torch.equal(*seen)


def _config(source: Path, folder: Path) -> Any:
    return load(
        None,
        {
            "data.name": "scenes",
            "data.scenes.train_images": IMAGES,
            "data.scenes.val_images": 2,
            "model.pretrained": str(source),
            "diffusion.condition_dropout": 0.0,
            "diffusion.text.cache_dir": str(folder / "captions"),
            "training.output_dir": str(folder / "run"),
            "training.steps": 1,
            "training.batch_size": IMAGES,
            "training.ema.enabled": False,
            "training.mixed_precision": "no",
        },
        "diffusion",
    )


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_loss_is_that_of_the_script(prediction_type: str, tmp_path: Path) -> None:
    """With and without Min-SNR (snr_gamma) and offset noise (noise_offset)."""
    source = tmp_path / "source"
    write_stable_diffusion(source, prediction_type=prediction_type)
    trainer = Trainer(_config(source, tmp_path), None)
    trainer.close()
    task: Any = trainer.task.train()
    batch = collate([trainer.data.train[SampleKey(i, i, True)] for i in range(IMAGES)])
    drawn: dict[str, Tensor] = {}
    add_noise_at = task.add_noise_at

    def record(x0: Tensor, noise: Tensor, timesteps: Tensor, *rest: Any) -> Any:
        drawn.update(latents=x0, noise=noise, timesteps=timesteps)
        return add_noise_at(x0, noise, timesteps, *rest)

    task.add_noise_at, noises = record, {}
    for snr_gamma in (None, 5.0, 1.0):
        for offset in (0.0, 0.1):
            task.config.weighting = "uniform" if snr_gamma is None else "min_snr"
            task.config.snr_gamma, task.config.offset_noise = snr_gamma or 5.0, offset
            with torch.no_grad():
                loss = task.losses(task(batch, whole_batch(7, IMAGES, "cpu")))["loss"]
                expected = _script_loss(source, **drawn, prompts=batch["caption"], snr_gamma=snr_gamma)
            assert loss > 0.01 and float(loss) == pytest.approx(float(expected), abs=1e-5)
            noises[offset] = drawn["noise"]
    assert len(set(batch["caption"])) > 1

    vae = AutoencoderKL.from_pretrained(source, subfolder="vae")
    with torch.no_grad():
        latents = vae.encode(batch["image"] / 127.5 - 1).latent_dist.mean * vae.config.scaling_factor
    torch.testing.assert_close(task.encode(batch), latents, atol=1e-5, rtol=0)
    shift = (noises[0.1] - noises[0.0]) / 0.1  # noise + noise_offset * randn(B, C, 1, 1)
    torch.testing.assert_close(shift, shift[..., :1, :1].expand_as(shift), atol=1e-4, rtol=0)
    assert 0.5 < float(shift[..., 0, 0].std()) < 1.6
