"""The configuration reference: every key of the schema with its docstring, type, range and default."""

from __future__ import annotations

from markdown_text import entry, escaped
from unetdiff.config.bounds import BOUNDS
from unetdiff.config.help import Option, docstrings, options
from unetdiff.config.schema import KEYS, is_optional, is_section, section_class

TECHNICAL = 1000
"""Upper ends from here on keep memory and time in bounds, and say nothing about what is useful."""


def markdown() -> str:
    """A heading for each section, an entry for each key."""
    texts = docstrings()
    values = {option.key: option for option in options()}
    lines: list[str] = []
    for parent in ("", *filter(is_section, KEYS)):
        keys = [key for key in values if key.rpartition(".")[0] == parent]
        if parent:
            lines.append(f"{'#' * (2 + parent.count('.'))} `{parent}` {{ #{parent} data-toc-label='{parent}' }}\n")
            lines.append(about(parent, texts[parent]) + "\n")
        lines += [key_entry(values[key]) for key in keys]
    return "\n".join(lines)


def about(section: str, text: str) -> str:
    """What a section holds: its class's text; of one that is null by default, also the text at its key."""
    cls = section_class(KEYS[section])
    described = " ".join((cls.__doc__ or "").split()) if cls is not None else ""
    return escaped(f"{text} {described}" if is_optional(section) else described or text)


def key_entry(option: Option) -> str:
    """One key."""
    facts = [escaped(option.type)]
    if limits := limits_of(option.key):
        facts.append(limits)
    if option.default is not None:
        facts.append(f"default `{option.default}`")
    return entry(option.key, option.key, escaped(option.text), facts)


def limits_of(key: str) -> str:
    """The range of a key's numbers, or of the items of its list; "" where every useful number is in it."""
    bound = BOUNDS.get(key)
    if bound is None or (bound.low < -TECHNICAL and bound.high > TECHNICAL):
        return ""
    if bound.items:
        return escaped(bound.items)
    low, high = f"{bound.low:,g}", f"{bound.high:,.15g}"
    if bound.as_range or bound.high < TECHNICAL:
        return escaped(f"in {'(' if bound.open_low else '['}{low}, {high}{')' if bound.open_high else ']'}")
    return "positive" if bound.open_low and bound.low == 0 else f"at least {low}"
