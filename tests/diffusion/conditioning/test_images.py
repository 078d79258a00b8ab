"""An image to restore as channels: what each degradation does, and that no image is told apart from a grey one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from unetdiff.diffusion.conditioning.images import ImageConditioner, unit_image
from unetdiff.diffusion.conditioning.load import load_conditioner
from unetdiff.errors import UserError


def images(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_downscale_keeps_means_and_loses_detail() -> None:
    clean = images().float() / 127.5 - 1
    seen = ImageConditioner("downscale", 8).degraded(clean)
    expected = clean.mean(dim=(2, 3), keepdim=True).expand_as(clean)
    torch.testing.assert_close(seen, expected, atol=1e-5, rtol=0)


def test_grayscale_is_luminance() -> None:
    clean = images().float() / 127.5 - 1
    seen = ImageConditioner("grayscale").degraded(clean)
    grey = torch.tensor(np.asarray(Image.fromarray(images()[0].permute(1, 2, 0).numpy()).convert("L")))
    torch.testing.assert_close(seen[0], (grey.float() / 127.5 - 1).expand(3, 8, 8), atol=0.01, rtol=0)


def test_blur_shrinks_the_deviation_and_keeps_flat_images() -> None:
    conditioner = ImageConditioner("blur", 1.5)
    clean = images().float() / 127.5 - 1
    assert conditioner.degraded(clean).std() < 0.5 * clean.std()
    flat = torch.full((1, 3, 8, 8), 0.25)
    torch.testing.assert_close(conditioner.degraded(flat), flat)


def test_no_image_is_a_learned_colour_and_not_a_grey_image() -> None:
    conditioner = ImageConditioner()
    torch.nn.init.constant_(conditioner.blank, 0.5)
    grey = conditioner.from_batch({"image": torch.full((1, 3, 8, 8), 127, dtype=torch.uint8)})
    assert (conditioner(conditioner.null_condition(1, (8, 8)), (8, 8)).channels == 0.5).all()
    assert (conditioner(grey, (8, 8)).channels[:, 3] == 1).all()
    assert conditioner(grey, (8, 8)).channels[:, :3].abs().max() < 0.01


def test_encode_enlarges_what_a_person_gives() -> None:
    image = Image.new("RGB", (2, 2), (255, 0, 127))
    seen = ImageConditioner().encode([image, image], (8, 8))
    assert seen.shape == (2, 4, 8, 8)
    torch.testing.assert_close(seen[0, :, 3, 3], torch.tensor([1.0, -1.0, -0.0039, 1.0]), atol=1e-3, rtol=0)


def test_unit_image_takes_arrays_tensors_and_images() -> None:
    array = images()[0].permute(1, 2, 0).numpy()
    same = [unit_image(given) for given in (array, Image.fromarray(array), images()[0], images()[0] / 255)]
    for one in same:
        torch.testing.assert_close(one, same[0])
    with pytest.raises(UserError, match=r"image: must have shape \(3, H, W\)"):
        unit_image(np.zeros((4, 4), np.uint8))


def test_a_denoiser_of_latents_is_told_the_images_latents(tmp_path) -> None:
    conditioner = ImageConditioner("grayscale", latent_channels=5)
    assert conditioner.channels == 6
    torch.nn.init.constant_(conditioner.blank, 0.5)
    conditions = torch.cat([conditioner.from_batch({"image": images()}), conditioner.null_condition(1, (8, 8))])
    with pytest.raises(UserError, match="must be set with the model's autoencoder loaded"):
        conditioner(conditions, (4, 4))
    conditioner.latents_of = lambda x: torch.nn.functional.avg_pool2d(x, 2)[:, [0, 1, 2, 0, 1]]
    channels = conditioner(conditions, (4, 4)).channels
    torch.testing.assert_close(channels[:2, :5], conditioner.latents_of(conditions[:2, :3]))
    assert (channels[:2, 5] == 1).all() and (channels[2] == 0.5).all()
    conditioner.save_pretrained(tmp_path)
    assert load_conditioner(tmp_path).channels == 6


def test_save_and_load(tmp_path) -> None:
    conditioner = ImageConditioner("blur", 2.0)
    torch.nn.init.normal_(conditioner.blank)
    conditioner.save_pretrained(tmp_path)
    loaded = load_conditioner(tmp_path)
    assert isinstance(loaded, ImageConditioner) and (loaded.degradation, loaded.strength) == ("blur", 2.0)
    assert torch.equal(loaded.blank, conditioner.blank)
