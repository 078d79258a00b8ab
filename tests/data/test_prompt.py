from __future__ import annotations

import pytest

from unetdiff.data.config import ScenesConfig
from unetdiff.data.prompt import COLORS, DIGITS, caption_of, prompts, trained_pairs
from unetdiff.errors import UserError


def test_every_digit_in_every_colour_is_a_prompt_of_its_own() -> None:
    found = prompts(ScenesConfig(colors=4, held_out_pairs=["Blue 3", "red nine"]))
    assert len(found) == len({prompt.caption for prompt in found}) == 40
    for place, prompt in enumerate(found):
        assert place == prompt.digit * 4 + prompt.color
        assert prompt.caption.split() == ["a", COLORS[prompt.color], DIGITS[prompt.digit]]
    assert [prompt.caption for prompt in found if prompt.held_out] == ["a blue three", "a red nine"]


def test_a_caption_names_every_digit_with_its_colour() -> None:
    assert caption_of([7, 2], [0, 2]) == "a red seven and a blue two"


def test_without_held_out_pairs_everything_is_trained() -> None:
    assert trained_pairs(ScenesConfig()).shape == (10, 6) and trained_pairs(ScenesConfig()).all()


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["blue"], '=[blue]: must be a list of colors and digits. Give e.g. ["blue 3"].'),
        (["bleu 3"], "='bleu 3': must be one of the colors red, green, blue, and a digit. Did you mean blue?"),
        (["white 3"], "='white 3': must be one of the colors red, green, blue"),
        (["blue thre"], "='blue thre': must be a color and a digit, 0 to 9. Did you mean three?"),
        (["blue 10"], "='blue 10': must be a color and a digit, 0 to 9."),
        (["red 3", "green three", "blue 3"], "must be a list that leaves digit 3 a color to train in."),
    ],
)
def test_impossible_pairs_are_refused(pairs: list[str], message: str) -> None:
    with pytest.raises(UserError, match=r"^data\.scenes\.held_out_pairs=") as error:
        trained_pairs(ScenesConfig(colors=3, held_out_pairs=pairs))
    assert message in str(error.value)
