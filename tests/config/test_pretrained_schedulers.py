"""`model.pretrained`: the forward process follows from the scheduler of its directory."""

from __future__ import annotations

from pathlib import Path

import pytest
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler, FlowMatchHeunDiscreteScheduler

from unetdiff.config.command_line import assign
from unetdiff.config.pretrained import _noise, exported_model
from unetdiff.config.schema import RunConfig
from unetdiff.diffusion.objectives import build_scheduler
from unetdiff.diffusion.processes.load import process_of


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchHeunDiscreteScheduler(500, 3.0),
        EDMEulerScheduler(0.01, 50.0, 0.7, num_train_timesteps=400, rho=5.0),
        EDMDPMSolverMultistepScheduler(prediction_type="v_prediction"),
    ],
)
def test_the_process_is_the_schedulers(scheduler, tmp_path: Path) -> None:
    scheduler.save_pretrained(tmp_path / "scheduler")
    config = RunConfig()
    for key, value in _noise(tmp_path):
        assign(config, key, value)
    ours, theirs = process_of(build_scheduler(config.diffusion)), process_of(scheduler)
    assert vars(ours) == vars(theirs) and ours.describe() == theirs.describe()


def test_a_run_that_was_killed_while_it_replaced_its_best_weights(tmp_path: Path) -> None:
    config = tmp_path / ".old-best" / "unet" / "config.json"
    config.parent.mkdir(parents=True)
    config.write_text("{}")
    assert exported_model(tmp_path) == tmp_path / ".old-best"
    assert exported_model(tmp_path / ".old-best") is None
