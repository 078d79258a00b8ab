"""A project's folder: its environment, packages and runs are not searched, and training does not read them."""

from __future__ import annotations

from pathlib import Path

import datasets as hf
import numpy as np
import pytest
from PIL import Image

from unetdiff.data.discovery.discover import discover
from unetdiff.data.discovery.stray_folders import common_folder, is_stray, stray_folders
from unetdiff.data.parquet import open_parquet
from unetdiff.errors import FileError

RNG = np.random.default_rng(0)


def photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)


def mask(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.repeat([[0] * 4 + [255] * 4], 8, 0).astype(np.uint8)).save(path)


def images_and_masks(folder: Path) -> None:
    for i in range(6):
        photo(folder / f"images/{i}.png")
        mask(folder / f"masks/{i}.png")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """An environment, packages and a run, each with images, and nothing else."""
    for name in ("venv", "node_modules", "runs/cells"):
        for i in range(6):
            photo(tmp_path / name / f"lib/python3.11/x/{i}.png")
    (tmp_path / "venv" / "pyvenv.cfg").touch()
    (tmp_path / "venv" / "rows.parquet").touch()
    (tmp_path / "runs" / "cells" / "config.yaml").touch()
    (tmp_path / "runs" / "cells" / "checkpoints").mkdir()
    (tmp_path / "package.json").write_text("{}")
    return tmp_path


def test_what_is_stray(project: Path) -> None:
    assert [one.name for one in stray_folders(project)] == ["node_modules", "cells", "venv"]
    assert not is_stray(project / "runs") and common_folder(project) == project
    with pytest.raises(FileError, match="no images found"):
        discover(project)


def test_images_and_masks_in_a_sub_folder(project: Path) -> None:
    images_and_masks(project / "cells")
    found = discover(project)
    assert (found.task, found.root) == ("segmentation", project / "cells")
    assert (found.keys["images"], found.keys["masks"]) == ("images", "masks")
    assert len(found.left_out) == 3


def test_images_and_masks_next_to_them(project: Path) -> None:
    """Folders by name: training reads nothing else."""
    images_and_masks(project)
    found = discover(project)
    assert (found.task, found.root, found.keys["images"]) == ("segmentation", project, "images")


def test_images_in_a_sub_folder_and_next_to_them(project: Path) -> None:
    for i in range(6):
        photo(project / f"photos/{i}.png")
    assert discover(project).root == project / "photos"
    photo(project / "more.png")
    with pytest.raises(FileError, match="next to other folders with images .node_modules, runs/cells, venv."):
        discover(project)


def test_a_folder_with_a_dot_in_its_name(tmp_path: Path) -> None:
    images_and_masks(tmp_path / "a/v1.0")
    assert discover(tmp_path).task == "segmentation"


def test_tables_are_opened_without_a_progress_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    hf.Dataset.from_dict({"text": ["a", "b"]}).to_parquet(tmp_path / "data" / "rows.parquet")
    capsys.readouterr()
    assert len(open_parquet([tmp_path / "data" / "rows.parquet"])) == 2
    assert capsys.readouterr().err == "" and not hf.are_progress_bars_disabled()
