"""Named maps of frozen networks."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torchvision.models import get_model

from unetdiff.data.transforms import to_model_range
from unetdiff.errors import UserError
from unetdiff.experiments.features import (
    PretrainedEncoderFeatures,
    block_names,
    noise_for_names,
    open_features,
    parse_noise_levels,
)
from unetdiff.experiments.run_inputs import finished_runs, labeled_images
from unetdiff.models.unet import UNet
from unetdiff.reports.runs import read_run, read_runs

NAMES = ["a", "b"]


def images(side: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_block_names_have_part_size_and_number():
    sizes = {"encoder.0": (4, 8), "encoder.1.0": (2, 4), "mid_block": (2, 4)}
    sizes |= {"decoder.0.0": (4, 8), "decoder.0.1": (4, 8)}
    maps = {key: torch.zeros(1, 1, *size) for key, size in sizes.items()}
    assert list(block_names({**maps, "last": maps["decoder.0.1"]}).values()) == [
        "encoder 4x8",
        "encoder 2x4",
        "mid_block 2x4",
        "decoder 4x8 #1",
        "decoder 4x8 #2",
    ]


@pytest.mark.parametrize("name", ["residual", "classic", "resnet18"])
def test_every_encoder_has_named_blocks(make_run, name):
    options = {"model.encoder.name": name, "model.conditioning.attention_levels": None}
    if name == "resnet18":
        options |= {"model.encoder.channels": None, "model.decoder.channels": [8, 8, 8, 8, 8]}
    run = read_run(make_run("run", "diffusion", **options))
    features = open_features(run, labeled_images(run, run, "val"), [None, 500], 0, "cpu")
    maps = features(images(), NAMES, 500)
    assert {title.split()[0] for title in maps} >= {"encoder", "decoder"}
    assert all(not m.requires_grad and m.dtype == torch.float32 and len(m) == 2 for m in maps.values())
    assert all(title.split()[1] == f"{m.shape[-2]}x{m.shape[-1]}" for title, m in maps.items())


def test_a_denoiser_sees_the_noise_of_the_timestep_and_no_condition(make_run):
    run = read_run(make_run("run"))
    features = open_features(run, labeled_images(run, run, "val"), [None, 300], 7, "cpu")
    result = features(images(), NAMES, 300)
    task = features.diffusion
    assert task is not None and task.conditioner is not None
    alpha_bar = task.scheduler.alphas_cumprod[300]
    noise = noise_for_names(NAMES, (3, 32, 32), 7)
    noisy = alpha_bar.sqrt() * to_model_range(images()) + (1 - alpha_bar).sqrt() * noise
    null = task.conditioner(task.conditioner.null_condition(2), (32, 32)).tokens
    with torch.no_grad():
        expected = features.unet.features(noisy, 300, null)
    for key, title in block_names(expected).items():
        assert torch.allclose(result[title], expected[key], atol=1e-6)
    assert not torch.allclose(result["mid_block 16x16"], features(images(), NAMES, None)["mid_block 16x16"], atol=1e-3)


def test_clean_images_of_a_joint_run_are_what_its_segmentation_head_sees(make_run):
    run = read_run(make_run("run", "joint"))
    features = open_features(run, labeled_images(run, run, "val"), [None], 0, "cpu")
    maps = features(images(), NAMES)
    last = list(maps.values())[-1]
    with torch.no_grad():
        head = features.unet.heads["segmentation"]
        assert torch.allclose(head(last), features.unet.segment(to_model_range(images())), atol=1e-5)


def test_noise_depends_on_name_and_seed_alone():
    one = noise_for_names(["a", "b"], (3, 4, 4), 0)
    assert torch.equal(one[1:], noise_for_names(["b"], (3, 4, 4), 0))
    assert not torch.equal(one[0], one[1]) and not torch.equal(one, noise_for_names(["a", "b"], (3, 4, 4), 1))


def test_random_weights_differ_and_repeat(make_run):
    run = read_run(make_run("run"))
    features = open_features(run, labeled_images(run, run, "val"), [None], 0, "cpu")
    state = torch.random.get_rng_state()
    first, again = (features.with_random_weights("r", 3)(images(), NAMES) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    trained = features(images(), NAMES)
    assert all(torch.equal(first[t], again[t]) and not torch.allclose(first[t], trained[t]) for t in trained)


def test_pretrained_encoder_is_that_of_a_unet(tmp_path):
    torch.manual_seed(0)
    file = tmp_path / "encoder.safetensors"
    state = get_model("resnet18", weights=None).state_dict()
    save_file({k: v for k, v in state.items() if not k.startswith("fc.")}, file)
    features = PretrainedEncoderFeatures("resnet18", str(file), 64, "cpu")
    maps = features(images(64), NAMES)
    assert [tuple(m.shape[1:]) for m in maps.values()] == [
        (64, 32, 32),
        (64, 16, 16),
        (128, 8, 8),
        (256, 4, 4),
        (512, 2, 2),
    ]
    unet = UNet(encoder={"name": "resnet18", "weights": str(file)}, heads={"segmentation": {}}).eval()
    with torch.no_grad():
        expected = unet.features(to_model_range(images(64)))
    assert torch.allclose(maps["encoder 2x2"], expected["encoder.5"], atol=1e-5)
    assert list(features(images(32), NAMES).values())[0].shape[-1] == 32  # enlarged to 64 first
    with pytest.raises(UserError, match="--encoder_weights"):
        PretrainedEncoderFeatures("resnet18", str(tmp_path / "none.safetensors"), 64, "cpu")


def test_refusals(make_run):
    assert parse_noise_levels(["clean", "10", "10"]) == [None, 10]
    with pytest.raises(UserError, match="--timesteps=-1: must be a timestep of at least 0, or clean"):
        parse_noise_levels(["-1"])
    run = read_run(make_run("run"))
    with pytest.raises(UserError, match="--timesteps=1000: must be at most 999"):
        open_features(run, labeled_images(run, run, "val"), [1000], 0, "cpu")
    other = make_run("other", **{"data.scenes.clutter": 0.9})
    with pytest.raises(UserError, match="have different validation images"):
        finished_runs([run.path, other])
    (other / "summary.json").unlink()
    with pytest.raises(UserError, match="not finished.*--resume"):
        finished_runs([other])


def test_a_denoiser_of_masks_sees_no_noisy_images(make_run):
    options = {"diffusion.target": "mask", "diffusion.condition": "image", "diffusion.image.degradation": "none"}
    run = read_run(make_run("masks", "diffusion", **options))
    with pytest.raises(UserError, match="diffusion.target=mask: must be image"):
        open_features(run, labeled_images(run, run, "val"), [None], 0, "cpu")


def test_stable_diffusion_is_probed_in_its_latents_with_its_schedule_and_the_empty_prompt(make_run, stable_diffusion):
    run, pretrained = read_runs([make_run("run", "diffusion"), stable_diffusion])
    features = open_features(pretrained, labeled_images(run, run, "val"), [None, 40], 3, "cpu")
    result = list(features(images(), NAMES, 40).values())
    pipe = StableDiffusionPipeline.from_pretrained(stable_diffusion)
    with torch.no_grad():
        x0 = pipe.vae.encode(to_model_range(images())).latent_dist.mean * pipe.vae.config.scaling_factor
        prompt = pipe.encode_prompt(["", ""], "cpu", 1, False)[0]
        noise = noise_for_names(NAMES, x0.shape[1:], 3)
        sample = pipe.scheduler.add_noise(x0, noise, torch.tensor([40, 40]))
        expected = list(UNet.from_diffusers(pipe.unet).features(sample, 40, prompt).values())
    for one, other in zip(result, expected, strict=False):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
