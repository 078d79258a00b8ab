"""The entry point: help, refusals as one line with exit status 2, interruptions, and how quick help is."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from unetdiff.cli import main as module
from unetdiff.cli.main import COMMANDS, main
from unetdiff.errors import TrainingStopped, UserError

LISTED = [
    "quickstart",
    "init",
    "train",
    "configs",
    "evaluate",
    "predict",
    "sample",
    "experiment",
    "compare",
    "app",
    "data",
    "export",
    "push",
    "benchmark",
]


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_the_commands_that_exist(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    text = capsys.readouterr().out
    rows = text.partition("commands:\n")[2].partition("\n\n")[0].splitlines()
    assert [row.split()[0] for row in rows] == LISTED == list(COMMANDS)
    for path, _ in COMMANDS.values():
        assert callable(importlib.import_module(path).main)


@pytest.mark.parametrize("command", LISTED)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"unetdiff {command}" in capsys.readouterr().out


def test_help_is_quick_because_torch_is_not_imported() -> None:
    code = (
        "import sys; from unetdiff.cli.main import main; main(['--help']); "
        "print([m for m in ('torch', 'diffusers', 'jsonargparse', 'numpy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_python_m_unetdiff() -> None:
    result = subprocess.run([sys.executable, "-m", "unetdiff", "predcit"], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == (
        "unetdiff: unknown command 'predcit'. Did you mean predict? "
        "(one of quickstart, init, train, configs, evaluate, predict, sample, experiment, compare, app, data, export, "
        "push, benchmark)\n"
    )


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (
            UserError("data.root=x: must be an existing folder."),
            2,
            "unetdiff: data.root=x: must be an existing folder.\n",
        ),
        (TrainingStopped("stopped by signal 15. Go on with --resume.", 143), 143, "unetdiff: stopped by signal 15. "),
        (KeyboardInterrupt(), 130, "unetdiff: interrupted\n"),
    ],
)
def test_exit_status(
    error: BaseException,
    status: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Command:
        @staticmethod
        def main(argv: list[str]) -> int:
            raise error

    monkeypatch.setattr(module, "import_module", lambda name: Command)
    assert main(["train"]) == status
    assert capsys.readouterr().err.startswith(line)


def test_threads_are_the_physical_cores_unless_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.cpu_count", lambda logical: {False: 6, True: 12}[logical])
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(4)), raising=False)
    monkeypatch.setattr(module.os, "environ", environ := {})
    module._set_threads()
    assert environ == {"OMP_NUM_THREADS": "4"}
    environ["OMP_NUM_THREADS"] = "3"
    module._set_threads()
    assert environ == {"OMP_NUM_THREADS": "3"}


def test_unknown_option_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "run", "--step", "5"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "unknown argument '--step'. Did you mean --num_inference_steps? See unetdiff sample --help." in error
    assert main(["sample", "run", "--xyzzy"]) == 2
    assert capsys.readouterr().err == "unetdiff: unknown argument '--xyzzy'. See unetdiff sample --help.\n"
    assert main(["train"]) == 2
    assert capsys.readouterr().err.startswith("unetdiff: missing task (one of segmentation,")
