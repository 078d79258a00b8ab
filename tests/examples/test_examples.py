"""Each example runs in its tiny setting and leaves what it promises."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def call(name: str, *words: str) -> Path:
        monkeypatch.setattr(sys, "argv", [name, "--tiny", "--output", str(tmp_path / "run"), *words])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return tmp_path / "run"

    return call


def test_every_example_is_run() -> None:
    """Here, or in a file of its own: test_draw_network.py, test_masks_from_colors.py, test_minimal_unet.py."""
    assert sorted(path.stem for path in EXAMPLES.glob("*.py")) == [
        "compare_heads",
        "draw_network",
        "label_and_draw",
        "layout_to_image",
        "masks_from_colors",
        "minimal_unet",
        "text_to_image",
        "train_conditional_ddpm",
        "train_voc_segmenter",
    ]


def test_train_voc_segmenter(example) -> None:
    run = example("train_voc_segmenter")
    assert (run / "example-overlay.png").is_file()
    settings = json.loads((run / "best" / "segmentation.json").read_text())
    assert settings["classes"] == ["background", "red", "green"]
    assert json.loads((run / "summary.json").read_text())["steps"] == 3


def test_an_example_that_is_run_again_keeps_its_training(example) -> None:
    run = example("train_voc_segmenter")
    written = (run / "summary.json").stat().st_mtime_ns
    assert example("train_voc_segmenter") == run
    assert (run / "summary.json").stat().st_mtime_ns == written


def test_train_conditional_ddpm(example) -> None:
    run = example("train_conditional_ddpm")
    assert (run / "samples-guidance-1.png").is_file()
    assert (run / "samples-guidance-3.png").read_bytes() != (run / "samples-guidance-1.png").read_bytes()


def test_compare_heads(example, capsys: pytest.CaptureFixture[str]) -> None:
    folder = example("compare_heads")
    summaries = {
        task: json.loads((folder / task / "summary.json").read_text())
        for task in ("segmentation", "diffusion", "joint")
    }
    both = summaries["joint"]["parameters"]
    for part in ("encoder", "mid_block", "decoder"):  # one backbone: whatever the heads, its size is the same
        assert {summary["parameters"][part] for summary in summaries.values()} == {both[part]}
    assert (folder / "report.html").stat().st_size > 10_000
    assert str(folder / "report.html") in capsys.readouterr().out


def test_text_to_image(example, text_encoder: Path) -> None:
    run = example("text_to_image", "--encoder", str(text_encoder))
    assert (run / "samples-plain.png").read_bytes() != (run / "samples-negative.png").read_bytes()
    assert (run / "best" / "text_encoder" / "model.safetensors").is_file()


def test_layout_to_image(example) -> None:
    run = example("layout_to_image")
    assert (run / "layouts.png").is_file()
    assert json.loads((run / "best" / "unet" / "config.json").read_text())["in_channels"] == 3 + 8


def test_label_and_draw(example) -> None:
    run = example("label_and_draw")
    assert Image.open(run / "label_and_draw.png").width > 6 * 32
