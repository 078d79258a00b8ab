"""Several processes: one training in all of them, the same as in one, and one message where it fails."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from unetdiff.cli import processes
from unetdiff.cli.main import main
from unetdiff.cli.processes import torch_launch
from unetdiff.config.reading import parse, to_yaml
from unetdiff.config.schema import RunConfig
from unetdiff.errors import UserError
from unetdiff.models.unet import UNet
from unetdiff.training import checkpoints, runtime
from unetdiff.training.logger import read_lines
from unetdiff.training.trainer import train

pytestmark = pytest.mark.xdist_group("two_processes")  # one worker: the processes are started once

TINY: dict[str, Any] = {
    "data.scenes.train_images": 16,
    "data.scenes.val_images": 2,
    "segmentation.losses": {"cross_entropy": 1.0},
    "training.mixed_precision": "no",
    "training.steps": 6,
    "training.seed": 1,
    "training.batch_size": 8,
    "training.log_every": 100,
}
BATCH_NORM = {
    "model.encoder.name": "classic",
    "model.encoder.channels": [4, 8],
    "model.encoder.mean": [0.5] * 3,  # with those of 16 images AdamW amplifies rounding to 2e-5 in six steps
    "model.encoder.std": [0.5] * 3,
}
RESIDUAL = {
    "model.encoder.channels": [4, 8],
    "model.residual.layers_per_block": 1,
    "model.residual.norm_num_groups": 1,
    "model.conditioning.attention_levels": [],
}
SCENES = {
    "model.encoder.channels": [8, 16],
    "model.residual.layers_per_block": 1,
    "model.residual.norm_num_groups": 4,
    "model.residual.dropout": 0.0,
    "model.conditioning.cross_attention_dim": 8,
    "model.conditioning.attention_levels": [1],
    "model.conditioning.attention_head_dim": 8,
    "diffusion.preview_steps": 2,
    "diffusion.preview_per_class": 1,
    "training.batch_size": 4,
    "training.eval_batch_size": 4,
}
CASES = {
    "batch_norm": BATCH_NORM,  # of the whole batch
    "checkpointing": BATCH_NORM | {"training.gradient_checkpointing": True},
    "dropout": RESIDUAL | {"model.residual.dropout": 0.5},
    "frozen": BATCH_NORM | {"training.freeze_encoder": 0.5},
    "gradients": SCENES
    | {"joint.weighting": "gradient_norm", "joint.log_gradients": 1, "training.steps": 1, "training.log_every": 1},
    "ghost": BATCH_NORM | {"training.batch_norm_images": 2},
    "lines": SCENES
    | {"data.scenes.val_images": 7, "training.log_every": 2, "training.validate_every": 3},  # odd: none counts twice
}
TASKS = {"gradients": "joint"}
SAME = ["batch_norm", "checkpointing", "dropout", "frozen", "ghost", "lines"]


@dataclass
class TwoProcesses:
    """What two processes wrote and printed."""

    folder: Path
    status: int
    stderr: str

    def weights(self, case: str) -> dict[str, torch.Tensor]:
        return weights(self.folder / f"{case}-two")


def weights(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = checkpoints.newest(run)
    assert checkpoint is not None
    return load_file(checkpoint / checkpoints.MODEL)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunConfig]:
    folder = tmp_path_factory.mktemp("runs")

    network = {key.rpartition(".")[2]: value for key, value in BATCH_NORM.items()}
    UNet(encoder=network, heads={"segmentation": {"num_classes": 2}}).save_pretrained(folder / "start")

    def build(case: str, name: str, **training: Any) -> RunConfig:
        if CASES[case].get("training.freeze_encoder"):
            training["init_from"] = str(folder / "start")
        built = parse(None, {**TINY, **CASES[case]}, TASKS.get(case, "segmentation"))  # type: ignore[arg-type]
        return replace(built, training=replace(built.training, output_dir=str(folder / f"{case}-{name}"), **training))

    return build


@pytest.fixture(scope="module")
def two(config: Callable[..., RunConfig]) -> TwoProcesses:
    for case in CASES:
        built = config(case, "two")
        folder = Path(built.training.output_dir).parent
        (folder / f"{built.task}.{case}.yaml").write_text(to_yaml(built))
    launcher = torch_launch(2, free_port(), [])[:-2]  # without -m unetdiff
    command = [*launcher, str(Path(__file__).with_name("two_processes.py"))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(folder)], env=environment, capture_output=True, text=True, timeout=200)
    return TwoProcesses(folder, done.returncode, done.stderr)


def test_a4_torchrun_on_a_cpu_trains_in_two_processes(two: TwoProcesses) -> None:
    for rank in "01":
        assert (two.folder / f"statuses-{rank}.txt").read_text() == " ".join("0" * len(CASES)), two.stderr[-3000:]
    for case in CASES:
        assert json.loads((two.folder / f"{case}-two" / "summary.json").read_text())["processes"] == 2
    assert two.stderr.count("finished. Next:") == len(CASES)
    assert two.stderr.count("1 threads, 2 processes on 1 machine (gloo, MULTI_CPU)") >= len(CASES)


@pytest.mark.parametrize("case", SAME)
def test_a3_one_and_two_processes_give_the_same_weights(
    case: str, two: TwoProcesses, config: Callable[..., RunConfig]
) -> None:
    """Statistics of BatchNorm, running ones included, and masks of dropout are those of the whole batch."""
    one = weights(train(config(case, "one")))
    for name, value in two.weights(case).items():
        torch.testing.assert_close(value, one[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["dropout", "ghost"])
def test_a3_accumulation_gives_the_same_weights(case: str, two: TwoProcesses, config: Callable[..., RunConfig]) -> None:
    cut = weights(train(config(case, "cut", gradient_accumulation_steps=2)))
    for name, value in two.weights(case).items():
        torch.testing.assert_close(value, cut[name], rtol=1e-5, atol=1e-5)


def test_a3_batch_norm_over_two_processes_is_that_of_the_whole_batch(two: TwoProcesses) -> None:
    torch.manual_seed(0)
    x, gradient = torch.randn(2, 6, 5, 4, 3, dtype=torch.float64) + 9
    norm = nn.BatchNorm2d(5).double()
    out = norm(x.requires_grad_())
    x_gradient, weight, bias = torch.autograd.grad(out, [x, norm.weight, norm.bias], gradient)
    parts = [load_file(two.folder / f"norm-{rank}.safetensors") for rank in "01"]
    torch.testing.assert_close(torch.cat([part["out"] for part in parts]), out)
    torch.testing.assert_close(torch.cat([part["gradient"] for part in parts]), x_gradient)
    torch.testing.assert_close(parts[0]["d_weight"] + parts[1]["d_weight"], weight)
    torch.testing.assert_close(parts[0]["d_bias"] + parts[1]["d_bias"], bias)
    for part in parts:
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            torch.testing.assert_close(part[name], norm.state_dict()[name])


def test_a3_two_processes_log_what_one_logs(two: TwoProcesses, config: Callable[..., RunConfig]) -> None:
    """Each validation image counts once, and there is one set of files."""
    one, both = train(config("lines", "logged")), two.folder / "lines-two"
    summary = json.loads((both / "summary.json").read_text())
    assert summary["processes"] == 2 and summary["images"] == 24
    theirs, ours = (read_lines(run / "metrics.jsonl") for run in (one, both))
    assert [(line["kind"], line["step"]) for line in ours] == [(line["kind"], line["step"]) for line in theirs]
    for line, expected in zip(ours, theirs, strict=True):
        for key in ("lr", "loss", "segmentation/mean_iou", "segmentation/loss", "segmentation/images"):
            assert (key in line) == (key in expected)
            if key in expected:
                assert line[key] == pytest.approx(expected[key], rel=1e-3)
    assert ours[-1]["segmentation/images"] == 7
    files = [sorted(path.relative_to(run) for path in run.rglob("*.png")) for run in (one, both)]
    assert files[0] == files[1] and files[0]


def test_a3_two_processes_weigh_and_compare_the_gradients_of_the_whole_batch(
    two: TwoProcesses, config: Callable[..., RunConfig]
) -> None:
    one, both = train(config("gradients", "one")), two.folder / "gradients-two"
    theirs, ours = (read_lines(run / "metrics.jsonl") for run in (one, both))
    assert [line["kind"] for line in ours] == [line["kind"] for line in theirs]
    expected, line = (next(line for line in lines if line["kind"] == "gradients") for lines in (theirs, ours))
    assert line.keys() == expected.keys()
    for group in ("decoder.0", "encoder.0", "all"):
        for metric in ("segmentation_norm", "diffusion_norm", "cosine"):
            assert line[f"{group}/{metric}"] == pytest.approx(expected[f"{group}/{metric}"], rel=1e-3)
    torch.testing.assert_close(two.weights("gradients")["weighting.norms"], weights(one)["weighting.norms"])
    assert weights(one)["weighting.norms"].min() > 0


def test_a4_accelerate_launch_is_replaced_by_torchs_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    class Launcher:
        def cmdline(self) -> list[str]:
            return ["accelerate", "launch", "--num_processes", "2", "--cpu", "-m", "unetdiff", "train", "joint"]

    started: list[list[str]] = []
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(psutil.Process, "parent", lambda self: Launcher())
    monkeypatch.setattr(os, "execv", lambda file, command: started.append(command))
    processes.relaunch_on_cpu(["train", "joint"])
    assert started == [torch_launch(2, "29500", ["train", "joint"])]


@pytest.mark.slow
def test_a4_accelerate_launch(config: Callable[..., RunConfig]) -> None:
    built = config("ghost", "launched")
    file = Path(built.training.output_dir).with_suffix(".yml")
    file.write_text(to_yaml(built))
    command = f"-m accelerate.commands.launch --num_processes 2 --cpu --main_process_port {free_port()} -m unetdiff"
    subprocess.run([sys.executable, *command.split(), "train", "segmentation", str(file)], check=True, timeout=200)
    assert json.loads((Path(built.training.output_dir) / "summary.json").read_text())["processes"] == 2


def test_two_processes_sum_their_confusion_matrices(two: TwoProcesses) -> None:
    for rank in "01":
        assert (two.folder / f"matrix-{rank}.txt").read_text() == str([[[3, 4], [0, 0]]] * 2)


def test_a4_one_process_fails_and_the_other_ends_without_a_message(two: TwoProcesses) -> None:
    assert two.status != 0
    assert two.stderr.count("unetdiff: ") == 1, two.stderr[-3000:]
    assert "\nunetdiff: x.png: truncated. Replace it.\n" in two.stderr


def test_a4_a_launcher_that_started_another_number_of_processes(
    config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)  # of a kind that Accelerate does not launch on
    with pytest.raises(UserError, match="^WORLD_SIZE=2: must be 1, the processes that train"):
        runtime.build_accelerator(config("ghost", "one").training)


@pytest.mark.parametrize("command", ["predict", "evaluate", "compare"])
def test_a4_other_commands_run_in_one_process(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)  # no store: the main process reports
    assert main([command, "runs/run"]) == 2
    assert f"unetdiff: {command}: must run in a single process" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    assert main([command, "runs/run"]) == 1
    assert capsys.readouterr().err == ""
