"""`training.init_from`: tensors loaded, what is logged, and errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from unetdiff import UNet
from unetdiff.config.reading import load
from unetdiff.config.schema import RunConfig
from unetdiff.config.validation.files import check_files
from unetdiff.config.validation.run import validate
from unetdiff.errors import UserError
from unetdiff.models.loading import WEIGHTS
from unetdiff.training import checkpoints
from unetdiff.training.run_cache import run_state, train_once
from unetdiff.training.trainer import Trainer, train

Tiny = Callable[..., RunConfig]
SHORT = {"training__steps": 2, "training__checkpoint_every": 1}


@pytest.fixture
def denoiser(tiny: Tiny) -> Path:
    return train(tiny("diffusion", "denoiser", **SHORT))


def _started(config: RunConfig) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors that a run starts with, before its first step, and where they are from."""
    trainer = Trainer(config, None)
    trainer.close()
    assert trainer.ema is not None
    assert all(torch.equal(a, b) for a, b in zip(trainer.ema.task.parameters(), trainer.task.parameters(), strict=True))
    state = {
        k: v.clone()
        for component in trainer.task.trainable_modules().values()
        for k, v in component.state_dict().items()
    }
    return state, trainer.progress.init_from or {}


def test_a_segmenter_starts_from_a_denoiser(tiny: Tiny, denoiser: Path) -> None:
    """Denoising pre-training: the best weights of the denoiser's run, under a head that starts fresh."""
    kept = {"model__conditioning__timestep": True}
    fresh, none = _started(tiny("segmentation", "fresh", **kept, **SHORT))
    ours, start = _started(tiny("segmentation", training__init_from=str(denoiser), **kept, **SHORT))
    theirs = load_file(denoiser / "best" / "unet" / WEIGHTS)
    backbone = [name for name in ours if not name.startswith("heads.")]
    assert not none and len(backbone) > 50
    assert all(torch.equal(ours[name], theirs[name]) for name in backbone)
    assert all(torch.equal(ours[name], fresh[name]) for name in ours if name.startswith("heads."))
    assert start["network"] == str(denoiser / "best" / "unet") and start["conditioner"] is None and not start["folded"]
    assert start["loaded"]["tensors"] == len(backbone) and start["loaded"]["parts"] == [
        "time embedding",
        "backbone",
        "attention",
    ]
    assert start["loaded"]["parameters"] == sum(ours[name].numel() for name in backbone)
    assert start["fresh"]["parts"] == ["segmentation head"] and start["unused"]["parts"] == ["diffusion head"]


def test_a_run_is_not_taken_for_one_of_a_start_that_was_trained_anew(tiny: Tiny, denoiser: Path) -> None:
    config = tiny("segmentation", training__init_from=str(denoiser), **SHORT)
    run = train_once(config)
    assert run_state(run, config) == "finished"
    train(tiny("diffusion", "denoiser", **SHORT, training__seed=1, training__overwrite=True))
    with pytest.raises(UserError, match=f"'{run}' was initialized from an older version of '{denoiser}'. Delete it"):
        train_once(config)
    (run / "summary.json").unlink()
    with pytest.raises(UserError, match="was initialized from an older version"):
        train_once(config)  # it would go on from its checkpoint
    denoiser.rename(denoiser.with_name("gone"))
    assert run_state(run, config) == "interrupted", "nothing says that it was another"


def test_it_is_said_and_kept_for_the_summary_and_a_resumed_run_does_not_read_it_again(
    tiny: Tiny, denoiser: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"training__init_from": str(denoiser), "training__steps": 4, "training__checkpoint_every": 2}
    whole = train(tiny("segmentation", "whole", **options))
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("initialized from ")]
    assert len(said) == 1 and f"initialized from {denoiser}/best/unet: " in said[0]
    assert "randomly initialized: segmentation head (4 tensors, " in said[0] and "folded at timestep 0" in said[0]
    assert "unused: time embedding, diffusion head (" in said[0]

    run = train(tiny("segmentation", **options))
    (checkpoints.newest(run) / checkpoints.STATE).unlink()  # type: ignore[operator]
    (run / "summary.json").unlink()
    denoiser.rename(denoiser.with_name("gone"))
    config = tiny("segmentation", **options, training__resume=True)
    check_files(config)
    train(config)
    a, b = (load_file(checkpoints.newest(r) / checkpoints.MODEL) for r in (run, whole))  # type: ignore[operator]
    assert all(torch.equal(a[name], b[name]) for name in a)
    starts = [json.loads((r / "summary.json").read_text())["init_from"] for r in (run, whole)]
    assert starts[0] == starts[1] and starts[0]["folded"]
    with pytest.raises(UserError, match="training.init_from=None: must be .*, as in the run in"):
        train(tiny("segmentation", **{**options, "training__init_from": None}, training__resume=True))


def test_a_conditioner_comes_along_where_it_says_the_same(tiny: Tiny, denoiser: Path) -> None:
    table = load_file(denoiser / "best" / "conditioner" / WEIGHTS)["table.weight"]
    ours, start = _started(tiny("joint", training__init_from=str(denoiser), **SHORT))
    assert torch.equal(ours["table.weight"], table) and start["conditioner"] == "loaded"
    assert start["fresh"]["parts"] == ["segmentation head"] and start["unused"]["tensors"] == 0
    two = {"diffusion__class_tokens": 2, "training__overwrite": True}
    ours, start = _started(tiny("joint", training__init_from=str(denoiser), **two, **SHORT))
    assert ours["table.weight"].shape != table.shape and start["conditioner"] == "fresh"


def test_the_network_may_be_one_of_diffusers_or_a_directory_of_its_own(
    tiny: Tiny, denoiser: Path, tmp_path: Path
) -> None:
    own = denoiser / "best" / "unet"
    UNet.from_pretrained(own).to_diffusers(tmp_path / "theirs" / "unet")
    states = [
        _started(tiny("joint", training__init_from=str(path), training__overwrite=True, **SHORT))[0]
        for path in (own, tmp_path / "theirs", tmp_path / "theirs" / "unet")
    ]
    theirs = load_file(own / WEIGHTS)
    for state in states:
        assert all(torch.equal(state[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"model__encoder__channels": [8, 24]},
            r"model.encoder.channels=\[8, 24\]: must be \[8, 16\], as in the network",
        ),
        ({"training__init_from": "nowhere"}, "training.init_from: nowhere: does not exist. Give a run directory"),
    ],
)
def test_refused_before_anything_is_written(tiny: Tiny, denoiser: Path, options: dict[str, Any], message: str) -> None:
    config = tiny("segmentation", **{"training__init_from": str(denoiser), **SHORT, **options})
    with pytest.raises(UserError, match=message):
        train(config)
    assert not Path(config.training.output_dir).exists()


@pytest.mark.parametrize(
    ("process", "options", "message"),
    [
        ("edm", {}, r"training.init_from=.*: must be of a model trained with .*=ddpm or flow, .* \(got edm\)"),
        ("flow", {}, None),  # x_t = x_0 at timestep 0
        (
            "flow",
            {"segmentation__timestep": 50, "segmentation__noised": True},
            "diffusion.noise.process=ddpm: must be flow, as training.init_from=.* was trained",
        ),
        ("flow", {"segmentation__timestep": 200}, "segmentation.timestep=200: must be at most 100, the last timestep"),
    ],
)
def test_a_segmenter_sees_images_as_the_denoiser_did(
    tiny: Tiny, process: str, options: dict[str, Any], message: str | None
) -> None:
    noise = {"diffusion__noise__process": process, "diffusion__noise__num_train_timesteps": 100}
    if process == "edm":
        noise |= {"diffusion__noise__edm__sigma_data": 0.5}
    source = train(tiny("diffusion", "source", **noise, **SHORT))
    start = {"training__init_from": str(source), "model__conditioning__timestep": True}
    config = tiny("segmentation", **start, **options, **SHORT)
    if message is None:
        assert _started(config)[1]["network"] == str(source / "best" / "unet")
        return
    with pytest.raises(UserError, match=message):
        _started(config)


def test_a_damaged_network_is_refused_by_its_file(tiny: Tiny, denoiser: Path) -> None:
    file = denoiser / "best" / "unet" / WEIGHTS
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=f"training.init_from: {file}: must be a complete safetensors file"):
        train(tiny("segmentation", training__init_from=str(denoiser), **SHORT))


def test_refused_at_the_door(tmp_path: Path) -> None:
    start = {"training.steps": 1, "training.init_from": str(tmp_path / "a"), "training.output_dir": str(tmp_path / "b")}
    with pytest.raises(UserError, match="training.init_from=.*: must be an existing run directory"):
        load(None, start)
    (tmp_path / "a").mkdir()
    config = load(None, start)
    config.model.encoder.name, config.model.encoder.weights = "resnet18", "imagenet"
    with pytest.raises(UserError, match="model.encoder.weights=imagenet: must be null with training.init_from="):
        validate(config)
    with pytest.raises(UserError, match="training.init_from=.*: must be outside of the run's own directory"):
        load(None, {**start, "training.output_dir": str(tmp_path / "a" / ".." / "a")})
