"""One backbone definition, three runs, one page; a second call trains nothing."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from unetdiff.cli.quickstart import _train, metrics_table, run
from unetdiff.config.quickstart import TASKS, quickstart_configs
from unetdiff.config.reading import load, to_yaml

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("tiny", [False, True])
def test_one_backbone(tiny):
    configs = quickstart_configs(Path("q"), tiny)
    assert tuple(configs) == TASKS
    models = [asdict(config.model) for config in configs.values()]
    data = [asdict(config.data) for config in configs.values()]
    assert models[0] == models[1] == models[2] and data[0] == data[1] == data[2]
    assert configs["joint"].training.output_dir == str(Path("q") / "joint")
    configs["joint"].model.encoder.channels = [1]
    assert configs["diffusion"].model.encoder.channels != [1], "the runs share an object"


@pytest.mark.parametrize("task", TASKS)
def test_config_files_say_the_same(task):
    wanted = quickstart_configs(Path("runs"))[task]
    found = load(CONFIGS / task / "scenes.yaml", task=task)
    wanted.training.output_dir = found.training.output_dir
    assert to_yaml(found) == to_yaml(wanted)  # as text: the difference is shown line by line


def test_metrics_table():
    report = {"runs": [{"name": "joint", "metrics": {"minutes": 3.0, "segmentation.mean_iou": 0.8512}}]}
    lines = metrics_table(report).strip("\n").splitlines()
    assert lines[0].split() == ["time", "mIoU", "pixel", "accuracy", "class", "consistency"]
    assert lines[1].split() == ["joint", "3.0", "min", "0.851", "–", "–"]


def test_quickstart_and_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("UNETDIFF_NO_BAR", "1")
    page = run(tmp_path, tiny=True)
    assert page == tmp_path / "report.html" and page.is_file()
    report = json.loads(page.with_suffix(".json").read_text())
    assert [one["heads"] for one in report["runs"]] == [["segmentation"], ["diffusion"], ["segmentation", "diffusion"]]
    assert all(one["metrics"]["minutes"] > 0 for one in report["runs"])
    assert "class consistency" in capsys.readouterr().out

    # interrupted: joint has no summary, and its last checkpoint is the end of the run
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / "joint" / "summary.json").unlink()
    run(tmp_path, tiny=True)
    assert (tmp_path / "joint" / "summary.json").is_file()
    untouched = [path for path in before if path.relative_to(tmp_path).parts[0] in ("segmentation", "diffusion")]
    assert untouched and all(path.stat().st_mtime_ns == before[path] for path in untouched)

    # finished: nothing is written
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    run(tmp_path, tiny=True)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
    assert yaml.safe_load((tmp_path / "joint" / "config.yaml").read_text())["task"] == "joint"


@pytest.mark.parametrize(
    ("threads", "accelerator", "finished", "side_by_side"),
    [(2, False, [], True), (1, False, [], False), (2, True, [], False), (2, False, ["joint"], False)],
)
def test_several_threads_train_the_joint_run_and_the_others_at_once(
    tmp_path, monkeypatch, threads, accelerator, finished, side_by_side
):
    trained = []
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: accelerator)
    monkeypatch.setattr("unetdiff.training.trainer.train", lambda config, command: trained.append(config.task))
    monkeypatch.setattr(
        "unetdiff.training.side_by_side.train_side_by_side",
        lambda lanes, threads, command: trained.extend(["+".join(lane) for lane in lanes]),
    )
    configs = quickstart_configs(tmp_path, tiny=True)
    _train({task: config for task, config in configs.items() if task not in finished}, "unetdiff quickstart")
    apart = [task for task in TASKS if task not in finished]
    assert trained == (["segmentation+diffusion", "joint"] if side_by_side else apart)
