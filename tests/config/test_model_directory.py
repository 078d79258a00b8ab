"""What a path without a model is: the message names it, and what to give instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from unetdiff.config.model_directory import is_run, model_directory, runs_below
from unetdiff.errors import UserError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the finished run runs/cells, the new runs/nuclei, images, and the config cells.yaml."""
    for name in ("cells", "nuclei"):
        (tmp_path / "runs" / name / "checkpoints").mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").touch()
    (tmp_path / "runs" / "cells" / "latest" / "unet").mkdir(parents=True)
    (tmp_path / "runs" / "cells" / "latest" / "unet" / "config.json").touch()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").touch()
    (tmp_path / "data" / "masks").mkdir(parents=True)
    (tmp_path / "data" / "masks" / "a.png").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "cells.yaml").write_text("task: segmentation\ntraining:\n  output_dir: runs/cells\n")
    (tmp_path / "new.yaml").write_text("task: diffusion\ntraining.output_dir: runs/new\n")
    (tmp_path / "notes.txt").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run() -> None:
    assert model_directory("runs/cells") == Path("runs/cells/latest")
    assert model_directory("runs/cells/latest") == Path("runs/cells/latest")
    assert is_run(Path("runs/cells")) and not is_run(Path("runs"))
    assert runs_below(Path()) == [Path("runs/cells"), Path("runs/nuclei")]


@pytest.mark.parametrize(
    "path, message",
    [
        ("runs/cell", "runs/cell: does not exist. Did you mean runs/cells?"),
        ("run/cells", "run/cells: does not exist. Give a run directory, such as runs/cells, runs/nuclei."),
        ("runs/zzz", "runs/zzz: does not exist. Runs there: runs/cells, runs/nuclei."),
        ("runs", "runs: is a folder of runs, not a run. Give one of them: runs/cells, runs/nuclei."),
        ("images", "images: is a folder of images, not a run. Give a run directory, such as runs/cells, runs/nuclei."),
        ("data", "data: is a folder of images, not a run. Give a run directory, such as runs/cells, runs/nuclei."),
        ("images/a.png", "images/a.png: is an image, not a run. Give a run directory, such as runs/cells, "),
        ("notes.txt", "notes.txt: is a file, not a run. Give a run directory, such as runs/cells, runs/nuclei."),
        ("cells.yaml", "cells.yaml: is a config, not a run. Give its run: runs/cells."),
        ("new.yaml", "new.yaml: is a config, not a run. Train it (unetdiff train diffusion new.yaml), then give its "),
        ("runs/cells/config.yaml", "runs/cells/config.yaml: is the config of a run. Give the run: runs/cells."),
        ("runs/cells/checkpoints", "runs/cells/checkpoints: is a part of a run, not a model. Give the run: runs/cells"),
        ("runs/nuclei", "runs/nuclei: contains no model (no best/unet, latest/unet or unet). Has the run completed"),
        ("other", "other: contains no model (no best/unet, latest/unet or unet). Give a run directory, such as "),
    ],
)
def test_what_it_is_instead(path: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        model_directory(path)
    assert str(error.value).startswith(message)


def test_a_handful_of_runs(here: Path) -> None:
    for number in range(8):
        (here / "many" / f"run{number}" / "checkpoints").mkdir(parents=True)
        (here / "many" / f"run{number}" / "config.yaml").touch()
    with pytest.raises(UserError, match="many/run3, many/run4 and 3 more[.]$"):
        model_directory("many")
