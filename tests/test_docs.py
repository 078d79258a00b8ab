"""The Python examples of the README and of docs/ run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch

from unetdiff.config.schema import KEYS

ROOT = Path(__file__).parents[1]


def run(page: str, section: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run a section's Python in an empty folder; the names that it leaves."""
    found = re.search(rf"## {section}\n.*?```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert found
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(compile(found[1], page, "exec"), names)
    return names


def test_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run("README.md", "In Python", tmp_path, monkeypatch)
    assert names["noise"].shape == (1, 3, 64, 64) and set(names["unet"].heads) == {"segmentation", "diffusion"}


def test_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run("docs/index.md", "In Python", tmp_path, monkeypatch)
    assert names["logits"].shape == (1, 21, 250, 333) and names["noise"].shape == (1, 3, 64, 64)


def test_experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run("docs/experiments.md", "Custom experiments", tmp_path, monkeypatch)
    # (0.81 + 0.84 + 0.83) / 3 = 0.82667 against (0.80 + 0.79 + 0.83) / 3 = 0.80667
    assert names["record"].findings == ["Horizontal flips improve pixel accuracy by 2.0 points (3 seeds)."]
    assert names["record"].findings[0] in names["page"].read_text()


def test_interop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run("docs/interop.md", "In Python", tmp_path, monkeypatch)
    assert names["logits"].shape == (1, 21, 32, 32) and len(names["images"]) == 2


def test_from_smp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(smp.Unet("resnet18", encoder_weights=None, classes=3).state_dict(), tmp_path / "best.pth")
    run("docs/interop.md", "From segmentation_models_pytorch", tmp_path, monkeypatch)
    assert (tmp_path / "mine" / "segmentation.json").is_file()


def test_datasets_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run("docs/data.md", "Datasets in Python", tmp_path, monkeypatch)
    assert (names["run"] / "latest").is_dir()


def test_custom_training_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run("docs/data.md", "Custom training loops", tmp_path, monkeypatch)
    assert 0 <= names["matrix"].compute()["mean_iou"] <= 1


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOREIGN = {
    *("cpu", "num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port", "use_fsdp"),
    *("nproc_per_node", "nnodes", "node_rank", "rdzv_backend", "rdzv_endpoint", "rdzv_id", "master_addr"),
    *("job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "signal", "logdir", "no-deps"),
    "master_port",
}
"""Options of other programs: accelerate, torchrun, sbatch and srun, tensorboard, pip."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_option_and_config_key_exists(page: Path) -> None:
    sources = [
        path.read_text() for folder in ("unetdiff", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")
    ]
    words = set(re.findall(r"\"--([\w-]+)\"", "".join(sources)))
    for option in re.findall(r"(?<![\w-])--([a-zA-Z][\w.-]*)", page.read_text()):
        option = option.rstrip(".")
        if "." in option:  # names under a mapping (segmentation.losses.focal) are the user's
            assert option in KEYS or option.rpartition(".")[0] in KEYS, f"--{option}"
        else:
            assert option in words or option in FOREIGN, f"--{option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_to_files_and_lines(page: Path) -> None:
    for text, target in re.findall(r"\[([^\]]+)\]\(([^)#\s]*(?:#[^)\s]*)?)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if target.startswith(("http", "mailto")) or not path:
            continue
        file = (page.parent / path).resolve()
        assert file.exists(), f"{target} does not exist"
        if re.fullmatch(r"L\d+", anchor):  # a link to a line names what is on it
            line = file.read_text().splitlines()[int(anchor[1:]) - 1]
            assert text.strip("`") in line, f"{target}: {text} is not in {line.strip()!r}"
