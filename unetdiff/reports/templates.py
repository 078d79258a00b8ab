"""The page's Jinja2 templates, which lie beside this file."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


@cache
def _environment() -> Environment:
    # Autoescape always: names of runs, classes and files are other people's text.
    return Environment(
        loader=PackageLoader("unetdiff.reports", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **values: Any) -> str:
    """The text of a template filled with `values`; a name that is missing is an error."""
    return _environment().get_template(template).render(**values)
