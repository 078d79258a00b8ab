"""Configs by name, in a checkout and in a wheel."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from setuptools import Distribution
from setuptools.command.build_py import build_py

from unetdiff.cli.main import main
from unetdiff.config.reading import load
from unetdiff.config.shipped import default_config, find_config, folder, shipped_configs, title_of
from unetdiff.errors import UserError

ROOT = Path(__file__).parents[2]


def test_names_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = folder() / "segmentation" / "scenes.yaml"
    for name in ("scenes", "segmentation/scenes", "scenes.yaml", "configs/segmentation/scenes.yaml"):
        assert find_config(name, "segmentation") == here
    assert find_config("joint/scenes") == folder() / "joint" / "scenes.yaml"
    Path("scenes").write_text("task: segmentation")  # a file goes first
    assert find_config("scenes", "segmentation") == Path("scenes")
    assert find_config("missing.yaml", "segmentation") == Path("missing.yaml")
    with pytest.raises(UserError, match=r"config voc_mobilenet: must be a file .* Did you mean voc_mobilenet_v2\?"):
        find_config("voc_mobilenet", "segmentation")
    with pytest.raises(
        UserError,
        match="config cifar10: must be of task joint .got one of diffusion.. Run `unetdiff train diffusion cifar10`",
    ):
        find_config("cifar10", "joint")


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert list(lines) == [name for name, _ in shipped_configs()] and len(lines) > 15
    assert lines["segmentation/scenes"].strip() == (
        "Digit segmentation on the embedded scenes; about three minutes on one core"
    )
    for _, path in shipped_configs():
        title, first = title_of(path), path.read_text().splitlines()[0]
        assert 10 < len(title) <= 118 and first.startswith(f"# {title}")
        assert re.fullmatch(r"[:.](\s.*)?", first.removeprefix(f"# {title}"))  # a whole sentence
    assert main(["configs", "joint/scenes"]) == 0
    assert capsys.readouterr().out == (folder() / "joint" / "scenes.yaml").read_text()
    assert main(["configs", "joint/scene"]) == 2
    assert "Did you mean joint/scenes?" in capsys.readouterr().err


def test_without_a_config() -> None:
    """The embedded scenes train in minutes; a segmenter of other data has a pretrained encoder, not 61 M weights."""
    for task in ("segmentation", "diffusion", "joint"):
        assert default_config(task, has_own_data=False) == folder() / task / "scenes.yaml"  # type: ignore[arg-type]
    path = default_config("segmentation", has_own_data=True)
    config = load(path, {"data.name": "voc_folder", "data.root": "."}, "segmentation", is_default=True)
    assert (config.model.encoder.name, config.model.encoder.weights) == ("mobilenet_v2", "imagenet")
    assert config.training.epochs and config.data.augment.crop
    assert default_config("diffusion", has_own_data=True) is None


def test_the_wheel_has_every_config_template_and_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """What setuptools would copy, by the repository's own pyproject.toml and setup.py."""
    monkeypatch.chdir(ROOT)
    found: list[Distribution] = []
    monkeypatch.setattr("setuptools.setup", lambda **options: found.append(Distribution(options)))
    exec(compile((ROOT / "setup.py").read_text(), "setup.py", "exec"), {})
    [distribution] = found
    distribution.parse_config_files()
    distribution.script_name = "setup.py"
    command = build_py(distribution)
    command.ensure_finalized()
    monkeypatch.setattr(command, "analyze_manifest", lambda: None)  # it would write unetdiff.egg-info
    command.manifest_files = {}
    target = Path(command.build_lib)
    written = {str(Path(name).relative_to(target)) for name in command.get_outputs(include_bytecode=0)}
    wanted = {f"unetdiff/configs/{name}.yaml" for name, _ in shipped_configs()}
    wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / "unetdiff").rglob("*") if path.suffix in SHIPPED}
    assert wanted <= written, sorted(wanted - written)
    assert not {name for name in written if not name.startswith("unetdiff/")}


SHIPPED = {".py", ".html", ".css", ".svg", ".typed", ".yaml"}
