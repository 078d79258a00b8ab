"""Hook of the site: `<!-- generated: NAME -->` at the end of a page stands for a reference made from the code."""

from __future__ import annotations

import re
from typing import Any

import command_reference
import config_files
import config_reference

REFERENCES = {
    "commands": command_reference.markdown,
    "configuration": config_reference.markdown,
    "configs": config_files.markdown,
}
MARKER = re.compile(r"^<!-- generated: (\w+) -->\s*\Z", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """mkdocs: the text of a page with its generated part."""
    return MARKER.sub(lambda marker: REFERENCES[marker[1]](), markdown)
