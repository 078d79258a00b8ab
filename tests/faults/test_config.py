"""Values of the config that no one meant: each is refused with one line, or accepted and validated."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from unetdiff.cli.main import main
from unetdiff.config.bounds import BOUNDS, MAX_ENTRIES, NAMES, PATHS
from unetdiff.config.reading import from_yaml, load, override, parse, read_yaml, to_yaml
from unetdiff.config.schema import KEYS, LEAVES, describe
from unetdiff.config.validation.run import validate
from unetdiff.errors import UserError
from unetdiff.files.writing import write_text

NONSENSE: list[Any] = [
    math.nan, math.inf, -math.inf, -1, 0, 2**64, -(2**64), 10**400, 1e30, 1e-30, -1.5, True, False, None, "", "x" * 300,
    "a\nb: [", "\x1b[31m", "#", "~", "no", "010", "../..", [], [1], [1, 1], [2**64, 1], [math.nan, 1.0], [0.0, 0.0],
    [1] * 2000, ["x"], [[1]], [None], {}, {"a": 1}, {1: 2}, {"cross_entropy": math.nan}, b"x", {1, 2},
]  # fmt: skip
WORDS = [
    "nan", ".nan", ".inf", "-1", "0", "18446744073709551616", "", " ", "x" * 300, "[]", "[1, 1]", "null", "~", "true",
    "1e30", "a\nb", "\x1b[31m", "[", "{", "{a: 1}", "*a", "&a [*a]", "#", "'", '"', "!!python/object:os.system x",
    "9" * 5000, "[" * 3000, "2026-99-99", "@x", "`", "%", "\ud800",
]  # fmt: skip


BASE = parse(None, {"training.steps": 5, "model.conditioning.cross_attention_dim": 8})


def tried(overrides: Any) -> str | None:
    """The message of a refused value, on one line; None: accepted."""
    try:
        validate(override(BASE, overrides))
    except UserError as error:
        message = str(error)
        assert message.isprintable() and len(message) < 900, message
        return message
    return None


def test_c_every_key_has_bounds() -> None:
    numeric = {key for key in LEAVES if "number" in describe(KEYS[key]) or "integer" in describe(KEYS[key])}
    assert set(BOUNDS) == numeric
    choices = {key for key in LEAVES if describe(KEYS[key]).startswith(("one of", "true or false"))}
    assert set(LEAVES) == numeric | choices | {*PATHS, *NAMES, *MAX_ENTRIES}


@pytest.mark.parametrize("section", ["task", "model", "data", "segmentation", "diffusion", "joint", "training"])
def test_c_nonsense_values_of_every_key(section: str) -> None:
    for key in (leaf for leaf in LEAVES if leaf.split(".")[0] == section):
        for value in NONSENSE:
            message = tried({key: value})
            if isinstance(value, float) and not math.isfinite(value):
                assert message is not None, f"{key}={value} is accepted"


KINDS = {describe(KEYS[key]): key for key in LEAVES}


@pytest.mark.parametrize("key", KINDS.values())
def test_c_nonsense_words_on_the_command_line(key: str) -> None:
    for word in WORDS:
        message = tried([f"--{key}={word}"])
        if not word.strip() or "\n" in word:
            assert message is not None, f"{key}={word!r} is accepted"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"training.seed": 2**64}, "training.seed=18446744073709551616: must be at most 4,294,967,295."),
        ({"training.seed": -1}, "training.seed=-1: must be at least 0."),
        ({"data.size": [1, 1]}, "data.size=[1, 1]: must be [height, width], two integers from 8 to 16384."),
        ({"data.augment.crop": [1, 1]}, "data.augment.crop=[1, 1]: must be [height, width], two integers from 8"),
        ({"model.residual.dropout": 2}, "model.residual.dropout=2.0: must be in [0, 1)."),
        ({"model.residual.norm_num_groups": 0}, "model.residual.norm_num_groups=0: must be at least 1."),
        ({"model.residual.layers_per_block": -1}, "model.residual.layers_per_block=-1: must be at least 1."),
        ({"model.patch_size": 1000}, "model.patch_size=1000: must be at most 64."),
        ({"model.patch_size": 64}, "model.patch_size=64: must be at most 32, the shorter side of the training images."),
        ({"model.encoder.channels": [8] * 40}, "model.encoder.channels=[8, 8, 8"),
        ({"data.scenes.train_images": 2 * 10**9}, "data.scenes.train_images=2000000000: must be at most 1,000,000."),
        ({"training.optimizer.lr": math.nan}, "training.optimizer.lr=nan: must be a positive number."),
        (["--data.root="], "data.root='': must be set (got an empty text)."),
        (["--training.output_dir="], "training.output_dir='': must be set (got an empty text)."),
        (["--training.steps=010"], "training.steps=010: must be an integer or null."),
        (["--training.steps=1:30"], "training.steps=1:30: must be an integer or null."),
        (["--training.steps=" + "9" * 5000], "training.steps=99999"),
        (["--data.size=&a [*a, *a]"], "data.size='&a [*a, *a]': must be a list of integers or null."),
        (["--data.size=" + "[" * 2000 + "]" * 2000], "data.size=[[[["),
    ],
    ids=lambda value: str(value)[:40],
)
def test_c_refused_with_one_line(words: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(None, words if isinstance(words, list) else {"training.steps": 5, **words})
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("training: {steps: 1}\ntraining: {seed: 2}\n", "key 'training' in line 2 is already in line 1"),
        ("training:\n  steps: 1\n  steps: 2\n", "key 'steps' in line 3 is already in line 2"),
        ("training: {steps: 1}\ntraining.steps: 2\n", "training.steps=2: must be given once (got 1 as well)."),
        ("data: &a {root: *a}\n", "nested too deeply"),
        ("data: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        (BOMB, "more than 100,000 values"),
        ("training: {seed: " + "1" * 5000 + "}", "a number is too long"),
        ("training: {steps: 010}", "training.steps=010: must be an integer or null."),
        ("training: {steps: 1:30}", "training.steps=1:30: must be an integer or null."),
        ("training: {steps: '5'}", "training.steps=5: must be an integer or null."),
    ],
    ids=["a11-section", "a11-key", "a11-dotted", "self", "deep", "bomb", "digits", "octal", "sexagesimal", "quoted"],
)
def test_a11_yaml_that_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    write_text(path, text)
    for read in (parse, from_yaml):
        with pytest.raises(UserError) as caught:
            read(path)
        assert reason.removesuffix(".") in str(caught.value) and "\n" not in str(caught.value)
        assert len(str(caught.value)) < 700


TEXTS = ["#1/best", "010", "no", "null", "1:30", "5", "1e3", "[a]", "{a: 1}", "a: b", "~x", "'q'", "true"]


@pytest.mark.parametrize("text", TEXTS)
def test_a12_quoted_texts_stay_texts(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    write_text(path, f'training: {{init_from: "{text}"}}\ndata: {{val_split: "{text}"}}\n')
    config = parse(path)
    assert (config.training.init_from, config.data.val_split) == (text, text)
    write_text(path, to_yaml(config))
    assert from_yaml(path) == config
    assert parse(None, {"training.init_from": text}).training.init_from == text
    quoted = "'" + text.replace("'", "''") + "'"
    assert parse(None, [f"--training.init_from={quoted}"]).training.init_from == text
    if text != "null" and text != "'q'":  # on the command line, without quotes of YAML
        assert parse(None, [f"--training.init_from={text}"]).training.init_from == text
        assert parse(None, ["--data.val_split", text]).data.val_split == text


def test_a12_null_of_the_command_line() -> None:
    assert parse(None, ["--training.init_from=null"]).training.init_from is None
    assert parse(None, ["--data.val_split=null"]).data.val_split == "null"  # a text that may not be null


def test_c_mixed_precision_no_without_quotes(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    write_text(path, "training: {mixed_precision: no}\n")
    assert parse(path).training.mixed_precision == "no"
    assert parse(None, ["--training.mixed_precision", "no"]).training.mixed_precision == "no"
    assert parse(None, {"training.mixed_precision": "no"}).training.mixed_precision == "no"


def test_c_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "a.yaml"
    write_text(path, "training: {output_dir: ~/x}\ndata: {root: ~/y}\n")
    config = parse(path, ["--latent.vae=~/z", "--training.init_from", "~/run"])
    assert config.training.output_dir == f"{tmp_path}/x" and config.data.root == f"{tmp_path}/y"
    assert config.latent.vae == f"{tmp_path}/z" and config.training.init_from == f"{tmp_path}/run"


def commands(path: Path) -> Iterator[list[str]]:
    yield ["train", "segmentation", str(path)]
    yield ["data", "check", str(path)]
    yield ["data", "stats", str(path)]
    yield ["benchmark", str(path)]


@pytest.mark.parametrize(
    "content", [b"\xff\xfea\x00", b"\xe9", b"a: [", b"- 3", b"3", b"\0", b"training: {steps: 1, steps: 2}"]
)
def test_c_broken_config_files(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    for words in commands(path):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"unetdiff: {path}") and error.count("\n") == 1


def test_c_a_config_that_is_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import os

    os.mkfifo(tmp_path / "fifo.yaml")
    for path in (tmp_path, tmp_path / "fifo.yaml", tmp_path / "no\x1bsuch.yaml"):
        assert main(["train", "segmentation", str(path)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "\x1b" not in error


def test_c_unknown_task_names_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "task=sgmentation: must be one of segmentation, diffusion, joint. Did you mean segmentation?"
    path = tmp_path / "a.yaml"
    write_text(path, "task: sgmentation\n")
    assert main(["train", "segmentation", str(path)]) == 2
    assert capsys.readouterr().err == f"unetdiff: {line} Edit {path}.\n"
    assert main(["train", "sgmentation"]) == 2
    assert capsys.readouterr().err == f"unetdiff: {line}\n"
    assert read_yaml(path) == {"task": "sgmentation"}
