"""Mask denoisers: trained, resumed, evaluated, sampled, compared and exported through the commands' code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unetdiff.cli.main import main
from unetdiff.config.schema import RunConfig
from unetdiff.config.validation.run import validate
from unetdiff.data.base import collate
from unetdiff.data.build import build_dataset
from unetdiff.diffusion.mask_codec import MaskCodec
from unetdiff.diffusion.objectives import alpha_sigma
from unetdiff.errors import UserError
from unetdiff.evaluation.config import EvaluationConfig
from unetdiff.evaluation.evaluate import evaluate
from unetdiff.reports.illustrations import illustrations
from unetdiff.reports.runs import read_runs
from unetdiff.reports.samples import Budget, sample_blocks
from unetdiff.training.draws import whole_batch
from unetdiff.training.tasks.build import build_task, load_task
from unetdiff.training.tasks.diffusion import DiffusionTask
from unetdiff.training.trainer import train

Tiny = Callable[..., RunConfig]
MASKS: dict[str, Any] = {
    "diffusion__target": "mask",
    "diffusion__condition": "image",
    "diffusion__image__degradation": "none",
    "diffusion__noise__input_scale": 0.3,
    "training__steps": 4,
    "training__validate_every": 2,
}


def test_the_batch_holds_noisy_masks_beside_the_image(tiny: Tiny) -> None:
    config = tiny("diffusion", diffusion__prediction_type="epsilon", diffusion__condition_dropout=0.0, **MASKS)
    data = build_dataset(config.data, "train", False, layout=True)
    task = build_task(config, data, data)
    assert isinstance(task, DiffusionTask) and isinstance(task.codec, MaskCodec)
    batch = collate([data[i] for i in range(4)])
    batch["mask"][:, :8] = 255
    noised = task.add_noise(batch, whole_batch(0, 4, "cpu"))
    alpha, sigma = (level[:, None, None, None] for level in alpha_sigma(task.scheduler, noised.timesteps))
    clean = (noised.sample[:, :11] - sigma * noised.target) / alpha.clamp(min=1e-3)
    seen = alpha[:, 0, 0, 0] > 0.05
    inside = clean[seen][:, :, 8:]
    assert torch.equal(inside.argmax(dim=1), batch["mask"][seen][:, 8:].long())
    assert inside.abs().sub(1).abs().max() < 1e-3 and clean[seen][:, :, :8].abs().max() < 1e-3
    torch.testing.assert_close(noised.sample[:, 11:14], task.pixels(batch["image"]))
    # what is predicted in the void is nobody's business
    output = torch.zeros_like(noised.target)
    other = output.clone()
    other[:, :, :8] = 7.0
    assert torch.equal(task.per_sample(output, noised), task.per_sample(other, noised))


def test_trained_resumed_judged_drawn_and_compared(tiny: Tiny, cut_and_resumed: Any, tmp_path: Path) -> None:
    config = tiny("diffusion", **MASKS)
    cut_and_resumed(config)
    run = Path(config.training.output_dir)
    with Image.open(next((run / "images").rglob("*.png"))) as preview:
        assert preview.width > 3 * 32

    val = build_dataset(config.data, "val", False, layout=True)
    task = load_task(config, run / "best", val)
    assert isinstance(task, DiffusionTask) and isinstance(task.codec, MaskCodec)
    assert len(task.scheduler.config.trained_betas) == 1000

    metrics = evaluate(run, config=EvaluationConfig(num_inference_steps=2)).metrics
    assert metrics["diffusion/loss"] > 0 and 0 <= metrics["masks/mean_iou"] <= 1
    assert metrics["masks/images"] == 6 and "samples/num_images" not in metrics

    image = tmp_path / "image.png"
    Image.fromarray(val[0]["image"].permute(1, 2, 0).numpy()).save(image)
    words = ["sample", str(run), "--condition_image", str(image), "--num_inference_steps", "2", "--num_images", "2"]
    words += ["--guidance_scale", "1"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    with Image.open(next((tmp_path / "out" / "images").iterdir())) as drawn:
        colours = {tuple(colour) for colour in np.asarray(drawn).reshape(-1, 3)}
    assert colours <= {tuple(int(level) for level in colour) for colour in val.palette}

    runs = read_runs([run])
    blocks, problems = sample_blocks(runs, Budget(images=4, steps=1, classifier_steps=2, batch_size=8))
    assert problems == [] and len(blocks[0].strips) == 1
    assert illustrations(runs[0]).keys() == {"image", "noised", "noise"}


def test_masks_of_nothing_in_particular(tiny: Tiny) -> None:
    """Without an image, layouts are drawn: no metrics of a segmenter."""
    run = train(tiny("diffusion", **{**MASKS, "diffusion__condition": "none"}))
    metrics = evaluate(run, config=EvaluationConfig(num_inference_steps=2)).metrics
    assert not any(name.startswith("masks/") for name in metrics)


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("joint", {"diffusion__condition": "class"}, "diffusion.target=mask: must be image with task=joint"),
        (
            "diffusion",
            {"diffusion__condition": "layout"},
            "diffusion.condition=layout: must be another .* leak the target mask",
        ),
        (
            "diffusion",
            {"data__name": "cifar10", "data__root": "."},
            "diffusion.target=mask: must be image with data.name=cifar10, which has no masks",
        ),
        (
            "diffusion",
            {"latent__vae": "vae"},
            "latent.vae=vae: must be null with diffusion.target=mask",
        ),
        (
            "diffusion",
            {"model__encoder__name": "resnet18", "model__encoder__channels": None},
            "model.encoder.name=resnet18: must be residual or classic with diffusion.target=mask",
        ),
        (
            "diffusion",
            {"diffusion__noise__input_scale": 0.0},
            "diffusion.noise.input_scale=0.0: must be a positive number",
        ),
        (
            "diffusion",
            {"diffusion__target": "image"},
            "diffusion.image.degradation=none: must be .* leak the target image",
        ),
        (
            "diffusion",
            {"model__heads": {"diffusion": {"out_channels": 3}}},
            "model.heads.diffusion.out_channels=3: must be left out",
        ),
    ],
)
def test_what_cannot_be_is_refused(tiny: Tiny, task: str, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate(tiny(task, **{**MASKS, **changes}))
