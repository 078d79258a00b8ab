"""The Jinja2 templates of the pages, in the folder of this file."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

UNIT = re.compile(r"(?<=\d) (?=(?:%|min|k|M|points?)(?!\w))|(?<=\bn) (?== \d)|(?<=\bn =) (?=\d)")
"""A space between a number and its unit, and the spaces of "n = 50"."""


def unbroken(text: str) -> str:
    """A text whose numbers stay in one line with their units: "10.0 %", "4.0 points", "n = 50"."""
    return UNIT.sub("\u00a0", text)


@cache
def _environment() -> Environment:
    # Always escape: names of runs, classes and files are untrusted text.
    environment = Environment(
        loader=PackageLoader("unetdiff.reports", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = unbroken
    return environment


def render(template: str, **values: Any) -> str:
    """Render a template with `values`; a missing name is an error."""
    return _environment().get_template(template).render(**values)
