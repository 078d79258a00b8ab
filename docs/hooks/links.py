"""Hook of the site: pages that include files of the repository, and links that leave docs/.

`<!-- include: CONTRIBUTING.md -->` stands for the file: Markdown as it is, Python in parts (`python_page`).

A link to a file outside of docs/ becomes, in this order: the page that holds the file; for a module of the package or a
class in it, its entry in the API reference; the file in the repository, if pyproject.toml names one; else its text.
"""

from __future__ import annotations

import os
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import python_page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/minimal_unet.py": "minimal_unet.md",
}
"""Files of the repository that the site shows, and on which page."""
CONFIGS = "reference/configs.md"
"""The page of the shipped configs."""
FENCE = re.compile(r"^ *(```|~~~)")
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
INCLUDE = re.compile(r"^<!-- include: (\S+) -->\s*\Z", re.MULTILINE)
"""At the end of a page."""


def repository_url() -> str | None:
    """The repository's address by pyproject.toml, without a slash at its end; None: it names none."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    urls = {name.lower(): url for name, url in project.get("urls", {}).items()}
    url = urls.get("repository") or urls.get("source")
    return None if url is None else url.rstrip("/")


@cache
def documented_modules() -> set[str]:
    """The modules of the API reference."""
    texts = [page.read_text(encoding="utf-8") for page in sorted((DOCS / "api").glob("*.md"))]
    return {name for text in texts for name in re.findall(r"^::: (\S+)", text, re.MULTILINE)}


def on_config(config: Any) -> Any:
    """mkdocs: the repository's address in the header, if there is one."""
    config.repo_url = repository_url()
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """mkdocs: the text of a page with its includes and its links."""
    name = page.file.src_uri
    if (included := INCLUDE.search(markdown)) is not None:
        path = ROOT / included[1]
        text = path.read_text(encoding="utf-8")
        text = with_links(text, path.parent, name) if path.suffix == ".md" else python_page.as_page(text)
        return with_links(markdown[: included.start()], (DOCS / name).parent, name) + text
    return with_links(markdown, (DOCS / name).parent, name)


def with_links(markdown: str, folder: Path, page: str) -> str:
    """A text, written in `folder`, with links that hold on a page of the site; code blocks are left as they are."""
    lines, fenced = [], False
    for line in markdown.splitlines(keepends=True):
        fenced ^= FENCE.match(line) is not None
        lines.append(line if fenced else LINK.sub(lambda link: link_on_page(link[1], link[2], folder, page), line))
    return "".join(lines)


def link_on_page(text: str, target: str, folder: Path, page: str) -> str:
    """One link of a text of `folder`, for a page of the site."""
    path, _, anchor = target.partition("#")
    if ":" in path or not path:
        return f"[{text}]({target})"
    file = Path(os.path.normpath(folder / path))
    if file.is_relative_to(DOCS):
        return _to_page(text, file.relative_to(DOCS).as_posix(), anchor, page)
    name = file.relative_to(ROOT).as_posix()
    if name in PAGES:
        if re.fullmatch(r"L\d+", anchor):
            anchor = python_page.anchor_of(file.read_text(encoding="utf-8"), int(anchor[1:]))
        return _to_page(text, PAGES[name], anchor, page)
    if name.startswith("configs/"):
        return _to_page(text, CONFIGS, config_anchor(name) if file.suffix else "", page)
    module = name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    if module in documented_modules():
        defined = re.fullmatch(r"`(?:class|def) (\w+)`", text)
        return f"[{text}][{module}.{defined[1]}]" if defined else f"[{text}][{module}]"
    if (url := repository_url()) is not None:
        return f"[{text}]({url}/blob/main/{name}{'#' + anchor if anchor else ''})"
    return text


def config_anchor(name: str) -> str:
    """The anchor of a shipped config on its page: configs/joint/scenes.yaml -> joint-scenes."""
    return name.removeprefix("configs/").removesuffix(".yaml").replace("/", "-")


def _to_page(text: str, target: str, anchor: str, page: str) -> str:
    relative = os.path.relpath(target, os.path.dirname(page) or ".")
    return f"[{text}]({relative}{'#' + anchor if anchor else ''})"
