"""A hostile command, and what is wrong with how it ended."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from attacks.material import DATA
from attacks.process import MEMORY_LIMIT, Result

Expect = Literal["refused", "either", "accepted"]
Spoil = Callable[[Path, random.Random], object]
Check = Callable[[Path, Result], str]
STATUSES = {0, 1, 2, 130, 143}
"""The exit statuses that docs/runs.md and the commands document."""
MAX_LINES = 8
"""Lines of stderr of a refusal, warnings and progress of libraries included."""
MAX_LINE = 2100
"""Characters of each."""
SECRET = (201, 17, 93)
"""Color of an image outside of the data that no command may show."""
PWNED = "pwned"
"""File that code hidden in the input would write."""
LEFTOVERS = re.compile(r"^\.(writing|old)-|\.tmp$|\.lock$")
LIBRARY_COLORS = re.compile(r"\x1b\[([0-9]{0,2}m|A)")
"""What transformers and tqdm print of themselves; the codes of the hostile texts are longer."""
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f\u202a-\u202e\u2066-\u2069]")


def nothing(scratch: Path, rng: random.Random) -> None:
    """No hostile file: the command line is what is hostile."""


@dataclass(frozen=True)
class Case:
    """One command on hostile input."""

    kind: str
    name: str
    argv: tuple[str, ...]
    uses: tuple[str, ...] = ()
    """Names of the material it needs a copy of."""
    spoil: Spoil = nothing
    """Makes the input hostile, in the scratch directory."""
    expect: Expect = "either"
    mentions: str = ""
    """What a refusal must name, e.g. the file."""
    check: Check | None = None
    """Of an accepted command: what is wrong with what it produced, or ""."""
    stdin: bytes | None = None
    before: tuple[str, ...] = ()
    """A command to run first, which must succeed."""
    precious: tuple[str, ...] = field(default=())
    """Files and folders that must be as they were, besides the data."""
    written: tuple[str, ...] = ()
    """Folders that a refused command must not make."""

    @property
    def title(self) -> str:
        return f"{self.kind}/{self.name}"


def snapshot(scratch: Path, case: Case) -> dict[str, tuple[int, int, int]]:
    """(mode, size, time) of each file that the command must leave alone."""
    found: dict[str, tuple[int, int, int]] = {}
    for name in {*DATA, *case.precious}:
        root = scratch / name
        paths = (
            [root]
            if root.exists() and not root.is_dir()
            else [Path(f) / n for f, _, names in os.walk(root) for n in names]
        )
        for path in paths:
            state = path.lstat()
            found[str(path.relative_to(scratch))] = (state.st_mode, state.st_size, state.st_mtime_ns)
    return found


def fault(case: Case, result: Result, scratch: Path, before: dict[str, tuple[int, int, int]]) -> tuple[str, str] | None:
    """(verdict, detail) of a command that ended wrongly; None for one that ended well."""
    return (
        _crash(result)
        or _status(case, result)
        or _touched(case, scratch, before)
        or _streams(result)
        or _wrote(scratch)
    )


def _crash(result: Result) -> tuple[str, str] | None:
    last = _last_line(result.stderr)
    if result.hung:
        return "hang", f"{result.seconds:.0f} s"
    if result.peak > MEMORY_LIMIT:
        return "memory", f"{result.peak / 2**30:.1f} GB"
    if "Traceback (most recent call last)" in result.stderr:
        return "traceback", last
    if result.signal is not None:
        return "killed", f"signal {result.signal}. {last}"
    return None


def _status(case: Case, result: Result) -> tuple[str, str] | None:
    output = result.stdout + result.stderr
    if result.status not in STATUSES:
        return "exit status", f"{result.status}: {_last_line(result.stderr)}"
    if result.status == 2 and not re.search(r"^unetdiff: ", result.stderr, re.MULTILINE):
        return "no message", f"exit status 2: {_last_line(output)}"
    if result.status != 0:
        if case.expect == "accepted":
            return "refused wrongly", _last_line(output)
        if case.mentions and case.mentions not in output:
            return "not named", f"{case.mentions} in: {_last_line(output)}"
    elif case.expect == "refused":
        return "accepted wrongly", _last_line(output)
    return None


def _touched(case: Case, scratch: Path, before: dict[str, tuple[int, int, int]]) -> tuple[str, str] | None:
    after = snapshot(scratch, case)
    for path, state in before.items():
        if after.get(path) != state:
            return "data changed" if path in after else "data deleted", path
    return None


def _left(case: Case, result: Result, scratch: Path) -> tuple[str, str] | None:
    if result.status == 2:
        for name in case.written:
            if (scratch / name).exists():
                return "written though refused", name
    return _streams(result) or _wrote(scratch)


def _streams(result: Result) -> tuple[str, str] | None:
    for name, text in (("stdout", result.stdout), ("stderr", result.stderr)):
        found = CONTROL.search(LIBRARY_COLORS.sub("", text))
        if found:
            return "raw control character", f"{name}: {found.string[max(0, found.start() - 80) : found.end() + 40]!r}"
    if result.status == 2:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        if len(lines) > MAX_LINES:
            return "many lines", f"{len(lines)}: {lines[0][:100]} …"
        if max(map(len, lines), default=0) > MAX_LINE:
            return "long line", f"{max(map(len, lines))} characters"
    return None


def _wrote(scratch: Path) -> tuple[str, str] | None:
    for folder, folders, files in os.walk(scratch):
        for name in (*folders, *files):
            path = Path(folder) / name
            if name == PWNED:
                return "code executed", str(path.relative_to(scratch))
            if LEFTOVERS.search(name):
                return "leftover", str(path.relative_to(scratch))
    return None


def strict_json(path: Path) -> str:
    """What is wrong with a JSON file that a command wrote, or ""."""

    def refuse(word: str) -> None:
        raise ValueError(f"holds {word}")

    try:
        json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except (OSError, ValueError) as error:
        return f"{path.name}: {error}"
    return ""


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "(no output)"
