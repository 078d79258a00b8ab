"""The page of the configs that come with the package."""

from __future__ import annotations

from itertools import groupby

from unetdiff.config.shipped import shipped_configs


def markdown() -> str:
    """A heading for each task, the whole file of each config."""
    lines = []
    for task, configs in groupby(shipped_configs(), key=lambda item: item[0].partition("/")[0]):
        lines.append(f"## {task.capitalize()}\n")
        for name, path in configs:
            lines.append(f"### `{name}` {{ #{name.replace('/', '-')} data-toc-label='{name.partition('/')[2]}' }}\n")
            lines.append(f"```yaml\n{path.read_text(encoding='utf-8').strip()}\n```\n")
    return "\n".join(lines)
