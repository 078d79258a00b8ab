"""What is asked of the judges: words become settings, and what cannot be is refused with the nearest right one."""

from __future__ import annotations

import pytest

from unetdiff.errors import UserError
from unetdiff.evaluation.config import JudgingConfig, SweepConfig, parse_features, parse_sweep


def test_sweep_in_words() -> None:
    asked = parse_sweep("steps=10,25 scheduler=ddim,dpm++ guidance=1,2.5")
    assert asked == SweepConfig((10, 25), ("ddim", "dpm++"), (1.0, 2.5))
    assert parse_sweep("guidance=3") == SweepConfig(guidance=(3.0,))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "sweep: nothing to try"),
        ("step=3", "unknown setting 'step=3'; nearest: steps="),
        ("steps=10 steps=20", "steps is given twice"),
        ("steps=0", "steps='0' is no number of steps"),
        ("steps=10,", "steps='' is no number"),
        ("scheduler=dpm+", "scheduler='dpm\\+' is not one of .*; nearest: dpm\\+\\+"),
        ("guidance=much", "guidance='much' is no number"),
    ],
)
def test_sweep_refusals(words: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_sweep(words)


def test_features_in_words(tmp_path) -> None:
    weights = tmp_path / "a=b.safetensors"
    weights.touch()
    assert parse_features("inception") == ("inception", None)
    assert parse_features(f"mobilenet_v2={weights}") == ("mobilenet_v2", str(weights))
    assert parse_features("resnet18=imagenet") == ("resnet18", "imagenet")
    for words, message in (
        ("inceptoin", "'inceptoin' is unknown; nearest: inception"),
        ("classifier=a.safetensors", "it is trained on the set itself"),
        ("inception=nowhere.pth", "no file 'nowhere.pth' for inception"),
    ):
        with pytest.raises(UserError, match=message):
            parse_features(words)


def test_nothing_is_asked_for() -> None:
    assert JudgingConfig().anything
    assert not JudgingConfig(samples_per_class=0).anything
    assert JudgingConfig(samples_per_class=0, bits_per_dimension=1).anything
