"""A denoiser of each condition, trained for a few steps by the command's own path, saved, loaded, judged, sampled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unetdiff.config.schema import RunConfig
from unetdiff.config.validation.data import needs_layout
from unetdiff.config.validation.run import validate
from unetdiff.data.base import collate
from unetdiff.data.build import build_dataset
from unetdiff.diffusion.conditioning.base import Conditioning
from unetdiff.diffusion.conditioning.classes import ClassConditioner
from unetdiff.diffusion.conditioning.images import ImageConditioner
from unetdiff.diffusion.conditioning.layouts import LayoutConditioner
from unetdiff.diffusion.conditioning.text import TextConditioner
from unetdiff.diffusion.pipeline import GenerationPipeline
from unetdiff.errors import UserError
from unetdiff.evaluation import evaluate as evaluation
from unetdiff.evaluation.config import EvaluationConfig
from unetdiff.evaluation.evaluate import evaluate
from unetdiff.training.draws import whole_batch
from unetdiff.training.tasks.build import load_task
from unetdiff.training.tasks.diffusion import DiffusionTask
from unetdiff.training.trainer import train

SETTINGS = {
    "several": {"diffusion__max_classes": 2, "data__scenes__digits": 2},
    "text": {"diffusion__condition": "text"},
    "layout": {"diffusion__condition": "layout", "diffusion__layout__grid": 4},
    "layout without tokens": {
        "diffusion__condition": "layout",
        "model__conditioning__cross_attention_dim": None,
        "model__conditioning__attention_levels": [],
    },
    "image": {"diffusion__condition": "image"},
}
KINDS = {
    "several": ClassConditioner,
    "text": TextConditioner,
    "layout": LayoutConditioner,
    "layout without tokens": LayoutConditioner,
    "image": ImageConditioner,
}
ASKED = {
    "several": {"class_labels": "one+two"},
    "text": {"prompt": "a red three"},
    "layout": {"layout": Image.new("L", (16, 16), 1)},
    "layout without tokens": {"layout": Image.new("L", (16, 16), 1)},
    "image": {"condition_image": Image.new("RGB", (8, 8), (200, 30, 30))},
}


@pytest.fixture
def settings(request: pytest.FixtureRequest, text_encoder: Path, tmp_path: Path) -> dict:
    name = request.param
    extra = {}
    if name == "text":
        extra = {"diffusion__text__encoder": str(text_encoder), "diffusion__text__cache_dir": str(tmp_path / "cache")}
    return {"name": name, **SETTINGS[name], **extra}


@pytest.mark.parametrize("settings", SETTINGS, indirect=True)
def test_trained_saved_loaded_and_sampled(tiny: Callable[..., RunConfig], settings: dict) -> None:
    name = settings.pop("name")
    config = tiny("diffusion", training__steps=2, training__validate_every=2, **settings)
    run = train(config)
    assert list((run / "images").rglob("*.png"))
    pipeline = GenerationPipeline.from_pretrained(run / "best")
    assert isinstance(pipeline.conditioner, KINDS[name])
    assert pipeline.channels == 3
    pipeline.set_progress_bar_config(disable=True)
    out = pipeline(
        **ASKED[name], batch_size=2, num_inference_steps=2, output_type="pt", generator=torch.Generator().manual_seed(0)
    )
    assert out.images.shape == (2, 3, 32, 32) and out.images.std() > 0

    val = build_dataset(config.data, "val", False, needs_layout(config))
    task = load_task(config, run / "best", val)
    assert isinstance(task, DiffusionTask) and isinstance(task.conditioner, KINDS[name])
    first, second = (task.add_noise(collate([val[0], val[1]]), whole_batch(3, 2, "cpu")) for _ in range(2))
    assert torch.equal(first.sample, second.sample)
    other = task.add_noise(collate([val[2], val[3]]), whole_batch(3, 2, "cpu"))
    told = [first.conditioning, other.conditioning]
    differ = [not torch.equal(a, b) for a, b in zip(*(listed(context) for context in told), strict=True)]
    assert differ and all(differ)


def listed(context: Conditioning) -> list[torch.Tensor]:
    return [tensor for tensor in (context.tokens, context.channels) if tensor is not None]


@pytest.mark.parametrize("settings", SETTINGS, indirect=True)
def test_evaluated(tiny: Callable[..., RunConfig], settings: dict) -> None:
    settings.pop("name")
    run = train(tiny("diffusion", training__steps=2, training__validate_every=2, **settings))
    config = EvaluationConfig(
        samples_per_class=1, num_inference_steps=2, num_neighbors=1, num_likelihood_images=1, num_likelihood_timesteps=3
    )
    metrics = evaluate(run, config=config).metrics
    assert metrics["diffusion/loss"] > 0 and metrics["samples/num_images"] > 0


@pytest.fixture
def voc(voc_layout: Callable[..., Path]) -> Path:
    """Six images with masks of three classes, in VOC's layout."""
    masks = {}
    for number in range(6):
        masks[str(number)] = mask = np.zeros((24, 32), np.uint8)
        mask[4:12, 4:20], mask[12:20, 4:20] = 1 + number % 2, 2
    splits = {"train": {name: masks[name] for name in "0123"}, "val": {name: masks[name] for name in "45"}}
    return voc_layout(["background", "cat", "dog"], splits)


def test_masks_of_a_folder_as_layouts_and_as_several_classes(
    tiny: Callable[..., RunConfig], voc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = {"data__name": "voc_folder", "data__root": str(voc), "data__size": [16, 16]}
    short = {**shared, "training__steps": 2, "training__validate_every": 2}
    segmenter = train(tiny("segmentation", "segmenter", **short))
    config = EvaluationConfig(samples_per_class=1, num_inference_steps=2, num_neighbors=1, segmenter=segmenter)
    layout = train(tiny("diffusion", "layout", diffusion__condition="layout", **short))
    metrics = evaluate(layout, config=config).metrics
    assert metrics["layouts/num_images"] == 2
    assert 0 <= metrics["layouts/mean_iou_of_samples"] <= 1
    assert 0 < metrics["layouts/pixel_accuracy_of_real"] <= 1

    run = train(tiny("diffusion", "several", diffusion__max_classes=2, **short))
    pipeline = GenerationPipeline.from_pretrained(run / "best")
    assert pipeline.conditioner.labels == ["background", "cat", "dog"]
    assert pipeline.conditioner.encode("cat+dog").tolist() == [[1, 2]]
    monkeypatch.setattr(
        evaluation, "evaluate_denoiser", lambda *_: pytest.fail("drawn before the segmenter was opened")
    )
    with pytest.raises(UserError, match="segmenter=.*: must be set with a layout-conditional model"):
        evaluate(run, config=config)
    with pytest.raises(UserError, match=r"segmenter: \S*nowhere: does not exist"):
        evaluate(layout, config=replace(config, segmenter=voc / "nowhere"))
    other = train(tiny("segmentation", "other", training__steps=2))
    with pytest.raises(UserError, match="segmenter=.*: the segmenter must have the classes of the layouts in"):
        evaluate(layout, config=replace(config, segmenter=other))


@pytest.mark.parametrize("settings", ["text"], indirect=True)
def test_resumed_with_a_text_encoder(
    tiny: Callable[..., RunConfig], settings: dict, cut_and_resumed: Callable[[RunConfig], dict]
) -> None:
    settings.pop("name")
    config = tiny("diffusion", training__steps=4, training__validate_every=4, **settings)
    weights = cut_and_resumed(config)
    assert any("null_token" in key for key in weights)
    assert not any("word_embeddings" in key for key in weights)  # the encoder is not trained, nor kept in checkpoints


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        (
            "diffusion",
            {"diffusion__condition": "text", "data__name": "cifar10", "data__root": "."},
            "must be a dataset with captions for diffusion.condition=text",
        ),
        (
            "diffusion",
            {"diffusion__condition": "layout", "data__name": "cifar10", "data__root": "."},
            "which has no masks",
        ),
        ("joint", {"diffusion__condition": "layout"}, "class, text or none with task=joint"),
        ("joint", {"diffusion__condition": "image"}, "class, text or none with task=joint"),
        (
            "diffusion",
            {"diffusion__condition": "text", "model__conditioning__cross_attention_dim": None},
            "cross_attention_dim=null: must be set with diffusion.condition=text",
        ),
        (
            "diffusion",
            {"diffusion__condition": "layout", "diffusion__layout__grid": 0, "diffusion__layout__channels": 0},
            "diffusion.layout.channels=0: must be positive without layout tokens",
        ),
        (
            "diffusion",
            {"diffusion__condition": "image", "diffusion__image__strength": 1.0},
            "diffusion.image.strength=1.0: must be greater than 1 with diffusion.image.degradation=downscale",
        ),
        ("diffusion", {"diffusion__max_classes": 0}, "diffusion.max_classes=0: must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(tiny: Callable[..., RunConfig], task: str, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate(tiny(task, **changes))
