"""Hook of the site: an option of a command is never broken after its hyphens where code wraps."""

from __future__ import annotations

import re
from typing import Any

CODE = re.compile(
    r'<div class="language-bash highlight">.*?</div>|<div class="language-text usage highlight">.*?</div>'
    r"|<code>[^<]*</code>",
    re.DOTALL,
)
"""Shell commands, usages of commands, and code within a text."""
OPTION = re.compile(r"(?<![\w.-])--?[A-Za-z][\w.-]*")


def on_page_content(html: str, **_: Any) -> str:
    """The page with every option in an element of its own; the text, which the button copies, is the same."""
    return CODE.sub(lambda code: OPTION.sub(r'<span class="option">\g<0></span>', code[0]), html)
