"""What is published next to the code: the wheel, the citation, the image's recipe."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from contextlib import suppress
from email.parser import BytesParser
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import yaml
from packaging.metadata import Metadata
from packaging.specifiers import SpecifierSet

from unetdiff import __version__
from unetdiff.config.shipped import shipped_configs

ROOT = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves folders in its source."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("unetdiff", "configs"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
    subprocess.run([*PIP, "wheel", *options, str(folder / "source")], check=True, timeout=200)
    [path] = folder.glob("*.whl")
    return path


def test_the_metadata_of_the_wheel_are_valid(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        text = archive.read(name)
    metadata = Metadata.from_email(text, validate=True)
    assert (metadata.name, str(metadata.version)) == ("unetdiff", __version__)
    assert metadata.description_content_type == "text/markdown" and "# unetdiff" in str(metadata.description)
    assert BytesParser().parsebytes(text)["License-Expression"] == "Apache-2.0"


def test_twine_accepts_the_wheel_and_its_description(wheel: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "twine", "--no-color", "check", "--strict", str(wheel)], capture_output=True, text=True
    )
    assert done.returncode == 0 and "PASSED" in done.stdout, done.stdout + done.stderr


def test_the_wheel_alone_finds_its_configs_and_templates(wheel: Path, tmp_path: Path) -> None:
    """As `pipx install unetdiff` leaves it, without a clone next to it."""
    target = tmp_path / "target"
    subprocess.run([*PIP, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)], check=True)
    code = (
        "import unetdiff, unetdiff.reports.templates; from unetdiff.cli.main import main; "
        "print(unetdiff.__file__); main(['configs']); main(['train', 'joint', 'scenes', '--print_config'])"
    )
    environment = {"PYTHONPATH": str(target), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    place, *lines = done.stdout.splitlines()
    assert done.returncode == 0 and place == str(target / "unetdiff" / "__init__.py"), done.stderr
    names = [name for name, _ in shipped_configs()]
    assert [line.split()[0] for line in lines[: len(names)]] == names
    assert yaml.safe_load("\n".join(lines[len(names) :]))["task"] == "joint"
    for name in ("reports/page.html", "reports/page.css", "reports/diagram.svg", "py.typed"):
        assert (target / "unetdiff" / name).is_file()


def test_the_constraints_install_on_the_oldest_python_of_the_project() -> None:
    """pymdown-extensions 13 needs 3.11.5: `make` failed with the 3.11.2 of Debian 12."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = project["requires-python"].removeprefix(">=") + ".0"
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    needs = {}
    for name in (line.partition("==")[0] for line in lines if line):
        with suppress(PackageNotFoundError):  # of another platform
            needs[name] = distribution(name).metadata["Requires-Python"]
    assert len(needs) > 50
    assert [name for name, spec in needs.items() if spec and oldest not in SpecifierSet(spec)] == []


def test_the_citation_is_that_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= set(citation)
    assert citation["version"] == __version__ == project["version"] and citation["license"] == project["license"]
    for work in (citation, *citation["references"]):
        assert work["title"] and all(set(author) & {"name", "family-names"} for author in work["authors"])


def test_the_image_is_made_from_files_that_exist() -> None:
    text = (ROOT / "Dockerfile").read_text()
    for sources in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE):
        assert all((ROOT / source).exists() for source in sources.split())
    assert "ARG BASE=" in text and "FROM ${BASE}" in text
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "runs", "data"} <= set(ignored)
