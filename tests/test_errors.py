"""What "Did you mean" proposes."""

from __future__ import annotations

import pytest

from unetdiff.errors import did_you_mean, nearest

OPTIONS = ["--num_inference_steps", "--seed", "--guidance_scale", "--class"]


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("--sed", "--seed"),
        ("--SEED", "--seed"),
        ("--guidance", "--guidance_scale"),
        ("--steps", "--num_inference_steps"),
        ("--step", "--num_inference_steps"),  # three letters and the dashes agree with --seed
        ("--xyzzy", None),
        ("--", None),
        ("", None),
        ("x" * 10_000, None),
    ],
)
def test_only_names_that_are_alike_are_proposed(word: str, near: str | None) -> None:
    assert nearest(word, OPTIONS) == near


def test_the_sentence() -> None:
    assert did_you_mean("sevn", ["six", "seven"], "'{}'") == "Did you mean 'seven'?"
    assert did_you_mean("plane", ["six", "seven"]) == ""
    assert did_you_mean("plane", [], otherwise="See --help.") == "See --help."
