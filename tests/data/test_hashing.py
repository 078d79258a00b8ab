from __future__ import annotations

import numpy as np

from unetdiff.data.hashing import hash_words, splitmix64, uniform


def test_splitmix64_gives_the_published_stream() -> None:
    # First outputs of the reference C program for seed 1234567 (its state grows by the golden gamma).
    gamma = 0x9E3779B97F4A7C15
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [splitmix64((1234567 + i * gamma) % 2**64) for i in range(3)] == expected


def test_hash_depends_on_every_word_and_on_their_order() -> None:
    words = [(0, 1), (1, 0), (0, 0), (1, 1), (0,), (0, 1, 0), (-1, 1)]
    assert len({hash_words(*w) for w in words}) == len(words)


def test_uniform_rows_do_not_depend_on_the_others() -> None:
    rows = np.arange(2000)
    draws = uniform(7, rows, 50)
    assert np.array_equal(uniform(7, rows[[1500, 3]], 50), draws[[1500, 3]])
    assert np.array_equal(uniform(7, rows, 9), draws[:, :9])
    assert draws.min() >= 0 and draws.max() < 1
    # 100,000 draws: the standard error of the mean is 0.0009, of neighbours' correlation 0.003.
    assert abs(draws.mean() - 0.5) < 0.005
    assert abs(np.corrcoef(draws[:, :-1].ravel(), draws[:, 1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(draws[:-1].ravel(), draws[1:].ravel())[0, 1]) < 0.02
