"""The Jinja2 templates of the pages, in the folder of this file."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


@cache
def _environment() -> Environment:
    # Always escape: names of runs, classes and files are untrusted text.
    return Environment(
        loader=PackageLoader("unetdiff.reports", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **values: Any) -> str:
    """Render a template with `values`; a missing name is an error."""
    return _environment().get_template(template).render(**values)
