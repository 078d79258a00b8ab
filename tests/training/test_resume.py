"""A run that is killed with SIGKILL and resumed ends with the same bits as an uninterrupted one."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.forked import Forked, run_main
from unetdiff.config.reading import from_yaml, to_yaml
from unetdiff.config.schema import RunConfig
from unetdiff.errors import UserError
from unetdiff.training import checkpoints
from unetdiff.training.logger import read_lines
from unetdiff.training.trainer import train

Tiny = Callable[..., RunConfig]


def _tensors(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = checkpoints.newest(run)
    assert checkpoint is not None
    files = (checkpoints.MODEL, checkpoints.EMA_WEIGHTS, checkpoints.OPTIMIZER)
    return {f"{file}:{k}": v for file in files for k, v in load_file(checkpoint / file).items()}


def _assert_same_run(ours: Path, theirs: Path) -> None:
    a, b = _tensors(ours), _tensors(theirs)
    assert a.keys() == b.keys() and len(a) > 50
    assert [k for k in a if not torch.equal(a[k], b[k])] == []
    for name in ("best", "latest"):
        weights = "unet/diffusion_pytorch_model.safetensors"
        a, b = load_file(ours / name / weights), load_file(theirs / name / weights)
        assert all(torch.equal(a[k], b[k]) for k in b)
    states = []
    for run in (ours, theirs):
        state = json.loads((checkpoints.newest(run) / checkpoints.STATE).read_text())  # type: ignore[operator]
        states.append({k: v for k, v in state.items() if "minutes" not in k})
    assert states[0] == states[1]
    lines = [
        [(line["kind"], line["step"], line.get("loss")) for line in read_lines(r / "metrics.jsonl")]
        for r in (ours, theirs)
    ]
    assert [line[:2] for line in lines[0]] == [line[:2] for line in lines[1]]


def _start(config: RunConfig, tmp_path: Path, *flags: str) -> Forked:
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    return run_main(["train", config.task, str(file), *flags], tmp_path)


def _wait_for(run: Path, step: int, process: Forked) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        lines = read_lines(run / "metrics.jsonl") if (run / "metrics.jsonl").is_file() else []
        if lines and lines[-1]["step"] >= step:
            return
        assert process.poll() is None, process.stderr()
        time.sleep(0.005)
    raise AssertionError("the run did not get that far")


def test_killed_and_resumed_equals_never_stopped(tiny: Tiny, tmp_path: Path) -> None:
    settings = {"training__steps": 24, "training__log_every": 1, "training__checkpoint_every": 5}
    settings["training__validate_every"] = 9
    torch.set_num_threads(1)
    whole = train(tiny("joint", "whole", **settings))

    config = tiny("joint", "killed", **settings)
    run = Path(config.training.output_dir)
    for step in (7, 16):  # killed twice, off the checkpoints' steps
        process = _start(config, tmp_path, *(["--resume"] if run.exists() else []))
        _wait_for(run, step, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (run / "summary.json").exists()
    config.training.resume = True
    train(config)
    _assert_same_run(run, whole)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_with_a_checkpoint_and_a_word(
    tiny: Tiny, tmp_path: Path, number: signal.Signals, workers: int
) -> None:
    """As a terminal's Ctrl-C does, the signal reaches the loader's processes as well."""
    long = {"training__steps": 5000, "training__log_every": 1, "training__checkpoint_every": 5000}
    config = tiny("segmentation", training__num_workers=workers, **long)
    run = Path(config.training.output_dir)
    process = _start(config, tmp_path)
    _wait_for(run, 4, process)
    os.killpg(process.pid, number)
    status, errors = process.wait(), process.stderr()
    assert status == 128 + number, errors
    assert "continue with the same command and --resume" in errors.splitlines()[-1]
    word = {signal.SIGINT: "Ctrl-C"}.get(number, number.name)
    assert f"Stopped by {word}. " in errors.splitlines()[-1]
    step = json.loads((checkpoints.newest(run) / checkpoints.STATE).read_text())["step"]  # type: ignore[operator]
    assert read_lines(run / "metrics.jsonl")[-1]["step"] == step >= 4


def test_resume_after_each_kind_of_cut(tiny: Tiny) -> None:
    """What a kill can leave behind: half a directory, a swap cut in two, a torn last line."""
    frozen: dict[str, Any] = {  # its statistics come from the data at the start, and from the checkpoint after
        "model__encoder__name": "classic",
        "model__encoder__norm": "frozen",
        "model__decoder__norm": "frozen",
    }
    whole = train(tiny("segmentation", "whole", **frozen))
    config = tiny("segmentation", "cut", **frozen)
    run = train(config)
    newest = checkpoints.newest(run)
    assert newest is not None
    half = newest.with_name(".writing-step-00000008")
    half.mkdir()
    (half / checkpoints.MODEL).write_bytes(b"half")
    (newest / checkpoints.STATE).unlink()  # the newest is incomplete: the previous one is used
    (run / "best").rename(run / ".old-best")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    config.training.resume = True
    train(config)
    _assert_same_run(run, whole)


def test_resume_with_another_config_is_refused_by_key(tiny: Tiny) -> None:
    train(tiny("segmentation", training__steps=2))
    with pytest.raises(UserError, match=r"training.optimizer.lr=0.5: must be 0.001, as in the run"):
        train(tiny("segmentation", training__steps=2, training__resume=True, training__optimizer__lr=0.5))


def _rates(run: Path) -> dict[int, float]:
    return {line["step"]: line["lr"] for line in read_lines(run / "metrics.jsonl") if line["kind"] == "train"}


def test_a_finished_run_made_longer(tiny: Tiny, capsys: pytest.CaptureFixture) -> None:
    run = train(tiny("segmentation", training__steps=4, training__log_every=1))
    first = _rates(run)
    capsys.readouterr()
    train(tiny("segmentation", training__steps=8, training__log_every=1, training__resume=True))
    assert "length changed from 4 to 8 steps: from step 4 on" in capsys.readouterr().err
    never_stopped = _rates(train(tiny("segmentation", "whole", training__steps=8, training__log_every=1)))
    assert _rates(run) == first | {step: rate for step, rate in never_stopped.items() if step > 4}
    assert first[4] != never_stopped[4]
    assert from_yaml(run / "config.yaml").training.steps == 8
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["steps"], summary["replanned"]) == (8, [{"step": 4, "before": 4, "after": 8}])


def test_a_run_made_shorter_but_not_than_it_is(tiny: Tiny) -> None:
    settings: dict[str, Any] = {
        "training__checkpoint_every": 4,
        "training__validate_every": 4,
        "training__keep_checkpoints": 2,
    }
    run = train(tiny("segmentation", training__steps=8, **settings))
    (checkpoints.newest(run) / checkpoints.STATE).unlink()  # type: ignore[operator]
    with pytest.raises(
        UserError, match=r"training.steps=4: must be above the 4 steps that .*step-00000004 has done. Give more, or 8"
    ):
        train(tiny("segmentation", training__steps=4, training__resume=True, **settings))
    assert from_yaml(run / "config.yaml").training.steps == 8 and (run / "summary.json").is_file()
    train(tiny("segmentation", training__steps=6, training__resume=True, **settings))
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["steps"], summary["replanned"]) == (6, [{"step": 4, "before": 8, "after": 6}])


def test_occupied_directories(tiny: Tiny, tmp_path: Path) -> None:
    run = train(tiny("segmentation", training__steps=2))
    before = (run / "metrics.jsonl").read_text()
    with pytest.raises(
        UserError, match="must be empty .got a run.. Continue it with --resume, or delete it with --overwrite"
    ):
        train(tiny("segmentation", training__steps=2))
    assert (run / "metrics.jsonl").read_text() == before
    train(tiny("segmentation", training__steps=3, training__overwrite=True))
    kept = from_yaml(run / "config.yaml").training  # what was trained, not how it was begun
    assert not kept.overwrite and not kept.resume
    assert read_lines(run / "metrics.jsonl")[-1]["step"] == 3
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").touch()
    with pytest.raises(UserError, match="must be empty or contain a run .got other files"):
        train(tiny("segmentation", "foreign", training__overwrite=True))
    assert (foreign / "thesis.tex").exists()


def test_a_finished_run_is_not_trained_again(tiny: Tiny) -> None:
    run = train(tiny("segmentation", training__steps=2))
    before = _tensors(run)
    train(tiny("segmentation", training__steps=2, training__resume=True))
    after = _tensors(run)
    assert all(torch.equal(after[k], before[k]) for k in before)
