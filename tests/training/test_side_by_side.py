"""Trainings at the same time: their share of the threads, one message, and no process left when they stop."""

from __future__ import annotations

import errno
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from unetdiff.config.quickstart import quickstart_configs
from unetdiff.errors import UserError
from unetdiff.files.records import read_object
from unetdiff.training.side_by_side import Prefixed, _train_lane, train_side_by_side

LONG = 100_000
"""Steps that no test waits for."""


def lanes_in(folder, **changes):
    """The tiny segmenter and the tiny joint run, side by side."""
    configs = quickstart_configs(folder, tiny=True)
    for config in configs.values():
        for key, value in changes.items():
            setattr(config.training, key, value)
    return [{task: configs[task]} for task in ("segmentation", "joint")]


def test_trains_all_lanes_with_their_share_of_the_threads(tmp_path, capfd):
    train_side_by_side(lanes_in(tmp_path), threads=2)
    for task in ("segmentation", "joint"):
        summary = read_object(tmp_path / task / "summary.json")
        assert summary["steps"] == 4 and summary["threads"] == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if "training and" in line]
    assert sorted(line.split(": ")[0] for line in lines) == ["joint", "segmentation"]


def test_the_first_error_is_reported_and_the_others_stop_with_a_checkpoint(tmp_path):
    lanes = lanes_in(tmp_path, steps=LONG, checkpoint_every=LONG, validate_every=LONG)
    (tmp_path / "joint").write_text("a file in the place of the run")
    with pytest.raises(UserError, match="joint: must be a folder"):
        train_side_by_side(lanes, threads=2)
    assert not (tmp_path / "segmentation" / "summary.json").exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), "runs/x: no space left on device. Free space"),
        (MemoryError(), "out of memory. Use smaller images"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory. Use smaller images"),
    ],
)
def test_what_is_no_bug_is_one_line_of_the_process_that_started_it(monkeypatch, error, message):
    def train(config, command):
        raise error

    ours, theirs = multiprocessing.Pipe()
    monkeypatch.setattr("unetdiff.training.trainer.train", train)
    monkeypatch.setattr("unetdiff.training.side_by_side.os.setpgrp", lambda: None)
    monkeypatch.setattr(sys, "stderr", sys.stderr)  # restored
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr("unetdiff.training.side_by_side.threading.Thread.start", lambda thread: None)
        patch.setenv("OMP_NUM_THREADS", "1")
        _train_lane({"joint": None}, 1, None, theirs)
    assert str(ours.recv()).startswith(message)


STOPPED = """
from pathlib import Path
from test_side_by_side import LONG, lanes_in
from unetdiff.training.side_by_side import train_side_by_side
if __name__ == "__main__":
    train_side_by_side(lanes_in(Path({folder!r}), steps=LONG, checkpoint_every=2, validate_every=LONG), threads=2)
"""


def start(folder):
    """`train_side_by_side` in a process, when both runs have a checkpoint."""
    script = folder / "script.py"
    script.write_text(STOPPED.format(folder=str(folder)))
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    env = {**os.environ, "PYTHONPATH": paths}
    process = subprocess.Popen([sys.executable, str(script)], env=env, stderr=subprocess.PIPE)

    def both_have_a_checkpoint():
        assert process.poll() is None, "it ended"
        return all(newest_step(folder / task) for task in ("segmentation", "joint"))

    wait_until(both_have_a_checkpoint)
    return process


def newest_step(run):
    names = sorted(path.name for path in (run / "checkpoints").glob("step-????????"))
    return int(names[-1].removeprefix("step-")) if names else 0


def wait_until(condition, seconds=400):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.1)


@pytest.mark.skipif(not hasattr(os, "setpgrp"), reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_training_goes_on_when_it_is_stopped_or_killed(tmp_path, number):
    process = start(tmp_path)
    trainings = [one for one in psutil.Process(process.pid).children() if "spawn_main" in " ".join(one.cmdline())]
    before = [newest_step(tmp_path / task) for task in ("segmentation", "joint")]
    process.send_signal(number)
    message = process.communicate()[1].decode()
    assert len(trainings) == 2
    assert not psutil.wait_procs(trainings, timeout=300)[1], "a training goes on"
    assert all(
        newest_step(tmp_path / task) >= step for task, step in zip(("segmentation", "joint"), before, strict=True)
    )
    if number == signal.SIGINT:
        assert process.returncode and "Stopped by Ctrl-C. The same command continues" in message


def test_each_line_begins_with_its_run():
    stream = io.StringIO()
    prefixed = Prefixed(stream, "joint: ")
    for text in ("1/2 st", "eps\n2/2 steps\n", "\n", "end"):
        prefixed.write(text)
    assert stream.getvalue() == "joint: 1/2 steps\njoint: 2/2 steps\n\n" and not prefixed.isatty()
