"""`model.pretrained`: what follows from a pretrained model, what is refused, and what a run makes of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDPMScheduler,
    LDMTextToImagePipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DModel,
)
from huggingface_hub import constants

from suite.stable_diffusion import write_latent_diffusion, write_stable_diffusion
from unetdiff import GenerationPipeline, SegmentationPipeline, UNet
from unetdiff.config.pretrained import follow_pretrained
from unetdiff.config.reading import from_yaml, load, parse
from unetdiff.config.schema import RunConfig, flatten
from unetdiff.data.base import collate
from unetdiff.diffusion.conditioning.prompt import PromptConditioner
from unetdiff.diffusion.config import DiffusionConfig
from unetdiff.errors import UserError
from unetdiff.evaluation.load_run import load_run
from unetdiff.files.records import read_object
from unetdiff.training.trainer import Trainer, train

SHORT: dict[str, Any] = {
    "data.scenes.train_images": 8,
    "data.scenes.val_images": 2,
    "diffusion.preview_steps": 2,
    "diffusion.preview_per_class": 1,
    "training.steps": 2,
    "training.batch_size": 2,
    "training.validate_every": 2,
    "training.checkpoint_every": 1,
    "training.optimizer.lr": 1e-4,
}


def config_of(source: Path, run: Path, **changes: Any) -> RunConfig:
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    keys = {"data.name": "scenes", "model.pretrained": str(source), "training.output_dir": str(run), **SHORT}
    return load(None, keys | changes, "diffusion")


@pytest.fixture(scope="module")
def trained(stable_diffusion: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A copy of the pretrained pipeline, and a run of two steps from it."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(stable_diffusion, folder / "source")
    return folder / "source", train(config_of(folder / "source", folder / "run"))


def test_network_schedule_autoencoder_and_text_encoder_follow(stable_diffusion: Path) -> None:
    config = config_of(stable_diffusion, Path("run"))
    unet, noise = UNet.from_diffusers(stable_diffusion), config.diffusion.noise
    for key in ("encoder", "conditioning", "imported"):
        assert vars(getattr(config.model, key)) == unet.config[key], key
    assert (noise.beta_schedule, noise.beta_start, noise.beta_end) == ("scaled_linear", 0.00085, 0.012)
    assert config.diffusion.prediction_type == "epsilon" and config.latent.vae == str(stable_diffusion)
    assert config.diffusion.condition == "text" and config.diffusion.text.encoder == str(stable_diffusion)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("model.encoder.channels", [8, 16], r"\[8, 16\]: must be \[4, 8\]"),
        ("model.conditioning.cross_attention_dim", 16, "16: must be 8"),
        ("diffusion.prediction_type", "v_prediction", "v_prediction: must be epsilon"),  # its default, but given
        ("diffusion.noise.beta_end", 0.02, "0.02: must be 0.012"),
        ("latent.vae", "elsewhere", "elsewhere: must be "),
        ("training.init_from", "elsewhere", "elsewhere: must be null with model.pretrained="),
        ("model.pretrained", "elsewhere", "elsewhere: must be an existing pipeline, run or model directory"),
    ],
)
def test_a_key_that_contradicts_it_is_refused(
    key: str, value: Any, expected: str, stable_diffusion: Path, tmp_path: Path
) -> None:
    keys = {"data.name": "scenes", "model.pretrained": str(stable_diffusion), **SHORT, key: value}
    with pytest.raises(UserError, match=f"^{key}={expected}"):
        load(None, keys, "diffusion")
    with pytest.raises(UserError, match=f"^{key}={expected}"):
        load(None, [f"--{name}={word}" for name, word in keys.items()], "diffusion")


def test_a_run_starts_at_the_pretrained_model(stable_diffusion: Path, tmp_path: Path) -> None:
    """Its weights, its scheduler with every setting, and the loss of its prompts."""
    trainer = Trainer(config_of(stable_diffusion, tmp_path / "run"), None)
    trainer.close()
    task: Any = trainer.task
    expected = UNet.from_diffusers(stable_diffusion).state_dict()
    assert all(torch.equal(expected[name], tensor) for name, tensor in task.unet.state_dict().items())
    assert task.scheduler.config.steps_offset == 1 and not task.scheduler.config.set_alpha_to_one
    assert isinstance(task.conditioner, PromptConditioner) and task.conditioner.null.abs().sum() > 0
    assert list(task.trainable_modules()) == ["unet", "conditioner"]


def test_the_result_is_a_stable_diffusion_pipeline(trained: tuple[Path, Path]) -> None:
    """`best/` and `latest/` are directories of diffusers' own, which draw what ours draw from them."""
    source, run = trained
    options = {"prompt": "a red three", "guidance_scale": 3.0, "num_inference_steps": 5}
    samples = []
    for folder in (run / "best", run / "latest"):
        assert read_object(folder / "model_index.json")["_class_name"] == "StableDiffusionPipeline"
        assert read_object(folder / "scheduler/scheduler_config.json") == read_object(
            source / "scheduler/scheduler_config.json"
        )
        for kind in (GenerationPipeline, StableDiffusionPipeline):
            pipeline: Any = kind.from_pretrained(folder)
            samples.append(pipeline(**options, generator=torch.Generator().manual_seed(1), output_type="pt").images)
    assert torch.allclose(samples[0], samples[1], atol=1e-5) and torch.allclose(samples[2], samples[3], atol=1e-5)
    before = UNet.from_pretrained(source / "unet").state_dict()
    after = UNet.from_pretrained(run / "latest" / "unet").state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_resumed_and_loaded_without_the_pretrained_model(trained: tuple[Path, Path], tmp_path: Path) -> None:
    source, run = trained
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(source, tmp_path / "source")
    config = from_yaml(run / "config.yaml")
    assert config.model.pretrained == str(source) and config.model.encoder.channels == [4, 8]
    source.rename(source.with_name("away"))
    try:
        keys = {"data.name": "scenes", "model.pretrained": str(source), **SHORT}
        resumed = load(
            None,
            {**keys, "training.steps": 3, "training.output_dir": str(tmp_path / "run"), "training.resume": True},
            "diffusion",
        )
        train(resumed)
    finally:
        source.with_name("away").rename(source)
    assert read_object(tmp_path / "run" / "summary.json")["steps"] == 3


def test_latent_diffusion(tmp_path: Path) -> None:
    """The pipeline before Stable Diffusion: other names of its parts, and a text encoder of diffusers' own.

    Ours draws from it, and from what it trains, what diffusers' own draws.
    """
    source = tmp_path / "source"
    write_latent_diffusion(source)
    config = config_of(source, tmp_path / "run", training__mixed_precision="no")
    assert config.diffusion.condition == "text" and not config.diffusion.text.projection
    assert config.latent.vae == config.diffusion.text.encoder == str(source)
    best = train(config) / "best"
    assert read_object(best / "model_index.json") | {"_diffusers_version": ""} == read_object(
        source / "model_index.json"
    ) | {"_diffusers_version": ""}
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    options: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 3.0, "latents": latents}
    drawn = []
    for folder in (source, best):
        stock = LDMTextToImagePipeline.from_pretrained(folder)
        expected = stock(["a red three"], **options, height=64, width=64, output_type="pt")  # its cells are of 8 pixels
        ours = GenerationPipeline.from_pretrained(folder)(prompt="a red three", **options, output_type="pt")
        torch.testing.assert_close(ours.images, expected.images, atol=1e-4, rtol=1e-4)
        drawn.append(ours.images)
    assert not torch.allclose(*drawn)
    run = load_run(tmp_path / "run")
    assert run.diffusion is not None and isinstance(run.diffusion.conditioner, PromptConditioner)
    keys = {"data.name": "scenes", "model.pretrained": str(source), **SHORT, "segmentation.context": "caption"}
    for task in ("segmentation", "joint"):  # no part is there twice, under both names
        masks = train(load(None, keys | {"training.output_dir": str(tmp_path / task)}, task)) / "best"
        folders = {path.name for path in masks.iterdir() if path.is_dir()}
        assert folders == {"unet", "scheduler", "vqvae", "bert", "tokenizer", "segmentation_context"}
        segmenter, image = SegmentationPipeline.from_pretrained(masks), torch.zeros(3, 16, 16, dtype=torch.uint8)
        prompts = [segmenter(image, True, prompt=prompt).logits for prompt in (None, "a red three")]
        assert prompts[0].shape == (len(segmenter.classes), 16, 16) and not torch.equal(*prompts)
        LDMTextToImagePipeline.from_pretrained(masks)
    config.training.resume, config.training.steps = True, 3
    shutil.rmtree(source)
    assert read_object(train(config) / "summary.json")["steps"] == 3


@pytest.mark.parametrize("in_channels", [9, 4])
def test_inpainting(in_channels: int, tmp_path: Path) -> None:
    """Trained from an inpainting model, or from one of text to image, whose new channels start at zero.

    The result is diffusers' inpainting pipeline and draws what ours draws; it is evaluated and resumed.
    """
    source = tmp_path / "source"
    write_stable_diffusion(source, in_channels=in_channels)
    changes = {} if in_channels == 9 else {"diffusion__inpainting__enabled": True}
    config = config_of(source, tmp_path / "run", **changes, training__mixed_precision="no")
    assert config.diffusion.inpainting.enabled and config.diffusion.inpainting.full_mask_fraction == 0.25
    started = Trainer(config, None)
    started.close()
    weight, expected = started.task.unet.encoder.conv_in.weight, UNet.from_diffusers(source).encoder.conv_in.weight
    assert torch.equal(weight[:, :in_channels], expected) and not weight[:, in_channels:].any()
    best = train(config) / "best"
    assert not torch.equal(UNet.from_pretrained(best / "unet").encoder.conv_in.weight[:, 4:], weight[:, 4:])
    assert list((tmp_path / "run" / "images").glob("*samples.png"))
    assert read_object(best / "model_index.json")["_class_name"] == "StableDiffusionInpaintPipeline"

    pipeline, stock = GenerationPipeline.from_pretrained(best), StableDiffusionInpaintPipeline.from_pretrained(best)
    generator = torch.Generator().manual_seed(3)
    image, latents = torch.rand(1, 3, 16, 16, generator=generator), torch.randn(1, 4, 8, 8, generator=generator)
    mask = torch.zeros(1, 16, 16)
    mask[:, 4:12, 6:] = 1
    options: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 3.0, "latents": latents}
    gray = pipeline.codec.encode((image * 2 - 1) * (1 - mask[:, None]))
    given = {"image": image * 2 - 1, "mask_image": mask[:, None], "masked_image_latents": gray, "strength": 1.0}
    drawn = stock("a red three", **given, **options, height=16, width=16, output_type="latent").images
    ours = pipeline.inpaint(image, mask, prompt="a red three", **options, output_type="latent").images
    torch.testing.assert_close(ours, drawn, atol=1e-3, rtol=1e-3)

    run = load_run(tmp_path / "run")
    assert run.diffusion is not None and run.diffusion.is_inpainting
    batch = collate([run.images[i] for i in range(2)])
    metrics = run.diffusion.evaluate([batch], run.accelerator)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = next(line for line in lines if line["kind"] == "validation")
    assert metrics["diffusion/loss"] == pytest.approx(logged["diffusion/loss"], rel=1e-4)
    config.training.resume, config.training.steps = True, 3
    assert read_object(train(config) / "summary.json")["steps"] == 3


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("joint", {}, "diffusion.inpainting.enabled=true: must be false with task=joint, .* Give a model of 4 input"),
        (
            "diffusion",
            {"latent.cache": "memory"},
            "latent.cache=memory: must be auto or none with diffusion.inpainting",
        ),
        (
            "diffusion",
            {"diffusion.condition": "class"},
            "diffusion.inpainting.enabled=true: must be false without .*text",
        ),
        (
            "diffusion",
            {"diffusion.inpainting.enabled": False},
            "inpainting.enabled=false: must be true, as of model.pre",
        ),
    ],
)
def test_what_an_inpainting_model_cannot_be(task: Any, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_stable_diffusion(tmp_path / "inpainting", in_channels=9)
    keys = {"data.name": "scenes", "model.pretrained": str(tmp_path / "inpainting"), **SHORT}
    with pytest.raises(UserError, match=message):
        load(None, keys | changes, task)


def test_an_adapter_of_new_input_channels_has_the_first_convolution(stable_diffusion: Path, tmp_path: Path) -> None:
    changes = {"diffusion__inpainting__enabled": True, "training__lora__rank": 2}
    with pytest.raises(UserError, match="training.lora.targets=.*: must be a list with conv_in: 5 input channels"):
        Trainer(config_of(stable_diffusion, tmp_path / "run", **changes), None)


def test_init_from_refuses_what_differs(stable_diffusion: Path, tmp_path: Path) -> None:
    """Another schedule, another autoencoder, a random projection of its prompts."""
    followed = asdict(config_of(stable_diffusion, tmp_path / "run"))
    followed["model"]["pretrained"] = None
    followed["training"]["init_from"] = str(stable_diffusion)

    def start(source: Path = stable_diffusion, **changes: Any) -> None:
        changes = {key.replace("__", "."): value for key, value in changes.items()}
        tree = {key: value for key, value in flatten(followed).items() if value is not None}
        Trainer(load(None, tree | {"training.init_from": str(source)} | changes), None).close()

    start()
    with pytest.raises(UserError, match="diffusion.noise.beta_end=0.02: must be 0.012, as training.init_from="):
        start(diffusion__noise__beta_end=0.02)
    with pytest.raises(UserError, match="latent.vae: must be the autoencoder of training.init_from=.*Set latent.vae="):
        start(latent__vae=str(other_autoencoder(stable_diffusion, tmp_path)))
    with pytest.raises(UserError, match="diffusion.text.projection=true: must be false, as training.init_from="):
        start(diffusion__text__projection=True)
    start(stable_diffusion / "unet", diffusion__text__projection=True)  # only the weights


def other_autoencoder(source: Path, folder: Path) -> Path:
    """The same autoencoder with another bias."""
    vae = AutoencoderKL.from_pretrained(source / "vae")
    torch.nn.init.ones_(vae.quant_conv.bias)
    vae.save_pretrained(folder / "other")
    return folder / "other"


def test_a_name_on_the_hub(trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read from the Hub's cache without a connection; the keys from the JSON files of the revision."""
    source, _ = trained
    cache = tmp_path / "models--owner--tiny"
    shutil.copytree(source, cache / "snapshots" / "0123")
    (cache / "refs").mkdir()
    (cache / "refs" / "fp32").write_text("0123")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    config = config_of(Path("owner/tiny"), tmp_path / "run", model__revision="fp32")
    assert config.model.encoder.channels == [4, 8] and config.latent.vae == "owner/tiny"
    trainer = Trainer(config, None)
    trainer.close()
    expected = UNet.from_pretrained(source / "unet").state_dict()
    assert all(torch.equal(expected[name], tensor) for name, tensor in trainer.task.unet.state_dict().items())
    with pytest.raises(UserError, match="^model.pretrained=owner/none.*must be a directory or a model on the Hub"):
        config_of(Path("owner/none"), tmp_path / "other")


def test_a_run_of_ours_is_trained_on(trained: tuple[Path, Path], tmp_path: Path) -> None:
    _, run = trained
    config = config_of(run, tmp_path / "run")
    trainer = Trainer(config, None)
    trainer.close()
    expected = UNet.from_pretrained(run / "best" / "unet").state_dict()
    assert all(torch.equal(expected[name], tensor) for name, tensor in trainer.task.unet.state_dict().items())
    assert config.diffusion.condition == "text" and not config.diffusion.text.projection


def test_a_condition_that_is_a_default_stays(stable_diffusion: Path, tmp_path: Path) -> None:
    """`diffusion.condition=class` was set: neither what `train` fills in nor a resumed run makes it text again. The
    context of a segmentation head still has the pretrained text encoder."""
    keys = {"diffusion__condition": "class", "segmentation__context": "classes"}
    config = config_of(stable_diffusion, tmp_path / "run", **keys)
    assert config.diffusion.condition == "class" and follow_pretrained(config) == config
    assert config.diffusion.text.encoder == DiffusionConfig().text.encoder
    overrides = {"data.name": "scenes", "model.pretrained": str(stable_diffusion), **SHORT}
    overrides |= {key.replace("__", "."): value for key, value in keys.items()}
    joint = load(None, overrides, "joint")
    assert joint.diffusion.condition == "class" and joint.diffusion.text.encoder == str(stable_diffusion)
    assert follow_pretrained(joint) == joint


def test_a_segmenter_has_no_objective(trained: tuple[Path, Path], tmp_path: Path) -> None:
    """The noise in the config of a run without a scheduler is not that of its network."""
    _, run = trained
    shutil.copytree(run / "best", tmp_path / "run" / "best")
    shutil.copy(run / "config.yaml", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "best" / "scheduler")
    options = {"diffusion__noise__process": "flow", "diffusion__prediction_type": "v_prediction"}
    assert config_of(tmp_path / "run", tmp_path / "new", **options).diffusion.noise.process == "flow"


def test_a_pixel_denoiser_and_a_network_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=32,
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    DDIMPipeline(unet, DDPMScheduler(beta_schedule="linear")).save_pretrained(tmp_path / "ddpm")
    config = config_of(tmp_path / "ddpm", tmp_path / "run")
    assert (config.diffusion.condition, config.diffusion.prediction_type) == ("none", "epsilon")
    assert config.diffusion.noise.beta_schedule == "linear" and config.latent.vae is None
    alone = parse(None, {"model.pretrained": str(tmp_path / "ddpm" / "unet"), "task": "diffusion"})
    assert alone.model.encoder.channels == [4, 8] and alone.diffusion.noise.beta_schedule == "squaredcos_cap_v2"
    task: Any = Trainer(config, None).task
    expected = UNet.from_pretrained(tmp_path / "ddpm" / "unet").state_dict()
    assert all(torch.equal(expected[name], tensor) for name, tensor in task.unet.state_dict().items())
    keys = {"data.name": "scenes", "model.pretrained": str(tmp_path / "ddpm"), **SHORT}
    segmenter = Trainer(load(None, keys | {"training.output_dir": str(tmp_path / "masks")}, "segmentation"), None).task
    segmenter.save(tmp_path / "saved")
    saved = GenerationPipeline.from_pretrained(tmp_path / "saved")
    assert all(torch.equal(saved.unet.state_dict()[name], tensor) for name, tensor in expected.items())
    assert saved.scheduler.config.beta_schedule == "linear" and "segmentation" in saved.unet.heads
