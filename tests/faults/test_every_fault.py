"""Every kind of fault that was found on real runs has a test: its name begins with the fault's number.

A: data lost, or a wrong result without a word. B: what docs/runs.md promises when something goes wrong. C: crashes on
plausible input (named after the input). D: what an installation must not allow.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
FAULTS = [*(f"a{n}" for n in range(1, 23)), *(f"b{n}" for n in range(1, 14)), "d1", "d2"]


def numbers(name: str) -> list[str]:
    """The faults of a test by its name: `test_a2_a3_uneven_void` -> ["a2", "a3"]."""
    match = re.match(r"test_((?:(?:[abd]\d+|c)_)+)", name)
    return match.group(1).strip("_").split("_") if match else []


def faults_with_tests() -> list[str]:
    names = (re.findall(r"^def (test_\w+)", path.read_text(), re.M) for path in TESTS.rglob("test_*.py"))
    return [number for found in names for name in found for number in numbers(name)]


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_has_a_test(fault: str) -> None:
    assert fault in faults_with_tests()


def test_plausible_input_has_tests() -> None:
    assert faults_with_tests().count("c") >= 30
