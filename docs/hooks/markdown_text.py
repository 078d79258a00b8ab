"""Plain texts (docstrings, help) as Markdown."""

from __future__ import annotations

import re


def escaped(text: str) -> str:
    """A text whose characters mean themselves; `code` in backticks remains code."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([\\<>*_\[\]])", r"\\\1", part) for part in parts)


def entry(term: str, anchor: str, text: str, facts: list[str]) -> str:
    """One entry of a reference: a term with an anchor, its text, and a line of facts (Markdown)."""
    lines = [f"`{term}`{{ #{anchor} }}", f":   {text}"]
    if facts:
        lines += ["", f"    <small markdown>{' · '.join(facts)}</small>"]
    return "\n".join(lines) + "\n"
