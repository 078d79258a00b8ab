"""Experiment options as parsed from the command line, and runs that train in seconds."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

from unetdiff.cli.parser import Parser, split_overrides
from unetdiff.config.reading import override, parse, to_yaml
from unetdiff.config.schema import RunConfig, Task
from unetdiff.config.validation.data import needs_layout
from unetdiff.data.build import build_dataset
from unetdiff.experiments import EXPERIMENTS
from unetdiff.training.tasks.build import build_task
from unetdiff.training.trainer import train

TINY = {
    "model": {
        "encoder": {"channels": [8, 16]},
        "residual": {"layers_per_block": 1, "norm_num_groups": 4},
        "conditioning": {"cross_attention_dim": 8, "attention_levels": [1], "attention_head_dim": 8},
    },
    "data": {"scenes": {"train_images": 24, "val_images": 12}},
    "diffusion": {"preview_steps": 2, "preview_per_class": 1},
    "training": {"steps": 2, "batch_size": 4, "eval_batch_size": 5, "validate_every": 2, "log_every": 1},
}


@pytest.fixture
def parse_args() -> Callable[..., tuple[argparse.Namespace, list[str]]]:
    """parse_args("budget", "--train_steps", "4", ...): the experiment's options and the dotted overrides."""

    def parse_words(name: str, *words: str) -> tuple[argparse.Namespace, list[str]]:
        parser = Parser(name, name)
        import_module(EXPERIMENTS[name][0]).add_arguments(parser)
        options = [option for action in parser._actions for option in action.option_strings]
        overrides, others = split_overrides(words, options)
        return parser.parse_strictly(others), overrides

    return parse_words


@pytest.fixture
def options() -> Callable[..., argparse.Namespace]:
    """options(module, *words): an experiment's options, without dotted overrides."""

    def parsed(module: ModuleType, *words: object) -> argparse.Namespace:
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        return parser.parse_args([str(word) for word in words])

    return parsed


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., RunConfig]:
    """tiny_config(task, folder, **{"dotted.key": value}): a config that trains in a second or two."""

    def config(task: Task, folder: Path, **overrides: object) -> RunConfig:
        tree = {**TINY, "training": {**TINY["training"], "output_dir": str(folder)}}
        return override(parse(None, tree, task), overrides)

    return config


@pytest.fixture(scope="session")
def joint_run(tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., RunConfig]) -> Path:
    """A trained run directory with both heads."""
    return train(tiny_config("joint", tmp_path_factory.mktemp("experiments") / "joint"))


@pytest.fixture
def background_is_ignored(joint_run: Path, tmp_path: Path) -> Path:
    """The segmenter of that run, with the background as its ignore index."""
    model = Path(shutil.copytree(joint_run / "best", tmp_path / "ignored"))
    shutil.copy(joint_run / "config.yaml", model)
    settings = json.loads((model / "segmentation.json").read_text())
    (model / "segmentation.json").write_text(json.dumps({**settings, "ignore_index": 0}))
    return model


@pytest.fixture
def make_run(tmp_path: Path, tiny_config: Callable[..., RunConfig]) -> Callable[..., Path]:
    """make_run("name", task, seed=0, **{"dotted.key": value}): a finished run without training."""

    def make(name: str, task: str = "diffusion", seed: int = 0, **overrides: object) -> Path:
        folder = tmp_path / name
        config = tiny_config(task, folder, **overrides)
        torch.manual_seed(seed)
        masks, layout = task != "diffusion", needs_layout(config)
        train_set, val = (build_dataset(config.data, split, masks, layout) for split in ("train", "val"))
        built = build_task(config, train_set, val)
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(to_yaml(config))
        summary = {"task": task, "steps": 1, "minutes": 0.1, "parameters": {}}
        (folder / "summary.json").write_text(json.dumps(summary))
        built.save(folder / "best")
        return folder

    return make
