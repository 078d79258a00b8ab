"""Masks as what is noised: the code and its inverse, void, and samples as a segmenter."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unetdiff.diffusion.conditioning.images import ImageConditioner
from unetdiff.diffusion.config import DiffusionConfig, NoiseConfig
from unetdiff.diffusion.mask_codec import MaskCodec, loss_mask
from unetdiff.diffusion.mask_sampling import (
    MaskSampler,
    MaskSamplingConfig,
    log_probabilities,
    running_means,
    uncertainty,
)
from unetdiff.diffusion.objectives import build_scheduler, diffusion_loss
from unetdiff.diffusion.pipeline import GenerationPipeline
from unetdiff.diffusion.trajectory import TrajectoryRecorder
from unetdiff.errors import UserError
from unetdiff.models.unet import UNet

PALETTE = [[0, 0, 0], [255, 0, 0], [0, 0, 255]]
CLASSES = ["background", "cat", "dog"]


def space() -> MaskCodec:
    return MaskCodec(CLASSES, PALETTE)


def test_one_hot_and_void_in_the_middle() -> None:
    coded = space().encode_masks(torch.tensor([[[0, 2, 255]]], dtype=torch.uint8))
    assert coded[0, :, 0].T.tolist() == [[1, -1, -1], [-1, -1, 1], [0, 0, 0]]
    assert loss_mask(torch.tensor([[[0, 2, 255]]])).tolist() == [[[[True, True, False]]]]


def test_probabilities_are_those_of_the_class_and_add_up() -> None:
    masks = torch.randint(3, (2, 4, 5), generator=torch.Generator().manual_seed(0))
    coded = space().encode_masks(masks)
    assert torch.equal(space().probabilities(coded).argmax(dim=1), masks)
    assert torch.equal(space().probabilities(coded).amax(dim=1), torch.ones(2, 4, 5))
    # the mean of masks that are of a class with probability p is p
    drawn = torch.tensor([2 * p - 1 for p in (0.2, 0.7, 0.1)]).reshape(1, 3, 1, 1)
    torch.testing.assert_close(space().probabilities(drawn).flatten(), torch.tensor([0.2, 0.7, 0.1]))
    nothing = space().probabilities(torch.full((1, 3, 1, 1), -2.0))
    torch.testing.assert_close(nothing.flatten(), torch.full((3,), 1 / 3))


def test_drawn_masks_are_shown_in_their_colours() -> None:
    coded = space().encode_masks(torch.tensor([[[0, 1, 2]]]))
    assert ((space().decode(coded) / 2 + 0.5)[0, :, 0].T * 255).round().int().tolist() == PALETTE
    with pytest.raises(UserError, match="image: must be None for a denoiser of masks"):
        space().encode(torch.zeros(1, 3, 4, 4))


def test_void_has_no_part_in_the_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    output, target = (torch.randn(2, 3, 4, 4, generator=generator) for _ in range(2))
    where = torch.rand(2, 1, 4, 4, generator=generator) > 0.5
    weight = torch.tensor([1.0, 2.0])
    by_hand = [w * ((o - t) ** 2)[:, m[0]].mean() for o, t, m, w in zip(output, target, where, weight, strict=True)]
    torch.testing.assert_close(diffusion_loss(output, target, weight, where), torch.stack(by_hand))
    other = torch.where(where, output, 100.0)
    torch.testing.assert_close(diffusion_loss(other, target, weight, where), torch.stack(by_hand))
    assert diffusion_loss(output, target, weight, torch.zeros_like(where)).tolist() == [0, 0]


class Coin(nn.Module):
    """The perfect denoiser of a mask that is one class all over: cat with probability p, else dog."""

    def __init__(self, scheduler: object, p: float) -> None:
        super().__init__()
        self.alphas, self.p = scheduler.alphas_cumprod, p  # type: ignore[attr-defined]
        self.given = nn.Parameter(torch.zeros(()))

    def x0(self, x: Tensor, t: int) -> Tensor:
        """E[x0 | x_t], pixels independent: the posterior of two points under Gaussian noise."""
        points = torch.tensor([[-1.0, 1, -1], [-1, -1, 1]], device=x.device)  # (2, C)
        alpha, variance = self.alphas[t].sqrt(), 1 - self.alphas[t]
        distance = (x[:, None] - alpha * points[:, :, None, None]).square().sum(dim=2)  # (B, 2, H, W)
        prior = torch.tensor([self.p, 1 - self.p]).log()[:, None, None]
        posterior = (prior - distance / (2 * variance)).softmax(dim=1)
        return torch.einsum("b k h w, k c -> b c h w", posterior, points)


def oracle_pipeline(p: float, scale: float = 0.3) -> GenerationPipeline:
    unet = UNet(
        in_channels=7,
        sample_size=16,
        encoder={"name": "residual", "channels": [8, 8]},
        residual={"norm_num_groups": 4, "layers_per_block": 1},
        conditioning={"timestep": True, "attention_levels": []},
        heads={"diffusion": {"out_channels": 3}},
    )
    scheduler = build_scheduler(DiffusionConfig(prediction_type="sample", noise=NoiseConfig(input_scale=scale)))
    pipeline = GenerationPipeline(unet, scheduler, ImageConditioner("none"), masks=space().settings)
    coin = Coin(scheduler, p)

    def denoise(sample: Tensor, timestep: Tensor, **_: object) -> object:
        class Answer:
            pass

        answer = Answer()
        answer.sample = coin.x0(sample[:, :3], int(timestep))  # type: ignore[attr-defined]
        return answer

    unet.forward = denoise  # type: ignore[assignment, method-assign]
    return pipeline


def test_the_mean_of_samples_is_the_probability() -> None:
    """With the optimal denoiser of a mask that is cat with 0.7, the mean over pixels and samples is 0.7."""
    sampler = MaskSampler(oracle_pipeline(0.7), MaskSamplingConfig(num_samples=8, num_inference_steps=50))
    drawn = sampler.sample(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    assert drawn.shape == (8, 2, 3, 16, 16)
    assert float(drawn.amax(dim=2).mean()) > 0.98  # each sample has decided
    assert drawn.mean(dim=(0, 1, 3, 4)).tolist() == pytest.approx([0, 0.7, 0.3], abs=0.03)


def test_a_sample_is_the_same_however_many_are_drawn() -> None:
    images = torch.zeros(3, 3, 16, 16, dtype=torch.uint8)
    all_of_them = MaskSampler(oracle_pipeline(0.5), MaskSamplingConfig(4, 5)).sample(images)
    one = MaskSampler(oracle_pipeline(0.5), MaskSamplingConfig(2, 5)).sample(images[2:], first=2)
    torch.testing.assert_close(one, all_of_them[:2, 2:])
    assert not torch.equal(all_of_them[0], all_of_them[1])
    listed = list(MaskSampler(oracle_pipeline(0.5), MaskSamplingConfig(4, 5)).logits()(list(images)))
    torch.testing.assert_close(torch.stack(listed).exp(), all_of_them.mean(dim=0).clamp(min=1e-6))


def test_uncertainty_and_means() -> None:
    certain, even = torch.tensor([1.0, 0, 0]), torch.full((3,), 1 / 3)
    both = torch.stack([certain, even], dim=-1).reshape(3, 1, 2)
    torch.testing.assert_close(uncertainty(both), torch.tensor([[0.0, 1.0]]))
    half = torch.tensor([0.5, 0.5, 0]).reshape(3, 1, 1)
    assert float(uncertainty(half)) == pytest.approx(math.log(2) / math.log(3))
    torch.testing.assert_close(running_means(torch.tensor([[1.0], [3], [8]])), torch.tensor([[1.0], [2], [4]]))
    torch.testing.assert_close(log_probabilities(half.reshape(3)).softmax(0), half.reshape(3), atol=1e-5, rtol=0)


def test_saved_loaded_and_drawn(tmp_path: Path) -> None:
    pipeline = oracle_pipeline(0.5)
    pipeline.save_pretrained(tmp_path / "model")
    loaded = GenerationPipeline.from_pretrained(tmp_path / "model")
    loaded.set_progress_bar_config(disable=True)
    assert isinstance(loaded.codec, MaskCodec) and loaded.codec.settings == space().settings
    assert MaskCodec.saved(tmp_path / "model").settings == space().settings  # type: ignore[union-attr]
    assert loaded.channels == 3 and torch.equal(loaded.scheduler.alphas_cumprod, pipeline.scheduler.alphas_cumprod)
    image = torch.zeros(3, 16, 16, dtype=torch.uint8)
    recorder = TrajectoryRecorder(2)
    generator = torch.Generator().manual_seed(0)
    out = loaded(condition_image=image, num_inference_steps=2, callback_on_step_end=recorder, generator=generator)
    assert out.images[0].size == (16, 16) and recorder.trajectory.noisy.shape == (2, 1, 3, 16, 16)
    colours = np.asarray(out.images[0]).reshape(-1, 3).tolist()
    assert all(colour in PALETTE for colour in colours)
    raw = loaded(condition_image=image, num_inference_steps=2, output_type="latent", guidance_scale=1.0)
    assert raw.images.shape == (1, 3, 16, 16) and raw.images.abs().max() <= 1 + 1e-6
    with pytest.raises(UserError, match="image: must be None for a denoiser of masks"):
        loaded.image_to_image(image, condition_image=image, num_inference_steps=2)


def test_what_does_not_segment_is_refused() -> None:
    pipeline = oracle_pipeline(0.5)
    untold = GenerationPipeline(pipeline.unet, pipeline.scheduler, masks=space().settings)
    with pytest.raises(UserError, match="pipeline: must sample the mask of an image"):
        MaskSampler(untold, MaskSamplingConfig())
    with pytest.raises(UserError, match="num_samples=0: must be at least 1"):
        MaskSampler(pipeline, MaskSamplingConfig(num_samples=0))
