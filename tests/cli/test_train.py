"""`unetdiff train`: overrides, flags, refusals that write nothing, and a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unetdiff.cli.main import main
from unetdiff.cli.train import next_commands
from unetdiff.config.reading import from_yaml
from unetdiff.config.schema import RunConfig


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RunConfig, str]]:
    """What `train` was called with, instead of training."""
    calls: list[tuple[RunConfig, str]] = []

    def train(config: RunConfig, command: str) -> Path:
        calls.append((config, command))
        return Path(config.training.output_dir)

    monkeypatch.setattr("unetdiff.training.trainer.train", train)
    return calls


def test_config_flags_and_overrides(config: Path, trained: list[tuple[RunConfig, str]], tmp_path: Path) -> None:
    words = ["--resume", "--training.steps", "7", "--output_dir", str(tmp_path / "a b"), "--training.compile"]
    assert main(["train", "joint", str(config), *words]) == 0
    [(given, command)] = trained
    assert given.task == "joint"
    assert given.training.resume and not given.training.overwrite and given.training.compile
    assert given.training.steps == 7
    assert given.training.output_dir == str(tmp_path / "a b")
    assert command == (
        f"unetdiff train joint {config} --resume --training.steps 7 --output_dir '{tmp_path}/a b' --training.compile"
    )


def test_without_a_file(trained: list[tuple[RunConfig, str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "segmentation", "--training.steps=3", "--overwrite"]) == 0
    [(given, _)] = trained
    assert given.training.steps == 3 and given.training.overwrite
    assert given.data.name == "scenes"
    line = "No dataset was given: using the embedded scenes. For a config of your own images: unetdiff init PATH\n"
    assert line in capsys.readouterr().err
    assert main(["train", "segmentation", "scenes"]) == 0
    assert line not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--training.lr", "3"], "unknown option --training.lr. Did you mean --training.optimizer.lr?"),
        (["--lr", "3"], "unknown option --lr. Did you mean --training.optimizer.lr?"),
        (["--resum"], "unknown option --resum. Did you mean --training.resume?"),
        (["--training.steps", "many"], "training.steps=many: must be an integer or null."),
        (["--training.epochs=3", "--training.steps=2"], "training.steps=2: must be null with training.epochs=3.0."),
        (["--resume", "--overwrite"], "training.resume=true: must be false with training.overwrite=true."),
        (["more.yaml"], "unexpected argument 'more.yaml'"),
    ],
)
def test_refusals_are_one_line_and_write_nothing(
    config: Path, trained: list, words: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "joint", str(config), "--output_dir", str(tmp_path / "run"), *words]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"unetdiff: {line}")
    assert captured.err.count("\n") == 1 and captured.out == ""
    assert not trained
    assert [path.name for path in tmp_path.iterdir()] == ["joint.yaml"]


def test_another_task_than_the_files(config: Path, trained: list, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "diffusion", str(config)]) == 2
    assert "task=joint: must be diffusion to train diffusion. Train joint, or edit" in capsys.readouterr().err


def test_unknown_task(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "segmentaton"]) == 2
    line = "task=segmentaton: must be one of segmentation, diffusion, joint. Did you mean segmentation?"
    assert capsys.readouterr().err == f"unetdiff: {line}\n"


def test_print_config(config: Path, trained: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "joint", str(config), "--print_config", "--training.seed", "9"]) == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    printed = from_yaml(tmp_path / "printed.yaml")
    assert printed.training.seed == 9 and printed.model.encoder.channels == [8, 16]
    assert not trained


def test_help_names_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "joint", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--print_config" in text and "--resume" in text
    assert "--training.optimizer.encoder_lr" in text and "Peak learning rate of the encoder; None" in text


def test_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 2
    assert summary["command"].startswith("unetdiff train joint ")
    # a second run in the same place is refused, and leaves it as it was
    before = sorted(path.stat().st_mtime_ns for path in run.rglob("*"))
    assert main(["train", "joint", str(run.parent / "joint.yaml"), "--output_dir", str(run)]) == 2
    error = capsys.readouterr().err
    assert "--resume" in error and "--overwrite" in error and error.count("\n") == 1
    assert sorted(path.stat().st_mtime_ns for path in run.rglob("*")) == before


@pytest.mark.parametrize("words", [["{config}"], ["{config}", "--resume", "--training.steps=3"], ["joint/scenes"]])
def test_the_task_of_the_file(config: Path, trained: list[tuple[RunConfig, str]], words: list[str]) -> None:
    assert main(["train", *(word.format(config=config) for word in words)]) == 0
    [(given, _)] = trained
    assert given.task == "joint"


def test_a_file_without_a_task(config: Path, trained: list, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text("training: {steps: 2}\n")
    assert main(["train", str(config)]) == 2
    assert f"Run `unetdiff train TASK {config}`" in capsys.readouterr().err
    assert main(["train", str(config.with_name("joins.yaml"))]) == 2
    assert "joins.yaml: does not exist. Did you mean" in capsys.readouterr().err


def test_a_run_in_place_of_a_config(run: Path, trained: list, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([str(run)], ["joint", str(run)]):
        assert main(["train", *words]) == 2
        assert f"Continue it with `unetdiff train joint {run}/config.yaml --resume`" in capsys.readouterr().err


def test_what_comes_next(config: Path, trained: list, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "joint", str(config), "--output_dir", "runs/a b"]) == 0
    expected = ["evaluate 'runs/a b'", "predict 'runs/a b' IMAGE", "sample 'runs/a b'", "app 'runs/a b'"]
    assert capsys.readouterr().err.splitlines()[-4:] == [f"  unetdiff {command}" for command in expected]
    assert [line.split()[1] for line in next_commands("segmentation", Path("x"))] == ["evaluate", "predict", "app"]
    assert [line.split()[1] for line in next_commands("diffusion", Path("x"))] == ["evaluate", "sample", "app"]


def test_a_resumed_run_that_was_shortened_by_a_flag(
    run: Path, trained: list, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Its length becomes that of the file, with a notice before the training; a flag that names a length has none."""
    file = tmp_path / "longer.yaml"
    file.write_text((run.parent / "joint.yaml").read_text().replace("{steps: 2", "{epochs: 90"))
    words = ["train", "joint", str(file), "--output_dir", str(run), "--resume"]
    assert main(words) == 0
    notice = f"{run}: its length changes from 2 steps to 90 epochs, as in {file}. --training.steps 2 keeps its length."
    assert capsys.readouterr().err.startswith(f"unetdiff: {notice}\n")
    for more in (["--training.steps", "2"], ["--training.epochs=90"]):
        assert main([*words, *more]) == 0
        assert "its length changes" not in capsys.readouterr().err
    assert main(["train", str(run / "config.yaml"), "--resume"]) == 0
    assert "its length changes" not in capsys.readouterr().err
