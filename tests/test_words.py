"""The project's words are the field's: phrases of a private language stay out of code, pages and docs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("unetdiff", "configs", "examples", "docs", "benchmarks")
SUFFIXES = {".py", ".md", ".yaml", ".html", ".ipynb"}

BANNED = {
    r"\btold\b(?! apart)|\btells (the|it|them)\b": "conditioned on, given, configured",
    r"judg(e|es|ed|ing|ement)s?\b": "evaluate, classifier, metric",
    r"\bpictures?\b(?!>| media)": "image",
    r"\basked (for|of)\b": "requested",
    r"(?<!there )\bis no (?!longer\b|more\b|larger\b|smaller\b)": "is not a, must be",
    r"\bhas not\b(?! \w+(ed|en)\b)": "does not have",
    r"\bgoes on\b|\bgo on\b|\bwent on\b": "continue, resume",
    r"\brightly\b": "correctly",
    r"\banew\b": "again",
    r"\btimes as (fast|slow)\b": "2× faster",
    r"\bbeside\b": "next to, as well as",
    r"\btrunks?\b": "pretrained encoder",
    r"\bas written\b|\bby hand\b": "plain, manually",
    r"\bnobody\b|\bsomebody\b": "no one, someone",
    r"\bone's own\b": "your own",
    r"\bset of (images|pictures)\b|\bdata sets?\b": "dataset",
    r"\bfor ever\b": "permanently, constant",
}


def prose(path: Path) -> list[str]:
    """The lines of a file; of Markdown without code, which names what it must."""
    lines, fenced = [], False
    for line in path.read_text(encoding="utf-8").splitlines():
        fenced ^= path.suffix == ".md" and line.startswith("```")
        lines.append("" if fenced else re.sub(r"`[^`]*`", "", line) if path.suffix == ".md" else line)
    return lines


FILES = {
    path.relative_to(ROOT).as_posix(): prose(path)
    for path in [
        *ROOT.glob("*.md"),
        *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*")) if path.suffix in SUFFIXES),
    ]
}


@pytest.mark.parametrize("phrase", BANNED)
def test_banned_phrases(phrase: str) -> None:
    found = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, lines in FILES.items()
        for number, line in enumerate(lines, 1)
        if re.search(phrase, line, re.IGNORECASE)
    ]
    assert not found, f"write instead: {BANNED[phrase]}\n" + "\n".join(found)


def test_markdown_lines_have_at_most_120_characters() -> None:
    found = [
        f"{name}:{number}: {len(line)} characters"
        for name, lines in FILES.items()
        for number, line in enumerate(lines, 1)
        if name.endswith(".md") and len(line) > 120 and not line.startswith("|")  # a row cannot be broken
    ]
    assert not found, "\n".join(found)
