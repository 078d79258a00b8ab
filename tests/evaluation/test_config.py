"""Parsing of `--sweep` and `--features`; errors name the nearest valid setting."""

from __future__ import annotations

import pytest

from unetdiff.errors import UserError
from unetdiff.evaluation.config import EvaluationConfig, SweepConfig, parse_features, parse_sweep


def test_parse_sweep() -> None:
    sweep = parse_sweep("num_inference_steps=10,25 scheduler=ddim,dpm++ guidance_scale=1,2.5")
    assert sweep == SweepConfig((10, 25), ("ddim", "dpm++"), (1.0, 2.5))
    assert parse_sweep("guidance_scale=3") == SweepConfig(guidance_scale=(3.0,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "sweep: must not be empty"),
        ("num_inference_step=3", "unknown setting 'num_inference_step=3'. Did you mean num_inference_steps"),
        ("num_inference_steps=10 num_inference_steps=20", "sweep.num_inference_steps: must be set once"),
        ("num_inference_steps=0", "sweep.num_inference_steps=0: must be integers of at least 1"),
        ("num_inference_steps=10,", "sweep.num_inference_steps=: must be integers"),
        ("scheduler=dpm+", "sweep.scheduler=dpm\\+: must be one of .*\\. Did you mean dpm\\+\\+"),
        ("guidance_scale=much", "sweep.guidance_scale=much: must be numbers"),
    ],
)
def test_sweep_errors(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_sweep(text)


def test_parse_features(tmp_path) -> None:
    weights = tmp_path / "a=b.safetensors"
    weights.touch()
    assert parse_features("inception") == ("inception", None)
    assert parse_features(f"mobilenet_v2={weights}") == ("mobilenet_v2", str(weights))
    assert parse_features("resnet18=imagenet") == ("resnet18", "imagenet")
    for text, message in (
        ("inceptoin", "features=inceptoin: must be one of .* Did you mean inception"),
        ("classifier=a.safetensors", "It is trained on the dataset itself"),
        ("inception=nowhere.pth", "features=inception=nowhere.pth: nowhere.pth must be an existing file"),
    ):
        with pytest.raises(UserError, match=message):
            parse_features(text)


def test_enabled() -> None:
    assert EvaluationConfig().enabled
    assert not EvaluationConfig(samples_per_class=0).enabled
    assert EvaluationConfig(samples_per_class=0, num_likelihood_images=1).enabled
