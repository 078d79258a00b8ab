"""The harness of hostile commands finds what it is for: crashes, hangs, memory, wrong answers, changed data."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

if not hasattr(os, "pidfd_open"):
    pytest.skip("Linux only", allow_module_level=True)

import hostile
import unetdiff.cli.data_check  # noqa: F401  (imported before the forks)
import unetdiff.training.trainer  # noqa: F401
from attacks import data_cases, material, spoil
from attacks.case import Case, fault, snapshot
from attacks.process import Result, run_forked


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "material"
    material.make(folder, [])
    return folder


def leak() -> int:
    block = bytearray(400 << 20)
    block[:: 1 << 12] = b"x" * len(block[:: 1 << 12])
    return 0


def complain() -> int:
    print("unetdiff: \x1b[38;5;201mpink.", file=sys.stderr)
    return 2


def chat() -> int:
    print("unetdiff: no.\n" + "more\n" * 20, file=sys.stderr)
    return 2


def delete() -> int:
    Path("voc/classes.txt").unlink()
    return 0


def litter() -> int:
    Path(".writing-x").write_text("")
    return 0


FAULTS: dict[str, Callable[[], int]] = {
    "traceback": lambda: [][1],
    "hang": lambda: time.sleep(60),  # type: ignore[dict-item, return-value]
    "memory": leak,
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),  # type: ignore[func-returns-value]
    "exit status": lambda: 7,
    "no message": lambda: 2,
    "raw control character": complain,
    "many lines": chat,
    "data deleted": delete,
    "leftover": litter,
    "accepted wrongly": lambda: 0,
}


@pytest.mark.parametrize("verdict", FAULTS)
def test_each_fault_is_found(verdict: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect = "refused" if verdict == "accepted wrongly" else "either"
    case = Case("test", verdict, (), ("voc",), expect=expect)  # type: ignore[arg-type]
    scratch = tmp_path / "scratch"
    material.copy(made, case.uses, scratch)
    before = snapshot(scratch, case)
    if verdict == "memory":
        usual = run_forked(lambda: 0, scratch, tmp_path / "streams").peak
        monkeypatch.setattr("attacks.case.MEMORY_LIMIT", usual + (100 << 20))
    result = run_forked(FAULTS[verdict], scratch, tmp_path / "streams", limit=0.5 if verdict == "hang" else 20)
    found = fault(case, result, scratch, before)
    assert found is not None and found[0] == verdict


def test_commands_that_end_well_and_one_that_does_not(made: Path, tmp_path: Path) -> None:
    path = "voc/SegmentationClass/p1.png"
    mask = data_cases.at(path, data_cases.BAD_MASKS["value 3"])
    cases = {
        "refused": Case("mask", "a", data_cases.CHECK_SEG, data_cases.SEG, mask, "refused", "p1.png"),
        "not named": Case("mask", "b", data_cases.CHECK_SEG, data_cases.SEG, mask, "refused", "p2.png"),
        "accepted": Case("mask", "c", data_cases.CHECK_SEG, data_cases.SEG, expect="accepted"),
        "wrongly": Case("mask", "d", data_cases.CHECK_SEG, data_cases.SEG, expect="refused"),
        "complained": Case("mask", "e", data_cases.CHECK_SEG, data_cases.SEG, check=lambda scratch, result: "bad"),
    }
    found = {name: hostile.run_case(case, made, tmp_path / name, seed=0) for name, case in cases.items()}
    assert found["refused"] is None and found["accepted"] is None
    verdicts = [wrong[0] for name in ("not named", "wrongly", "complained") if (wrong := found[name]) is not None]
    assert verdicts == ["not named", "accepted wrongly", "wrong output"]


def test_cases_are_many_unlike_and_the_same_for_a_seed() -> None:
    named = [case for cases, _ in hostile.KINDS.values() for case in cases()]
    titles = [case.title for case in named]
    assert len(titles) == len(set(titles)) and len(titles) > 1000
    chosen = hostile.choose(600, list(hostile.KINDS), seed=3)
    assert [case.title for case in chosen] == [case.title for case in hostile.choose(600, list(hostile.KINDS), seed=3)]
    assert len(chosen) == 600 and {case.kind for case in chosen} == set(hostile.KINDS)


def test_permissions_count_for_root_too(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "secret").chmod(0)
    result = run_forked(lambda: len((tmp_path / "secret").read_text()), tmp_path, tmp_path / "streams")
    assert "PermissionError" in result.stderr


def test_a_peak_is_that_of_the_child(tmp_path: Path) -> None:
    small: Result = run_forked(lambda: 0, tmp_path, tmp_path / "a")
    large = run_forked(leak, tmp_path, tmp_path / "b")
    assert large.peak - small.peak > 100 << 20


def test_headers_claim_what_they_do_not_hold(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "x.png").write_bytes(spoil.png(60000, 60000))
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "x.png")
