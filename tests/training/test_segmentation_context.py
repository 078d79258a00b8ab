"""The context of a segmenter and what of it learns: class embeddings, their adapter, frozen and adapted backbones."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from unetdiff import SegmentationPipeline
from unetdiff.config.reading import load
from unetdiff.config.schema import RunConfig
from unetdiff.config.training import OptimizerConfig
from unetdiff.config.validation.run import validate
from unetdiff.data.base import collate
from unetdiff.data.build import build_dataset
from unetdiff.diffusion.conditioning.text_encoder import TextEncoder
from unetdiff.errors import FileError, UserError
from unetdiff.evaluation.evaluate import evaluate
from unetdiff.evaluation.load_run import load_run
from unetdiff.models.unet import UNet
from unetdiff.segmentation.context import SegmentationContext
from unetdiff.training.draws import whole_batch
from unetdiff.training.logger import read_lines
from unetdiff.training.optimizer import build_optimizer
from unetdiff.training.overwriting import require_deletable
from unetdiff.training.segmentation_context import class_embeddings
from unetdiff.training.summary import headline
from unetdiff.training.tasks.build import build_task
from unetdiff.training.trainer import Trainer, train

Tiny = Callable[..., RunConfig]


@pytest.fixture
def config_of(tiny: Tiny, vae: Path, text_encoder: Path) -> Callable[..., RunConfig]:
    """config_of(task, **options): latents of class names, and their attention maps in a pyramid."""
    width = TextEncoder.from_pretrained(str(text_encoder)).width
    options: dict[str, Any] = {
        "latent__vae": str(vae),
        "diffusion__text__encoder": str(text_encoder),
        "model__conditioning__cross_attention_dim": width,
        "model__conditioning__timestep": True,
        "model__heads__segmentation__pyramid": 8,
        "model__heads__segmentation__attention_maps": True,
        "model__residual__dropout": 0.0,
        "segmentation__context": "classes",
        "segmentation__losses": {"cross_entropy": 1.0},
        "data__scenes__train_images": 8,
        "data__scenes__val_images": 2,
        "diffusion__preview_steps": 1,
        "training__steps": 2,
        "training__validate_every": 2,
        "training__checkpoint_every": 2,
    }
    return lambda task="segmentation", **more: tiny(task, **{**options, **more})


def build(config: RunConfig) -> tuple[Any, dict[str, Any]]:
    data = build_dataset(config.data, "train", True)
    return build_task(config, data, data), collate([data[i] for i in range(4)])


def weights(directory: Path) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in UNet.from_pretrained(directory / "unet").state_dict().items()}


def test_a_class_is_the_last_hidden_state_of_its_prompt(text_encoder: Path) -> None:
    names = ["red", "green_blue"]
    model, tokenizer = AutoModel.from_pretrained(text_encoder).eval(), AutoTokenizer.from_pretrained(text_encoder)
    expected = []
    for name in ("red", "green blue"):  # one at a time: without padding
        ids = tokenizer(f"a photo of a {name}", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected.append(model(input_ids=ids).last_hidden_state[0, -1])
    result = class_embeddings(TextEncoder.from_pretrained(str(text_encoder)), names)
    torch.testing.assert_close(result, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_the_adapter_is_a_residual_of_two_layers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    context = SegmentationContext(3, 6)
    context.text.normal_()
    context.gamma.data.normal_()
    first, _, second = context.text_adapter
    hidden = F.gelu(context.text @ first.weight.T + first.bias)
    expected = context.text + context.gamma * (hidden @ second.weight.T + second.bias)
    torch.testing.assert_close(context(2), expected.expand(2, 3, 6))
    context.save_pretrained(tmp_path)
    assert torch.equal(SegmentationContext.from_pretrained(tmp_path)(1), context(1))
    (tmp_path / "config.json").write_text('{"tokens": 3, "dim": -6, "adapter": true, "captions": false}')
    with pytest.raises(FileError, match="dim must be an integer in"):
        SegmentationContext.from_pretrained(tmp_path)


def test_a_run_with_class_names_is_saved_and_loaded(config_of: Callable[..., RunConfig]) -> None:
    config = config_of(segmentation__timestep=3)
    run = train(config)
    assert (run / "best" / "segmentation_context" / "config.json").is_file()
    require_deletable(run)  # by --overwrite
    pipeline = SegmentationPipeline.from_pretrained(run / "best")
    context = pipeline.segmenter.context
    assert context is not None
    fresh, _ = build(config_of())
    assert torch.equal(context.text, fresh.context.text)
    assert not torch.equal(context.gamma, fresh.context.gamma)  # trained
    image = np.random.default_rng(0).integers(0, 256, (20, 26, 3)).astype(np.uint8)
    logits = pipeline(image, return_logits=True).logits
    with torch.no_grad():
        latents = pipeline.segmenter.encode(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1)
        small = pipeline.unet.segment(latents, 3, context(1))
    torch.testing.assert_close(logits, F.interpolate(small, scale_factor=2, mode="bilinear")[0], rtol=1e-3, atol=1e-4)


def test_a_resumed_run_needs_no_text_encoder(
    config_of: Callable[..., RunConfig], cut_and_resumed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, load_encoder = [], TextEncoder.from_pretrained

    def counted(*args: Any, **options: Any) -> TextEncoder:
        calls.append(args)
        return load_encoder(*args, **options)

    monkeypatch.setattr(TextEncoder, "from_pretrained", counted)
    state = cut_and_resumed(config_of(training__checkpoint_every=1))
    assert len(calls) == 1 and state["segmentation_context.text"].abs().max() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"training__freeze_backbone": True}, "the backbone is frozen"),
        ({"training__freeze_encoder": 0.5}, "the encoder is frozen until step 1"),
        ({"training__frozen_levels": 1}, "1 encoder levels are frozen"),
        ({"training__lora__rank": 2}, "LoRA of rank 2"),
    ],
)
def test_the_headline_says_what_is_trained(
    config_of: Callable[..., RunConfig], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    task, _ = build(config_of())
    task.save(tmp_path / "model")
    trainer = Trainer(config_of(training__init_from=str(tmp_path / "model"), **options), None)
    trainer.close()
    line = headline(trainer.config, trainer.progress, trainer.task, trainer.accelerator, (8, 2), 2, 1.0)
    trained = sum(p.numel() for p in trainer.task.parameters() if p.requires_grad)
    assert f"({trained / 1e6:.2f} M trained: {message})" in line
    assert trained < sum(p.numel() for p in task.parameters())


CAPTIONS = {"segmentation__context": "caption", "model__heads__segmentation__attention_maps": False}


def test_each_image_has_the_tokens_of_its_caption(config_of: Callable[..., RunConfig], text_encoder: Path) -> None:
    """Or those of the empty prompt, in a fraction of the training images."""
    encoder = TextEncoder.from_pretrained(str(text_encoder), padded=True)
    for task_name in ("segmentation", "joint"):
        task, batch = build(config_of(task_name, **CAPTIONS, diffusion__condition="none"))
        segmentation = getattr(task, "segmentation", task)
        expected, empty = encoder(batch["caption"]), encoder([""])[0]
        torch.testing.assert_close(segmentation.tokens(batch), expected)
        segmentation.caption_dropout = 0.5
        tokens = segmentation.tokens(batch, whole_batch(1, 4, "cpu"))
        is_empty = (tokens == empty).flatten(1).all(dim=1)
        assert 0 < is_empty.sum() < 4 and torch.equal(tokens[~is_empty], expected[~is_empty])
        segmentation.caption_dropout = 0.0
        asked: list[Tensor] = []
        segment = task.unet.segment
        task.unet.segment = lambda *inputs: asked.append(inputs[2]) or segment(*inputs)  # noqa: B023
        task.batch_losses(batch, 0)["loss"].backward()
        assert len(asked) == 1 and torch.equal(asked[0], expected)


def test_a_run_with_captions(config_of: Callable[..., RunConfig], text_encoder: Path) -> None:
    """Evaluated with the captions of the dataset; of other images the prompt is one, or empty."""
    run = train(config_of(**CAPTIONS, training__mixed_precision="no"))
    metrics = read_lines(run / "metrics.jsonl")[-1]
    evaluated = evaluate(run / "latest").metrics
    assert evaluated["segmentation/mean_iou"] == pytest.approx(metrics["segmentation/mean_iou"], abs=1e-6)
    assert evaluated["segmentation/pixel_accuracy"] == pytest.approx(metrics["segmentation/pixel_accuracy"], abs=1e-6)
    pipeline = SegmentationPipeline.from_pretrained(run / "latest")
    image = np.random.default_rng(0).integers(0, 256, (20, 26, 3)).astype(np.uint8)
    latents = pipeline.segmenter.encode(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1)
    encoder = TextEncoder.from_pretrained(str(text_encoder), padded=True)
    logits = []
    for prompt in (None, "a red two"):
        with torch.no_grad():
            small = pipeline.unet.segment(latents, None, encoder([prompt or ""]))
        logits.append(pipeline(image, return_logits=True, prompt=prompt).logits)
        expected = F.interpolate(small, scale_factor=2, mode="bilinear")[0]
        torch.testing.assert_close(logits[-1], expected, rtol=1e-3, atol=1e-4)
    assert (logits[0] - logits[1]).abs().max() > 1e-6
    both = pipeline([image, image], return_logits=True, prompt=["", "a red two"])
    assert all(torch.allclose(one.logits, other, atol=1e-5) for one, other in zip(both, logits, strict=True))
    with pytest.raises(UserError, match="prompt: must be one, or one per image .got 1 for 2 images"):
        pipeline([image, image], prompt=["a"])


def test_a_prompt_without_captions(config_of: Callable[..., RunConfig], tmp_path: Path) -> None:
    for options in ({}, {"segmentation__context": "none", "model__heads__segmentation__attention_maps": False}):
        task, _ = build(config_of(**options))
        task.save(tmp_path / "model")
        pipeline = SegmentationPipeline.from_pretrained(tmp_path / "model")
        with pytest.raises(UserError, match="prompt: must be None for a segmenter that was trained without"):
            pipeline(np.zeros((8, 8, 3), np.uint8), prompt="a")
        shutil.rmtree(tmp_path / "model")


def test_what_learns(config_of: Callable[..., RunConfig]) -> None:
    """Two steps each from one denoiser: the head alone, an adapter, everything at a rate by level."""
    source = train(config_of("joint", directory="source", training__steps=1, diffusion__condition="none"))
    before = weights(source / "best")

    def changed(directory: str, **options: Any) -> set[str]:
        config = config_of(
            directory=directory, training__init_from=str(source), training__ema__enabled=False, **options
        )
        after = weights(train(config) / "latest")
        return {name.split(".")[0] for name, tensor in after.items() if not torch.equal(tensor, before[name])}

    assert changed("head", training__freeze_backbone=True) == {"heads"}
    assert changed("lora", training__lora__rank=2) == {"heads", "encoder", "decoder", "mid_block"}
    everything = changed("all", training__optimizer__layer_decay=0.5)
    assert everything == {"heads", "encoder", "decoder", "mid_block", "time_embedding"}


def test_rates_by_level(config_of: Callable[..., RunConfig]) -> None:
    task, _ = build(config_of())
    optimizer = build_optimizer(task, OptimizerConfig(lr=1.0, layer_decay=0.5))
    rates = {name: group["peak_lr"] for group in optimizer.param_groups for name in group["names"]}
    assert len(rates) == len(list(task.named_parameters()))
    # encoder.0, encoder.1, mid_block, decoder.1, decoder.0, heads
    expected = {
        "unet.heads.segmentation.conv.weight": 1.0,
        "context.gamma": 1.0,
        "unet.decoder.up_blocks.1.resnets.0.conv1.weight": 0.5,
        "unet.decoder.up_blocks.0.resnets.0.conv1.weight": 0.25,
        "unet.mid_block.resnets.0.conv1.weight": 0.125,
        "unet.time_embedding.linear_1.weight": 0.125,
        "unet.encoder.down_blocks.1.resnets.0.conv1.weight": 0.0625,
        "unet.encoder.conv_in.weight": 0.03125,
    }
    assert {name: rates[name] for name in expected} == expected


def test_a_joint_step_with_a_context_is_two_passes(config_of: Callable[..., RunConfig]) -> None:
    task, batch = build(config_of("joint", diffusion__condition="none"))
    losses = task.batch_losses(batch, 0)
    alone = task.diffusion.batch_losses(batch, 0)["loss"]
    torch.testing.assert_close(losses["diffusion/loss"], alone)
    losses["loss"].backward()
    assert task.segmentation.context.gamma.grad is not None
    assert "segmentation_context" in task.trainable_modules()


def from_stable_diffusion(task: str, directory: Path, run: Path, **changes: Any) -> RunConfig:
    """A run of two steps from a Stable Diffusion directory, with a pyramid head."""
    keys: dict[str, Any] = {
        "data.name": "scenes",
        "data.scenes.train_images": 8,
        "data.scenes.val_images": 2,
        "diffusion.preview_steps": 2,
        "diffusion.preview_per_class": 1,
        "model.pretrained": str(directory),
        "model.heads.segmentation.pyramid": 8,
        "training.output_dir": str(run),
        "training.steps": 2,
        "training.batch_size": 2,
        "training.validate_every": 2,
        "training.checkpoint_every": 2,
    }
    return load(None, keys | {key.replace("__", "."): value for key, value in changes.items()}, task)


@pytest.fixture(scope="module")
def head_alone(stable_diffusion: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The best weights of a run that trains the head alone."""
    options = {"segmentation__context": "classes", "model__heads__segmentation__attention_maps": True}
    run = tmp_path_factory.mktemp("head_alone") / "run"
    return (
        train(from_stable_diffusion("segmentation", stable_diffusion, run, **options, training__freeze_backbone=True))
        / "best"
    )


def test_the_head_alone_on_stable_diffusion(head_alone: Path, stable_diffusion: Path) -> None:
    unet = UNet.from_pretrained(head_alone / "unet").state_dict()
    source = UNet.from_diffusers(stable_diffusion).state_dict()
    assert set(source) == {name for name in unet if not name.startswith("heads.segmentation.")}
    assert all(torch.equal(unet[name], tensor) for name, tensor in source.items())
    pipeline = SegmentationPipeline.from_pretrained(head_alone)
    assert pipeline(np.zeros((33, 40, 3), np.uint8)).mask.shape == (33, 40)
    assert pipeline.segmenter.context is not None and len(pipeline.segmenter.context.text) == len(pipeline.classes)


def test_stock_diffusers_draws_with_the_kept_head_what_it_draws_with_the_original(
    head_alone: Path, stable_diffusion: Path
) -> None:
    assert (head_alone / "unet" / "segmentation_head.safetensors").is_file()
    images = []
    for directory in (stable_diffusion, head_alone, head_alone.with_name("latest")):
        pipe = StableDiffusionPipeline.from_pretrained(directory)
        images.append(
            pipe("a red three", num_inference_steps=3, generator=torch.Generator().manual_seed(1), output_type="np")
        )
    assert all(np.array_equal(images[0].images, one.images) for one in images[1:])


def test_a_kept_head_is_not_evaluated(head_alone: Path, tmp_path: Path) -> None:
    """The run's images need no captions."""
    run = load_run(head_alone.parent)
    assert "diffusion" in run.task.unet.heads and run.diffusion is None and run.segmentation is not None
    shutil.copytree(head_alone, tmp_path / "copy")
    copy = load_run(tmp_path / "copy", run.config.data)  # without the run's config
    assert copy.diffusion is not None and copy.segmentation is not None


def test_a_run_with_a_kept_head_is_resumed_without_the_pretrained_model(stable_diffusion: Path, tmp_path: Path) -> None:
    source, run = tmp_path / "source", tmp_path / "run"
    shutil.copytree(stable_diffusion, source)
    train(
        from_stable_diffusion(
            "segmentation", source, run, training__steps=1, training__validate_every=1, training__checkpoint_every=1
        )
    )
    before = UNet.from_pretrained(run / "latest" / "unet").state_dict()
    shutil.rmtree(source)
    config = from_stable_diffusion(
        "segmentation", source, run, training__resume=True, training__validate_every=1, training__checkpoint_every=1
    )
    train(config)
    after = UNet.from_pretrained(run / "latest" / "unet").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(not name.startswith("heads.") for name in changed)
    assert not any(name.startswith("heads.diffusion.") for name in changed)
    StableDiffusionPipeline.from_pretrained(run / "latest")


def test_a_joint_run_is_a_stable_diffusion_pipeline_and_a_segmenter(stable_diffusion: Path, tmp_path: Path) -> None:
    config = from_stable_diffusion("joint", stable_diffusion, tmp_path / "run", segmentation__context="empty")
    best = train(config) / "best"
    pipe = StableDiffusionPipeline.from_pretrained(best)
    pipeline = SegmentationPipeline.from_pretrained(best)
    assert pipeline.unet.config["heads"]["segmentation"]["pyramid"] == 8 and "diffusion" in pipeline.unet.heads
    # the empty prompt of diffusers' own pipeline
    _, empty = pipe.encode_prompt("", "cpu", 1, True, negative_prompt="")
    assert pipeline.segmenter.context is not None
    torch.testing.assert_close(pipeline.segmenter.context(1), empty, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model__conditioning__cross_attention_dim": 12}, "cross_attention_dim=12: must be 8"),
        ({"segmentation__context": "none"}, "attention_maps=true: must be false without segmentation.context=classes"),
        (
            {
                "model__conditioning__cross_attention_dim": None,
                "model__heads__segmentation__attention_maps": False,
            },
            "segmentation.context=classes: must be none without model.conditioning.cross_attention_dim",
        ),
        ({"training__freeze_backbone": True, "training__frozen_levels": 1}, "training.frozen_levels=1: must be 0"),
    ],
)
def test_contradictions_are_refused(config_of: Callable[..., RunConfig], options: dict[str, Any], message: str) -> None:
    config = config_of(**options)
    with pytest.raises(UserError, match=message):
        validate(config)
        build(config)
