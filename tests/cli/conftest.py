"""A joint run of seconds, made by the command line itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from unetdiff.cli.main import main

TINY = """
task: joint
model:
  encoder: {channels: [8, 16]}
  residual: {layers_per_block: 1, norm_num_groups: 4}
  conditioning: {cross_attention_dim: 8, attention_levels: [1], attention_head_dim: 8}
data:
  scenes: {train_images: 16, val_images: 4}
diffusion: {preview_steps: 2, preview_per_class: 1}
training: {steps: 2, batch_size: 4, validate_every: 2, log_every: 1}
"""


@pytest.fixture(autouse=True)
def _threads_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # `main` sets it where it is not set


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "joint.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run directory with both heads."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "joint.yaml").write_text(TINY)
    assert main(["train", "joint", str(folder / "joint.yaml"), "--output_dir", str(folder / "run")]) == 0
    return folder / "run"
