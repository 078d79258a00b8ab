"""Models of the page: tiny random networks in the layout of a run directory, and a page that is served."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from unetdiff.app.runs import AppRun, load_runs
from unetdiff.config.reading import to_yaml
from unetdiff.config.schema import RunConfig
from unetdiff.config.training import TrainingConfig
from unetdiff.data.config import DataConfig, ScenesConfig
from unetdiff.data.scenes import DIGITS, PALETTE
from unetdiff.diffusion.conditioning.classes import ClassConditioner
from unetdiff.diffusion.conditioning.layouts import LayoutConditioner
from unetdiff.diffusion.config import DiffusionConfig
from unetdiff.diffusion.objectives import build_scheduler
from unetdiff.diffusion.pipeline import GenerationPipeline
from unetdiff.models.config import (
    ConditioningConfig,
    DiffusionHeadConfig,
    EncoderConfig,
    HeadsConfig,
    ModelConfig,
    SegmentationHeadConfig,
)
from unetdiff.models.unet import UNet
from unetdiff.segmentation.pipeline import SegmentationPipeline

CLASSES = ["background", *DIGITS]
CPU = torch.device("cpu")


def write_run(folder: Path, task: str, condition: str = "class", seed: int = 0) -> Path:
    """A run directory of scenes of 32 x 32 pixels with random weights in best/."""
    heads = HeadsConfig(
        segmentation=SegmentationHeadConfig(len(CLASSES)) if task != "diffusion" else None,
        diffusion=DiffusionHeadConfig(3) if task != "segmentation" else None,
    )
    conditioners: dict[str, Any] = {
        "class": lambda: ClassConditioner(10, 16, labels=list(DIGITS)),
        "layout": lambda: LayoutConditioner(len(CLASSES), 16, 4, 4, CLASSES, PALETTE.tolist()),
    }
    config = RunConfig(
        task=task,  # type: ignore[arg-type]
        model=ModelConfig(
            in_channels=7 if condition == "layout" else 3,
            sample_size=32,
            encoder=EncoderConfig(channels=[8, 16]),
            conditioning=ConditioningConfig(cross_attention_dim=16, attention_levels=[1], attention_head_dim=8),
            heads=heads,
        ),
        data=DataConfig(scenes=ScenesConfig(train_images=8, val_images=6)),
        diffusion=DiffusionConfig(condition=condition),  # type: ignore[arg-type]
        training=TrainingConfig(output_dir=str(folder)),
    )
    torch.manual_seed(seed)
    unet = UNet(**config.model.network()).eval()
    for name, parameter in unet.named_parameters():
        if parameter.ndim > 1 and (not parameter.any() or "heads" in name):  # residual networks start as zeros
            torch.nn.init.normal_(parameter, std=0.3)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    if task != "segmentation":
        pipeline = GenerationPipeline(unet, build_scheduler(config.diffusion), conditioners[condition]())
        pipeline.save_pretrained(folder / "best")
    if task != "diffusion":
        SegmentationPipeline(unet, CLASSES, PALETTE.tolist()).save_pretrained(folder / "best")
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run directories by name: joint, segmenter, denoiser, layout."""
    root = tmp_path_factory.mktemp("app")
    return {
        "joint": write_run(root / "joint", "joint"),
        "segmenter": write_run(root / "segmenter", "segmentation", seed=1),
        "denoiser": write_run(root / "denoiser", "diffusion", seed=2),
        "layout": write_run(root / "layout", "diffusion", "layout", seed=3),
    }


@pytest.fixture(scope="session")
def runs(folders: dict[str, Path]) -> dict[str, AppRun]:
    """The same, loaded."""
    return dict(zip(folders, load_runs(list(folders.values()), CPU), strict=True))


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """serve(run, ...): the address of a page of these runs."""
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    from unetdiff.app.page import build_page, launch

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "page"))
    pages = []

    def start(*runs: AppRun) -> str:
        page = build_page(runs)
        pages.append(page)
        return launch(page)

    yield start
    for page in pages:
        page.close(verbose=False)
