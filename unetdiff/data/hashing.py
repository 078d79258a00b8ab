"""Counter-based random numbers: SplitMix64 over a few integers.

A draw is a pure function of its words (a seed, an epoch, an index, ...), independent of order, number of workers and
dataset size. Constants: Steele, Lea and Flood, "Fast splittable pseudorandom
number generators", OOPSLA 2014.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

_GAMMA = 0x9E3779B97F4A7C15
_MIX1 = 0xBF58476D1CE4E5B9
_MIX2 = 0x94D049BB133111EB
_MASK = (1 << 64) - 1


def splitmix64(state: int) -> int:
    """One SplitMix64 output of a 64-bit state: a bijection in which each input bit flips about half of the output."""
    z = (state + _GAMMA) & _MASK
    z = ((z ^ (z >> 30)) * _MIX1) & _MASK
    z = ((z ^ (z >> 27)) * _MIX2) & _MASK
    return z ^ (z >> 31)


def hash_words(*words: int) -> int:
    """A 64-bit hash of a sequence of integers (negative ones modulo 2**64)."""
    state = 0
    for word in words:
        state = splitmix64(state ^ (word & _MASK))
    return state


def generator_of(*words: int) -> torch.Generator:
    """A CPU generator seeded with the upper 63 bits of `hash_words`."""
    return torch.Generator().manual_seed(hash_words(*words) >> 1)


def uniform(seed: int, rows: NDArray[np.int64], columns: int) -> NDArray[np.float64]:
    """Uniform draws in [0, 1), (len(rows), columns); a row depends only on `seed` and its number in `rows`."""
    state = _splitmix64_array(np.uint64(seed) ^ rows.astype(np.uint64))  # (N,)
    state = _splitmix64_array(state[:, None] ^ np.arange(columns, dtype=np.uint64))  # (N, columns)
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _splitmix64_array(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = state + np.uint64(_GAMMA)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX2)
    return z ^ (z >> np.uint64(31))
