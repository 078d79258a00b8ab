"""Several processes: one training in all of them, the same as in one, and one message where it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from unetdiff.cli.main import main
from unetdiff.config.reading import parse, to_yaml
from unetdiff.config.schema import RunConfig
from unetdiff.errors import UserError
from unetdiff.training import checkpoints, runtime
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
BATCH_NORM = {"model.encoder.name": "classic", "model.encoder.channels": [4, 8]}
RESIDUAL = {
    "model.encoder.channels": [4, 8],
    "model.residual.layers_per_block": 1,
    "model.residual.norm_num_groups": 1,
    "model.conditioning.attention_levels": [],
}
CASES = {
    "batch_norm": BATCH_NORM,  # of the whole batch
    "checkpointing": BATCH_NORM | {"training.gradient_checkpointing": True},
    "dropout": RESIDUAL | {"model.residual.dropout": 0.5},
    "frozen": BATCH_NORM | {"training.freeze_encoder": 0.5},
    "ghost": BATCH_NORM | {"training.batch_norm_images": 2},
}


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


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunConfig]:
    folder = tmp_path_factory.mktemp("runs")

    def build(case: str, name: str, **training: Any) -> RunConfig:
        built = parse(None, {**TINY, **CASES[case]}, "segmentation")
        return replace(built, training=replace(built.training, output_dir=str(folder / f"{case}-{name}"), **training))

    return build


@pytest.fixture(scope="module")
def two(config: Callable[..., RunConfig]) -> TwoProcesses:
    for case in CASES:
        built = config(case, "two")
        folder = Path(built.training.output_dir).parent
        (folder / f"{case}.yaml").write_text(to_yaml(built))
    script = Path(__file__).with_name("two_processes.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(folder)], env=environment, capture_output=True, text=True, timeout=200)
    return TwoProcesses(folder, done.returncode, done.stderr)


def test_a4_torchrun_on_a_cpu_trains_in_two_processes(two: TwoProcesses) -> None:
    for rank in "01":
        assert (two.folder / f"statuses-{rank}.txt").read_text() == " ".join("0" * len(CASES)), two.stderr[-3000:]
    for case in CASES:
        assert json.loads((two.folder / f"{case}-two" / "summary.json").read_text())["processes"] == 2
    assert two.stderr.count("finished. Next:") == len(CASES)


@pytest.mark.parametrize("case", CASES)
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
    assert f"unetdiff {command}: must run in a single process" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    assert main([command, "runs/run"]) == 1
    assert capsys.readouterr().err == ""
