"""A run in one typed object: a YAML file, dotted overrides, and one-line refusals of what does not fit."""

from __future__ import annotations

import argparse
import difflib
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union

import jsonargparse
import yaml

from unetdiff.config.validation import check_files, validate
from unetdiff.data.config import DataConfig
from unetdiff.diffusion.config import DiffusionConfig
from unetdiff.errors import UserError
from unetdiff.models.config import ModelConfig
from unetdiff.segmentation.config import SegmentationConfig
from unetdiff.training.config import JointConfig, TrainingConfig

__all__ = [
    "RunConfig",
    "Task",
    "load",
    "parse",
    "parse_arguments",
    "to_yaml",
    "from_yaml",
    "validate",
    "check_files",
]

Task = Literal["segmentation", "diffusion", "joint"]


@dataclass
class RunConfig:
    """What a run is: its task, network, images and loop."""

    task: Task = "segmentation"
    """What is trained: the segmentation head, the diffusion head, or both jointly."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    data: DataConfig = field(default_factory=DataConfig)
    """The images."""
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)
    """Loss and judgement of the segmentation head."""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    """Objective, condition and judgement of the diffusion head."""
    joint: JointConfig = field(default_factory=JointConfig)
    """How the two objectives share a joint run."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """The loop."""


SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "data": DataConfig,
    "segmentation": SegmentationConfig,
    "diffusion": DiffusionConfig,
    "joint": JointConfig,
    "training": TrainingConfig,
}


# ---------------------------------------------------------------------------------------------- schema


def _dataclass_of(hint: Any) -> type | None:
    """The dataclass that a hint is, or is next to None; else None."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    return next((option for option in options if isinstance(option, type) and is_dataclass(option)), None)


def schema(cls: type = RunConfig, prefix: str = "") -> dict[str, Any]:
    """Every dotted key of a config class with its type hint, sections included, in the order of the file."""
    hints = typing.get_type_hints(cls)
    keys: dict[str, Any] = {}
    for item in fields(cls):
        keys[prefix + item.name] = hints[item.name]
        if (nested := _dataclass_of(hints[item.name])) is not None:
            keys |= schema(nested, f"{prefix}{item.name}.")
    return keys


KEYS = schema()
LEAVES = [key for key, hint in KEYS.items() if _dataclass_of(hint) is None]


def nearest_key(key: str) -> str:
    """The dotted key that was most likely meant: the same last word (or its initials), else the closest."""
    leaf = key.rsplit(".", 1)[-1]
    initials = "".join(word[:1] for word in leaf.split("_"))  # learning_rate -> lr
    same_leaf = [known for known in LEAVES if known.rsplit(".", 1)[-1] in (leaf, initials)]
    if same_leaf:
        return max(same_leaf, key=lambda known: _likeness(key, known))

    def score(known: str) -> float:
        return _likeness(key, known) + _likeness(leaf, known.rsplit(".", 1)[-1])

    return max(LEAVES, key=score)


def _likeness(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


def _is_section(key: str) -> bool:
    return _dataclass_of(KEYS[key]) is not None


def _is_known(key: str) -> bool:
    """Whether a dotted key exists; names under a dict (segmentation.losses.focal) are the user's."""
    parent = key.rpartition(".")[0]
    return key in KEYS or (parent in KEYS and typing.get_origin(KEYS[parent]) is dict)


def _describe(hint: Any) -> str:
    """A type hint in words: "one of a, b", "an integer or null"."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(arg) for arg in args)
    if origin is Literal:
        return "one of " + ", ".join(str(arg) for arg in args)
    if origin is list:
        return "a list of " + {int: "integers", float: "numbers", str: "texts"}[args[0]]
    if origin is dict:
        return "a mapping of names to numbers"
    if isinstance(hint, type) and is_dataclass(hint):
        return "a section with " + ", ".join(
            f"{item.name} ({_describe(typing.get_type_hints(hint)[item.name])})" for item in fields(hint)
        )
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    return words[hint]


def _first(section: str) -> str:
    return next(leaf for leaf in LEAVES if leaf.startswith(f"{section}."))


def _accepts_none(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


def _refuse_value(key: str, value: Any, where: str = "") -> UserError:
    """The refusal of a value of the wrong type, with the nearest choice where there are choices."""
    hint = KEYS.get(key) or KEYS[key.rpartition(".")[0]]
    message = f"{key}: {value!r} is not right{where}; it must be {_describe(hint)}"
    choices = [str(c) for arg in (hint, *typing.get_args(hint)) for c in typing.get_args(arg) if isinstance(c, str)]
    near = difflib.get_close_matches(str(value), choices, n=1)
    return UserError(message + (f" (nearest: {near[0]})" if near else ""))


# --------------------------------------------------------------------------------------------- parsing


def build_parser(prog: str = "unetdiff", usage: str | None = None) -> jsonargparse.ArgumentParser:
    """The jsonargparse parser of every dotted key; its help comes from the config classes' docstrings."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(prog=prog, usage=usage, exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(RunConfig, None)
    for action in parser._actions:  # no help for `--model CONFIG`: one file holds all sections
        if action.dest in KEYS and _is_section(action.dest) and not _accepts_none(KEYS[action.dest]):
            action.help = argparse.SUPPRESS
    return parser


def _leaves_of(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}, as deep as the config has sections."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and (key not in KEYS or _is_section(key)):
            flat |= _leaves_of(value, f"{key}.") or {key: value}
        else:
            flat[key] = value
    return flat


def _check_tree(tree: Any, where: str) -> None:
    """Refuse unknown keys, sections that are no sections, and nulls where a value is needed."""
    if not isinstance(tree, Mapping):
        raise UserError(f"{where}: a config file holds sections ({', '.join(['task', *SECTIONS])}), not {tree!r}")
    for key, value in _leaves_of(tree).items():
        if not _is_known(key):
            raise UserError(f"unknown key {key!r} (value {value!r}) in {where}; nearest: {nearest_key(key)}")
        if key in KEYS and _is_section(key):
            if not isinstance(value, Mapping) and not (value is None and _accepts_none(KEYS[key])):
                raise UserError(f"{key}: {value!r} in {where} is no section; it holds keys such as {_first(key)}")
        elif value is None and key in KEYS and not _accepts_none(KEYS[key]):
            raise _refuse_value(key, value, f" in {where}")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; UserError that names the file (and the line) where it cannot be read."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = difflib.get_close_matches(str(path), [str(p) for p in path.parent.glob("*.y*ml")], n=1, cutoff=0.3)
        raise UserError(f"config file {path} does not exist" + (f"; nearest: {near[0]}" if near else "")) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config file {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"config file {path} is not YAML: {' '.join(str(error).split())}") from None
    tree = {} if tree is None else tree
    _check_tree(tree, str(path))
    return tree


def as_arguments(overrides: Mapping[str, Any] | Sequence[str] | None) -> list[str]:
    """Overrides as command-line words: {"training.steps": 5} -> ["--training.steps=5"].

    Unknown keys are refused with the nearest right one; a bare `--training.compile` means true.
    """
    if isinstance(overrides, Mapping):
        texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in _leaves_of(overrides).items()}
        overrides = [f"--{key}={text}" for key, text in texts.items()]
    words = list(overrides or [])
    arguments: list[str] = []
    for index, word in enumerate(words):
        if not word.startswith("--"):
            arguments.append(word)
            continue
        name, _, value = word[2:].partition("=")
        key = name.removesuffix("+")
        if not _is_known(key):
            raise UserError(f"unknown option --{name}; nearest: --{nearest_key(key)}")
        if key in KEYS and _is_section(key) and not _accepts_none(KEYS[key]):
            raise UserError(f"--{name} is a section; give its keys one by one, such as --{_first(key)}")
        bare = "=" not in word and (index + 1 == len(words) or words[index + 1].startswith("--"))
        if bare and KEYS.get(key) is not bool:
            raise UserError(f"--{name} needs a value: {_describe(KEYS[key]) if key in KEYS else 'a number'}")
        arguments.append(f"{word}=true" if bare else word)
    return arguments


def _given(key: str, arguments: Sequence[str], tree: Mapping[str, Any]) -> Any:
    """The value that was given for a key: the last on the command line, else the file's."""
    for index in range(len(arguments) - 1, -1, -1):
        name, equals, value = arguments[index].partition("=")
        if name.rstrip("+") == f"--{key}":
            return value if equals else arguments[index + 1]
        if name.startswith(f"--{key}."):
            return f"{name.removeprefix(f'--{key}.')}={value if equals else arguments[index + 1]}"
    node: Any = tree
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _refuse_jsonargparse(error: Exception, arguments: Sequence[str], tree: Mapping[str, Any]) -> UserError:
    """jsonargparse's message of several lines as our one line: the key, the value, what would be right."""
    text = str(error)
    key = re.search(r'Parser key "([^"]+)"', text)
    if key and _is_known(key[1]):
        return _refuse_value(key[1], _given(key[1], arguments, tree))
    if text.startswith("unrecognized arguments:"):
        words = text.partition(": ")[2]
        return UserError(f"unexpected {words!r}: the config file comes first, then --key value")
    return UserError(" ".join(text.split()))


def parse(
    path: str | Path | None = None,
    overrides: Mapping[str, Any] | Sequence[str] | None = None,
    task: Task | None = None,
) -> RunConfig:
    """A typed config from a YAML file (None: the defaults) and overrides; keys and types are checked.

    overrides: {"training.steps": 5}, or words of a command line (["--training.steps", "5"]).
    task: what is trained; refused where the file says otherwise. Raises UserError, one line.
    """
    tree = read_yaml(Path(path)) if path is not None else {}
    if task is not None and tree.get("task", task) != task:
        raise UserError(f"task: {tree['task']!r} in {path}, but {task!r} was asked for; ask for {tree['task']}")
    config = _typed(tree, as_arguments(overrides))
    if task is not None:
        config.task = task
    _check_tree(asdict(config), "the config")
    return config


def overridden(config: RunConfig, overrides: Mapping[str, Any] | Sequence[str] | None) -> RunConfig:
    """A copy of a config with overrides on it, keys and types checked; see `parse`."""
    changed = _typed(asdict(config), as_arguments(overrides))
    _check_tree(asdict(changed), "the config")
    return changed


def _typed(tree: dict[str, Any], arguments: list[str]) -> RunConfig:
    """A tree of plain values, and words of a command line over it, as a config."""
    parser = build_parser()
    try:
        namespace = parser.parse_object(tree)
        namespace = parser.parse_args(arguments, namespace=namespace)
        built = parser.instantiate(namespace)
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        raise _refuse_jsonargparse(error, arguments, tree) from None
    return RunConfig(task=built.task, **{name: getattr(built, name) for name in SECTIONS})


def load(
    path: str | Path | None = None,
    overrides: Mapping[str, Any] | Sequence[str] | None = None,
    task: Task | None = None,
) -> RunConfig:
    """`parse`, and refuse impossible combinations and files that are not there: ready to train."""
    config = parse(path, overrides, task)
    validate(config)
    check_files(config)
    return config


def parse_arguments(argv: Sequence[str], task: Task | None = None) -> RunConfig:
    """`[CONFIG] --key value ...` as on the command line -> a validated config."""
    has_path = bool(argv) and not argv[0].startswith("-")
    return load(argv[0] if has_path else None, argv[1:] if has_path else argv, task)


def to_yaml(config: RunConfig) -> str:
    """The whole config as YAML, every key in it; `from_yaml` gives it back."""
    return yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)


def from_yaml(path: str | Path) -> RunConfig:
    """The config in a file (e.g. a run's config.yaml), keys and types checked."""
    return parse(path)
