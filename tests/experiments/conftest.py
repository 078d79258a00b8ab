"""Options of an experiment, as from the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module

import pytest

from unetdiff.cli.parser import Parser, split_overrides
from unetdiff.experiments import EXPERIMENTS


@pytest.fixture
def asked() -> Callable[..., tuple[argparse.Namespace, list[str]]]:
    """asked("budget", "--steps", "4", ...): the experiment's options and the dotted overrides."""

    def parse(name: str, *words: str) -> tuple[argparse.Namespace, list[str]]:
        parser = Parser(name, name)
        import_module(EXPERIMENTS[name][0]).add_arguments(parser)
        options = [option for action in parser._actions for option in action.option_strings]
        overrides, others = split_overrides(words, options)
        return parser.parse_strictly(others), overrides

    return parse
