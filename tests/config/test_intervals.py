"""How often a run validates: in steps, in epochs, or by itself."""

from __future__ import annotations

from fractions import Fraction

import pytest

from unetdiff.config.intervals import make_interval
from unetdiff.config.reading import load
from unetdiff.errors import UserError


def due(value: int | str | None, steps: int, epoch: Fraction = Fraction(10)) -> list[int]:
    interval = make_interval(value, steps, epoch)
    return [step for step in range(1, steps + 1) if interval.is_due(step)]


def test_steps_and_epochs() -> None:
    assert due(3, 10) == [3, 6, 9]
    assert due("2 epochs", 50) == [20, 40]
    # 11 images in batches of 4: epochs end within steps 3, 6, 9 (8.25) and 11 exactly
    assert due("1 epoch", 11, Fraction(11, 4)) == [3, 6, 9, 11]
    assert due("0.5 epochs", 3, Fraction(3, 2)) == [1, 2, 3]  # an interval of less than a step


@pytest.mark.parametrize("steps", [10, 11, 75, 76, 2499, 2501, 12_345])
def test_by_itself_at_least_five_times_and_at_most_500_steps_apart(steps: int) -> None:
    found = due(None, steps)
    gaps = [after - before for before, after in zip([0, *found], found, strict=False)]
    assert len(found) == max(5, -(-steps // 500)) and found[-1] == steps
    assert max(gaps) <= min(500, -(-steps // 5)) and max(gaps) - min(gaps) <= 1


def test_by_itself_once_in_a_run_of_a_few_steps() -> None:
    assert due(None, 9) == [9]


def test_words_of_the_command_line() -> None:
    words = ["--training.steps", "5", "--training.validate_every", "2 epochs", "--training.checkpoint_every=7"]
    training = load(None, words, "segmentation").training
    assert (training.validate_every, training.checkpoint_every) == ("2 epochs", 7)
    for value in ("2 epoch s", "often", "0 epochs", "-1 epochs", "1.5"):
        with pytest.raises(UserError, match=r"^training.validate_every=.*Give e.g. 500, or 1 epoch."):
            load(None, {"training.steps": 5, "training.validate_every": value}, "segmentation")
    with pytest.raises(UserError, match="training.validate_every=0: must be at least 1"):
        load(None, ["--training.steps", "5", "--training.validate_every", "0"], "segmentation")
