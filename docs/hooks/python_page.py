"""A Python file as a page: a heading for each `# ---- ` comment, a code block with an anchor for each definition."""

from __future__ import annotations

import re

SECTION = re.compile(r"^# ---- (.+)$")
STARTS = re.compile(r"^(?:# ---- .+|class \w+.*|def \w+.*)$")


def start_lines(text: str) -> list[int]:
    """The 1-based lines at which the file's parts begin: its first, section comments, and top-level definitions."""
    lines = text.splitlines()
    starts = [1]
    for number, line in enumerate(lines, 1):
        if STARTS.match(line) and not SECTION.match(lines[number - 2]):  # a definition below its section's comment
            starts.append(number - 1 if lines[number - 2].startswith("@") else number)
    return starts


def anchor_of(text: str, line: int) -> str:
    """The anchor of the part that holds a line: L45 for line 56 of a class that begins at 45."""
    return f"L{max(start for start in start_lines(text) if start <= line)}"


def as_page(text: str) -> str:
    """The file as Markdown."""
    lines = text.splitlines()
    starts = start_lines(text)
    parts = []
    for start, end in zip(starts, [*starts[1:], len(lines) + 1], strict=True):
        part = lines[start - 1 : end - 1]
        if (section := SECTION.match(part[0])) is not None:
            title = section[1][0].upper() + section[1][1:]
            parts.append(f"## {title}\n")
        code = "\n".join(part).rstrip()
        parts.append(f'<a id="L{start}"></a>\n\n```python linenums="{start}"\n{code}\n```\n')
    return "\n".join(parts)
