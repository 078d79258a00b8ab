"""Noise in the segmentation task: noisy images, timesteps, and a resumed run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unetdiff.config.schema import RunConfig
from unetdiff.data.base import collate
from unetdiff.data.build import build_dataset
from unetdiff.errors import UserError
from unetdiff.training.draws import whole_batch
from unetdiff.training.step_layers import StepLayers
from unetdiff.training.tasks.build import build_task
from unetdiff.training.tasks.segmentation import SegmentationTask

Tiny = Callable[..., RunConfig]


def build(tiny: Tiny, **options) -> tuple[SegmentationTask, dict]:
    config = tiny("segmentation", **options)
    data = build_dataset(config.data, "train", True)
    task = build_task(config, data, data)
    assert isinstance(task, SegmentationTask)
    return task, collate([data[i] for i in range(16)])


def test_images_are_noised_as_a_denoiser_sees_them(tiny: Tiny) -> None:
    task, batch = build(tiny, segmentation__noise=0.5, model__conditioning__timestep=True)
    clean = task.pixels(batch["image"])
    sample, timesteps = task.add_noise(clean, whole_batch(3, 16, "cpu"))
    assert timesteps is not None
    noisy = timesteps > 0
    assert 2 <= int(noisy.sum()) <= 14 and torch.equal(sample[~noisy], clean[~noisy])
    # at timestep t, an image is cos x_0 + sin ε of the cosine schedule (Nichol & Dhariwal 2021, equation 17)
    fraction = (timesteps[noisy] / 1000 + 0.008) / 1.008
    alpha = (torch.cos(fraction * torch.pi / 2) / torch.cos(torch.tensor(0.008 / 1.008 * torch.pi / 2)))[:, None]
    noise = (sample[noisy].flatten(1) - alpha * clean[noisy].flatten(1)) / (1 - alpha**2).sqrt()
    assert noise.mean().abs() < 0.02 and (noise.std() - 1).abs() < 0.02
    again, _ = task.add_noise(clean, whole_batch(3, 16, "cpu"))
    other, _ = task.add_noise(clean, whole_batch(4, 16, "cpu"))
    assert torch.equal(sample, again) and not torch.equal(sample, other)


@pytest.mark.parametrize("kind", ["segmentation", "joint"])
def test_images_of_several_sizes_in_micro_batches_are_refused(tiny: Tiny, kind: str) -> None:
    config = tiny(kind, segmentation__losses={"cross_entropy": 1.0, "dice": 0.0})
    data = build_dataset(config.data, "train", True)
    task = build_task(config, data, data)
    images = [torch.zeros(3, side, side, dtype=torch.uint8) for side in (32, 40)]
    batch = {"image": images, "mask": [image[0] for image in images], "name": ["a", "b"]}
    with pytest.raises(UserError, match=r"data.size: must be set if the images differ in size \(got \(32, 32\)"):
        task.reference([(batch, whole_batch(0, 2, "cpu"))], StepLayers(task, 1, None))


def test_the_network_is_told_only_where_it_can_be(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    for timestep in (True, False):
        task, batch = build(tiny, segmentation__noise=1.0, model__conditioning__timestep=timestep)
        heard: list[Tensor | None] = []
        segment = task.unet.segment

        def spy(pixels: Tensor, t: Tensor | None = None, segment=segment, heard=heard) -> Tensor:
            heard.append(t)
            return segment(pixels, t)

        monkeypatch.setattr(task.unet, "segment", spy)
        task.batch_losses(batch, 0)["loss"].backward()
        t = heard[0]
        if not timestep:
            assert t is None
            continue
        assert t is not None  # one in each sixteenth of the timesteps
        assert sorted((t * 16 // 1000).tolist()) == list(range(16))


def test_without_noise_nothing_is_changed(tiny: Tiny) -> None:
    task, batch = build(tiny, model__conditioning__timestep=True)
    clean = task.pixels(batch["image"])
    sample, timesteps = task.add_noise(clean, whole_batch(3, 16, "cpu"))
    assert sample is clean and timesteps.tolist() == [0] * 16


def test_share_of_the_images(tiny: Tiny) -> None:
    task, batch = build(tiny, segmentation__noise=0.25)
    clean = task.pixels(batch["image"])
    noised = [task.add_noise(clean, whole_batch(seed, 16, "cpu"))[0] for seed in range(60)]
    changed = [(images != clean).flatten(1).any(dim=1).float().mean() for images in noised]
    assert torch.stack(changed).mean() == pytest.approx(0.25, abs=0.05)  # deviation 0.014


def test_a_resumed_run_sees_the_same_noise(
    tiny: Tiny, cut_and_resumed: Callable[[RunConfig], dict[str, Tensor]]
) -> None:
    cut_and_resumed(tiny("segmentation", segmentation__noise=0.5, model__conditioning__timestep=True))


def test_noise_of_flow_matching(tiny: Tiny) -> None:
    noise = {"diffusion.noise.process": "flow", "diffusion.noise.flow.logit_mean": 3.0}
    task, batch = build(tiny, segmentation__noise=0.5, model__conditioning__timestep=True, **noise)
    clean = task.pixels(batch["image"])
    sample, timesteps = task.add_noise(clean, whole_batch(3, 16, "cpu"))
    assert timesteps is not None and torch.equal(sample[timesteps == 0], clean[timesteps == 0])
    sigma = (timesteps[timesteps > 0] / 1000)[:, None]
    assert 2 <= len(sigma) <= 14 and sigma.min() > 0.5
    added = (sample[timesteps > 0].flatten(1) - (1 - sigma) * clean[timesteps > 0].flatten(1)) / sigma
    assert added.mean().abs() < 0.02 and (added.std() - 1).abs() < 0.02
