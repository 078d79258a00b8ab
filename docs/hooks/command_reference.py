"""The command reference: every command with its arguments, read from its argument parser."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import NoReturn
from unittest.mock import patch

from markdown_text import entry, escaped
from unetdiff.cli import data, experiment
from unetdiff.cli.main import COMMANDS
from unetdiff.cli.parser import Parser
from unetdiff.experiments import EXPERIMENTS

WIDTH = 88
"""Characters of a line of a usage."""


class _Built(Exception):
    """Carries the parser out of a command that is about to print its help."""

    def __init__(self, parser: Parser) -> None:
        self.parser = parser


def parser_of(module: str, words: Sequence[str] = ()) -> Parser:
    """The parser that a command builds."""

    def give(self: Parser) -> NoReturn:
        raise _Built(self)

    with patch.object(Parser, "format_help", give):
        try:
            import_module(module).main([*words, "--help"])
        except _Built as built:
            return built.parser
    raise LookupError(f"{module} printed no help of a Parser")


def parsers() -> Iterator[Parser]:
    """Of every command, `data` and `experiment` by their actions."""
    for name, (module, _) in COMMANDS.items():
        if name == "data":
            yield from (parser_of(action) for action, _ in data.ACTIONS.values())
        elif name == "experiment":
            yield from (parser_of(experiment.__name__, [name]) for name in EXPERIMENTS)
        else:
            yield parser_of(module)


def markdown() -> str:
    """A heading for each command, an entry for each of its arguments."""
    return "\n".join(command(parser) for parser in parsers())


def command(parser: Parser) -> str:
    """One command: description, usage, arguments by group."""
    name = parser.prog.removeprefix("unetdiff ")
    anchor = name.replace(" ", "-")
    with patch.dict(os.environ, COLUMNS=str(WIDTH)):  # not the width of the terminal
        usage = parser.format_usage().removeprefix("usage: ").strip()
    lines = [
        f"## `unetdiff {name}` {{ #{anchor} data-toc-label='{name}' }}\n",
        f"{escaped(parser.description or '')}\n",
        f"``` {{.text .usage}}\n{usage}\n```\n",
    ]
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.help is not argparse.SUPPRESS]
        actions = [action for action in actions if not isinstance(action, argparse._HelpAction)]
        if not actions:
            continue
        if group.title not in ("positional arguments", "options"):
            lines.append(f"**{escaped((group.title or '').capitalize())}**\n")
        lines += [argument(action, anchor) for action in actions]
    return "\n".join(lines)


def argument(action: argparse.Action, command_anchor: str) -> str:
    """One argument with its values, help and default."""
    names = action.option_strings or [values_of(action)]
    values = values_of(action) if action.option_strings and action.nargs != 0 else ""
    term = " ".join([", ".join(names), *([values] if values else [])])
    name = action.option_strings[-1].lstrip("-") if action.option_strings else action.dest
    text = (action.help or "").replace("%%", "%")
    facts = []
    unsaid = action.default is None or action.default is False or action.default in (argparse.SUPPRESS, [])
    if not unsaid and "default:" not in text:
        default = " ".join(map(str, action.default)) if isinstance(action.default, list) else action.default
        facts.append(f"default `{default}`")
    if action.required and action.option_strings:
        facts.append("required")
    text = escaped(text)
    return entry(term, f"{command_anchor}-{name}", text[:1].upper() + text[1:], facts)


def values_of(action: argparse.Action) -> str:
    """The values that an argument takes: `NAME [NAME ...]`, `{a,b}`."""
    name = action.metavar if isinstance(action.metavar, str) else None
    if name is None and action.choices is not None:
        name = "{" + ",".join(map(str, action.choices)) + "}"
    name = name or (action.dest.upper() if action.option_strings else action.dest)
    several = {"+": f"{name} [{name} ...]", "*": f"[{name} ...]", "?": f"[{name}]"}
    if isinstance(action.nargs, int):
        return " ".join([name] * action.nargs)
    return several.get(str(action.nargs), name)
