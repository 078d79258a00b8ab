"""Reading a config: files, overrides, unknown keys and values of the wrong type."""

from __future__ import annotations

import typing
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path

import pytest
import yaml

from unetdiff.config.help import options_help
from unetdiff.config.reading import from_yaml, load, parse, to_yaml
from unetdiff.config.schema import KEYS, LEAVES, RunConfig, describe, nearest_key
from unetdiff.errors import UserError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("task: segmentation\ntraining: {steps: 5, optimizer: {lr: 1e-3}}\n")
    return path


def every_field(cls: type, prefix: str = "") -> list[tuple[str, type, str]]:
    """(dotted key, class that holds it, its name), without unetdiff.config.schema."""
    found = []
    hints = typing.get_type_hints(cls)
    for item in fields(cls):
        hint = hints[item.name]
        inner = [h for h in (hint, *typing.get_args(hint)) if is_dataclass(h)]
        if inner:
            found += every_field(inner[0], f"{prefix}{item.name}.")
        else:
            found.append((prefix + item.name, cls, item.name))
    return found


def test_every_key_is_known_and_helped() -> None:
    text = " ".join(options_help().split())
    expected = [key for key, _, _ in every_field(RunConfig)]
    assert expected == LEAVES
    for key in expected:
        assert f"--{key} " in text, key
    # the words of an attribute docstring, two levels down
    assert "Half-life of a parameter value in the average, in training images." in text
    assert "Contrast of the background texture, 0 (plain) to 1." in text


def test_file_overrides_and_back(file: Path, tmp_path: Path) -> None:
    words = [
        "--training.steps=7",
        "--data.augment.crop",
        "[8, 16]",
        "--training.compile",
        "--model.encoder.norm",
        "group",
    ]
    config = load(file, words)
    assert config.training.optimizer.lr == 1e-3  # YAML itself reads 1e-3 as text
    assert config.training.steps == 7
    assert config.data.augment.crop == [8, 16]
    assert config.training.compile is True
    assert config == load(
        file,
        {"training": {"steps": 7, "compile": True}, "data.augment.crop": (8, 16), "model.encoder.norm": "group"},
    )
    (tmp_path / "back.yaml").write_text(to_yaml(config))
    assert from_yaml(tmp_path / "back.yaml") == config
    assert asdict(config).keys() == yaml.safe_load(to_yaml(config)).keys()


def test_defaults_are_those_of_the_classes() -> None:
    assert parse() == RunConfig()


def test_losses_are_added_on_the_command_line_and_replaced_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("segmentation: {losses: {dice: 2}}\n")
    assert parse(path).segmentation.losses == {"dice": 2.0}
    assert parse(path, ["--segmentation.losses.focal", "1"]).segmentation.losses == {"dice": 2.0, "focal": 1.0}


def test_overrides_leave_the_defaults_alone(file: Path) -> None:
    load(file, ["--segmentation.losses.focal", "1"])
    assert RunConfig().segmentation.losses == {"cross_entropy": 1.0, "dice": 1.0}


@pytest.mark.parametrize(
    ("unknown", "right"),
    [
        ("training.lr", "training.optimizer.lr"),
        ("lr", "training.optimizer.lr"),
        ("learning_rate", "training.optimizer.lr"),
        ("training.batchsize", "training.batch_size"),
        ("model.encoder.nam", "model.encoder.name"),
        ("encoder.name", "model.encoder.name"),
        ("data.augmentation.flip", "data.augment.flip"),
        ("diffusion.predction_type", "diffusion.prediction_type"),
        ("model.heads.segmentation.num_clases", "model.heads.segmentation.num_classes"),
    ],
)
def test_unknown_keys_name_the_nearest(unknown: str, right: str, tmp_path: Path, error_of) -> None:
    assert nearest_key(unknown) == right
    assert error_of(None, [f"--{unknown}", "3"]) == f"unknown option --{unknown}. Did you mean --{right}?"
    tree: typing.Any = 3
    for part in reversed(unknown.split(".")):
        tree = {part: tree}
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(tree))
    assert error_of(path) == f"unknown key {unknown}=3 in {path}. Did you mean {right}?"


def test_keys_that_are_not_alike_are_not_proposed(error_of: typing.Any) -> None:
    assert error_of(None, ["--gpu", "3"]) == "unknown option --gpu. `unetdiff train --help` lists the keys."
    assert error_of(None, ["--batch", "3"]) == "unknown option --batch. Did you mean --training.batch_size?"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--training.optimizer.lr", "fast"], "training.optimizer.lr=fast: must be a number."),
        (["--training.steps", "1.5"], "training.steps=1.5: must be an integer or null."),
        (["--training.resume", "maybe"], "training.resume=maybe: must be true or false."),
        (["--data.size", "[x,3]"], "data.size=[x,3]: must be a list of integers or null."),
        (["--training.optimizer.lr=null"], "training.optimizer.lr=null: must be a number."),
        (
            ["--data.name", "scene"],
            f"data.name=scene: must be {describe(KEYS['data.name'])}. Did you mean scenes?",
        ),
        (
            ["--model.heads.segmentation.num_classes", "x"],
            "model.heads.segmentation.num_classes=x: must be an integer.",
        ),
        (["--segmentation.losses", "3"], "segmentation.losses=3: must be a mapping of names to numbers."),
        (["--training.steps"], "--training.steps: must be followed by an integer or null."),
        (["--training", "3"], "--training is a section. Set its keys one by one, e.g. --training.output_dir."),
        (["other.yaml"], "unexpected argument 'other.yaml'. Give the config file first, then --key value."),
    ],
)
def test_wrong_value_on_the_command_line(file: Path, words: list[str], message: str, error_of) -> None:
    assert error_of(file, words) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: 5", "training=5: must be a section with keys such as training.output_dir. Edit FILE."),
        ("training:", "training=null: must be a section with keys such as training.output_dir. Edit FILE."),
        ("training: {optimizer: {lr: }}", "training.optimizer.lr=null: must be a number. Edit FILE."),
        ("training: {optimizer: {lr: [1]}}", "training.optimizer.lr=[1]: must be a number. Edit FILE."),
        ("training: {steps: true}", "training.steps=true: must be an integer or null. Edit FILE."),
        ("data: {root: 3}", "data.root=3: must be a string or null. Put it in quotes: '3'. Edit FILE."),
        (
            "- 3",
            "FILE: must be a mapping with the keys task, model, data, latent, segmentation, diffusion, joint, "
            "training (got [3]).",
        ),
    ],
)
def test_wrong_value_in_a_file(tmp_path: Path, text: str, message: str, error_of) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    assert error_of(path) == message.replace("FILE", str(path))


def test_unreadable_files(tmp_path: Path, file: Path, error_of) -> None:
    assert error_of(tmp_path / "rum.yaml") == f"config file {tmp_path}/rum.yaml: does not exist. Did you mean {file}?"
    (tmp_path / "b.yaml").write_text("a: [")
    assert f"{tmp_path}/b.yaml: must be YAML" in error_of(tmp_path / "b.yaml")
    assert "line 1" in error_of(tmp_path / "b.yaml")
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    assert f"{tmp_path}/c.yaml: must be UTF-8" in error_of(tmp_path / "c.yaml")
    assert error_of(file, None, "diffusion") == (
        f"task=segmentation: must be diffusion to train diffusion. Train segmentation, or edit {file}."
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("training: {steps: 5, accumulation: 2}", "unknown key training.accumulation=2."),
        ("diffusion: {condition: picture}", "diffusion.condition=picture: must be one of"),
    ],
)
def test_run_of_another_version(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        from_yaml(path)
    message = str(caught.value)
    assert message.startswith(f"{path} was written by another version of unetdiff ({reason}")
    assert message.endswith("). Train the run again with this version.") and "\n" not in message
