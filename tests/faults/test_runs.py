"""Faults of run directories: data lost, runs that cannot be continued, failures without a way to go on."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import cache, reduce
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from unetdiff.cli.main import main
from unetdiff.config.reading import parse, to_yaml
from unetdiff.config.schema import RunConfig
from unetdiff.console import Console
from unetdiff.data.build import build_dataset
from unetdiff.errors import FileError, TrainingStopped, UserError
from unetdiff.files.locks import locked
from unetdiff.models.loading import WEIGHTS
from unetdiff.training import checkpoints, logger, nonfinite, overwriting, rundir, saver, trainer
from unetdiff.training.failure import explained
from unetdiff.training.logger import read_lines
from unetdiff.training.progress import Progress, read_progress
from unetdiff.training.signals import SIGNALS, stop_on_signals
from unetdiff.training.tasks.build import build_task
from unetdiff.training.tasks.segmentation import SegmentationTask
from unetdiff.training.trainer import Trainer, train

SMALL: dict[str, Any] = {
    "model.encoder.name": "classic",
    "model.encoder.channels": [4, 8],
    "model.encoder.norm": "batch",
    "model.decoder.norm": "batch",
    "model.conditioning.attention_levels": None,
    "model.conditioning.cross_attention_dim": None,
    "diffusion.condition": "none",
    "data.scenes.train_images": 4,
    "data.scenes.val_images": 2,
    "training.steps": 4,
    "training.batch_size": 2,
    "training.log_every": 3,
    "training.validate_every": 3,
    "training.checkpoint_every": 2,
    "training.keep_checkpoints": 9,
    "training.mixed_precision": "no",
}


@cache
def base(task: Any) -> RunConfig:
    return parse(None, SMALL, task)


def config_of(folder: Path, task: Any = "segmentation", **changes: Any) -> RunConfig:
    config = copy.deepcopy(base(task))
    for key, value in {"training__output_dir": str(folder), **changes}.items():
        *sections, name = key.split("__")
        setattr(reduce(getattr, sections, config), name, value)
    return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of four steps, with checkpoints of steps 2, 3 and 4."""
    return train(config_of(tmp_path_factory.mktemp("runs") / "whole"))


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def resume(run: Path, **changes: Any) -> Path:
    return train(config_of(run, training__resume=True, **changes))


def cut(run: Path, step: int) -> None:
    """Remove the checkpoints after a step, and what is written at the end."""
    for checkpoint in checkpoints.complete(run):
        if checkpoint.name > f"step-{step:08d}":
            shutil.rmtree(checkpoint)
    (run / "summary.json").unlink()


def listing(run: Path) -> list[str]:
    return sorted(str(p.relative_to(run)) for p in run.rglob("*") if "tensorboard" not in str(p))


def assert_same(run: Path, whole: Path) -> None:
    """The same files with the same bits, times aside."""
    assert listing(run) == listing(whole)
    for path in whole.rglob("*.safetensors"):
        other = load_file(run / path.relative_to(whole))
        assert all(torch.equal(other[k], v) for k, v in load_file(path).items()), path
    times = {"minutes", "train_minutes", "images_per_second", "data_wait"}
    lines = [
        [{k: v for k, v in line.items() if k not in times} for line in read_lines(r / "metrics.jsonl")]
        for r in (run, whole)
    ]
    assert lines[0] == lines[1]


def written(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ------------------------------------------------------------------------------------- data that is lost


def _site(run: Path) -> None:
    (run / "config.yaml").write_text("title: my site\n")


def _notes(run: Path) -> None:
    (run / "notes.txt").touch()


def _photo(run: Path) -> None:
    (run / "images" / "holiday.png").touch()


def _edited(run: Path) -> None:
    (run / "config.yaml").write_text(f"# mine\n{(run / 'config.yaml').read_text()}")


def _linked(run: Path) -> None:
    (run / "best").rename(run.parent / "elsewhere")
    (run / "best").symlink_to(run.parent / "elsewhere")


@pytest.mark.parametrize("change", [_site, _notes, _photo, _edited, _linked])
def test_a1_overwrite_deletes_only_what_a_run_wrote(run: Path, change: Callable[[Path], None]) -> None:
    change(run)
    before = written(run)
    with pytest.raises(UserError, match=r"(config.yaml|notes.txt|holiday.png|best): (must be|was not)"):
        train(config_of(run, training__overwrite=True))
    assert written(run) == before


def test_a1_inputs_and_the_working_directory_are_not_deleted(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "data").mkdir()
    for flag in ("overwrite", "resume"):
        with pytest.raises(UserError, match="data.root=.*/data: must be outside of training.output_dir="):
            options = {"data__name": "voc_folder", "data__root": str(run / "data"), f"training__{flag}": True}
            train(config_of(run, **options))
    (run / "data").rmdir()
    for place in (run, run / "images"):
        monkeypatch.chdir(place)
        with pytest.raises(UserError, match="It is or contains the working directory"):
            train(config_of(run, training__overwrite=True))
    monkeypatch.setenv("HOME", str(run / "images"))
    monkeypatch.chdir(run.parent)
    with pytest.raises(UserError, match="your home folder"):
        train(config_of(run, training__overwrite=True))


def test_a1_a_pipe_in_the_directory_is_refused(run: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="training.output_dir=.*: must be a folder"):
        train(config_of(tmp_path / "pipe"))
    (run / "metrics.jsonl").unlink()
    os.mkfifo(run / "metrics.jsonl")
    with pytest.raises(UserError, match="metrics.jsonl"):
        resume(run)
    with pytest.raises(UserError, match="metrics.jsonl"):
        train(config_of(run, training__overwrite=True))


def test_a10_results_without_checkpoints_and_a_mistyped_directory(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run / "checkpoints")
    before = written(run)
    with pytest.raises(UserError, match="training.resume=true: must be of a run with checkpoints/ .got .* with best"):
        resume(run)
    assert written(run) == before
    train(config_of(tmp_path / "mistyped", training__resume=True, training__steps=1))
    assert "mistyped: no checkpoint to resume; training starts at step 0" in capsys.readouterr().err


def test_a10_a_moved_run_continues_where_its_config_lies(run: Path, whole: Path, tmp_path: Path) -> None:
    cut(run, 2)
    moved = run.rename(tmp_path / "moved")
    config = moved / "config.yaml"
    before = written(whole)
    assert main(["train", "segmentation", str(config), "--resume"]) == 0
    assert written(whole) == before and not run.exists()
    assert_same(moved, whole)


def test_a17_a18_what_a_kill_leaves_is_mended(run: Path, whole: Path) -> None:
    stale = run / "latest" / "unet" / WEIGHTS
    save_file({k: v + 1 for k, v in load_file(stale).items()}, stale)
    newest = checkpoints.newest(run)
    assert newest is not None
    newest.rename(newest.with_name(f".old-{newest.name}"))
    (run / "best").rename(run / ".old-best")
    for name in (
        ".writing-best",
        "checkpoints/.writing-step-00000009",
        "checkpoints/step-00000003/.writing-state.json",
    ):
        (run / name).mkdir()
    (run / "images" / ".writing-step-000003-segmentation.png").touch()
    resume(run)
    assert_same(run, whole)


# ------------------------------------------------------------------------ what a checkpoint contradicts


def _state(run: Path, **changes: Any) -> None:
    file = checkpoints.newest(run) / "state.json"  # type: ignore[operator]
    state = json.loads(file.read_text())
    file.write_text(json.dumps({**state, **changes}))


def test_a5_renamed_or_reordered_classes(run: Path) -> None:
    identity = read_progress(checkpoints.newest(run)).identity  # type: ignore[arg-type]
    first, second, *others = identity["classes"]
    _state(run, identity={**identity, "classes": [second, first, *others]})
    with pytest.raises(UserError, match=f"was trained with class 0 = {second} .got {first}"):
        resume(run)
    _state(run, identity={**identity, "classes": ["cat"]})
    with pytest.raises(UserError, match=r"was trained with classes \[cat\] .got "):
        resume(run)
    scheduler = {"prediction_type": "epsilon"}
    _state(run, identity={**identity, "scheduler": scheduler})
    with pytest.raises(UserError, match="scheduler"):
        resume(run)


def test_a5_a_class_folder_is_renamed(tmp_path: Path) -> None:
    from PIL import Image

    for number, folder in enumerate(("train/cat", "train/dog", "val/cat", "val/dog")):
        (tmp_path / "data" / folder).mkdir(parents=True)
        Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / "data" / folder / f"{number}.png")
    options = {
        "data__name": "image_folder",
        "data__root": str(tmp_path / "data"),
        "data__size": [16, 16],
        "model__encoder__name": "residual",
        "model__encoder__norm": "group",
        "model__decoder__norm": "group",
        "model__residual__norm_num_groups": 2,
        "model__conditioning__cross_attention_dim": 4,
        "model__conditioning__attention_levels": [1],
        "model__conditioning__attention_head_dim": 4,
        "diffusion__condition": "class",
        "diffusion__preview_steps": 1,
        "training__steps": 1,
    }
    run = train(config_of(tmp_path / "run", "diffusion", **options))
    for split in ("train", "val"):
        (tmp_path / "data" / split / "cat").rename(tmp_path / "data" / split / "zebu")
    config = config_of(run, "diffusion", **options, training__resume=True)
    with pytest.raises(UserError, match=r"was trained with label 0 = cat .got dog; labels .cat, dog., now .dog, zebu."):
        train(config)


@pytest.fixture(scope="module")
def resumed(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A trainer with the weights of the run."""
    run = shutil.copytree(whole, tmp_path_factory.mktemp("resumed") / "run")
    resumed = Trainer(config_of(run, training__resume=True), None)
    resumed.close()
    return resumed


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("optimizer", lambda t: {}, "must have [0-9]+ tensors, as state.json says .got 0"),
        ("optimizer", lambda t: {k: v[:1] if v.ndim else v for k, v in t.items()}, "must be F32 of shape"),
        ("optimizer", lambda t: {k: v.int() for k, v in t.items()}, "must be F32 of shape .* .got I32"),
        ("optimizer", lambda t: {k: v * 0 + 9 for k, v in t.items()}, "must be of step 4, as state.json says .got 9"),
        ("optimizer", lambda t: {k.replace("unet", "net"): v for k, v in t.items()}, "must be of the same network"),
        ("model", lambda t: {k: v.to(torch.int8) for k, v in t.items()}, "must be F32 of shape .* got I8"),
        ("model", lambda t: {k: v.to(torch.complex64) for k, v in t.items()}, "of real numbers"),
        ("ema", lambda t: {k: v.half() for k, v in t.items()}, "must be F32 of shape .* got F16"),
        ("ema", lambda t: dict(list(t.items())[:5]), "tensors missing"),
    ],
)
def test_a19_tensors_that_do_not_fit(
    whole: Path, resumed: Trainer, tmp_path: Path, name: str, change: Any, message: str
) -> None:
    folder = Path(shutil.copytree(whole / "checkpoints" / "step-00000004", tmp_path / "step-00000004"))
    file = folder / f"{name}.safetensors"
    save_file({k: v.contiguous() for k, v in change(load_file(file)).items()}, file)
    with pytest.raises(FileError, match=f"{name}.safetensors: .*{message}"):
        checkpoints.load(folder, resumed.task, resumed.ema.task, resumed.optimizer)  # type: ignore[union-attr]


def test_a19_step_numbers_agree(run: Path) -> None:
    _state(run, images=9)
    with pytest.raises(FileError, match="'images' must be 8, 4 steps of 2 .got 9"):
        resume(run)
    _state(run, images=8)
    with (run / "metrics.jsonl").open() as file:
        first = file.readline()
    (run / "metrics.jsonl").write_text(first)
    with pytest.raises(FileError, match="metrics.jsonl: must reach step 4, as the checkpoint of step 4 says .got 3"):
        resume(run)
    newest = checkpoints.newest(run)
    assert newest is not None
    newest.rename(newest.with_name("step-00000005"))
    with pytest.raises(FileError, match="'step' must be that of its directory, step-00000005 .got 4"):
        resume(run)


def test_a20_a_denoiser_of_another_objective(tmp_path: Path) -> None:
    norms = {"model__encoder__norm": "group", "model__decoder__norm": "group"}
    config = config_of(tmp_path / "source", "diffusion", diffusion__prediction_type="epsilon", **norms)
    train_set, val = (build_dataset(config.data, split, False) for split in ("train", "val"))
    build_task(config, train_set, val).save(tmp_path / "source")

    def start(source: Path, **changes: Any) -> None:
        options = {"training__init_from": str(source), "training__steps": 1, **norms, **changes}
        train(config_of(tmp_path / "run", "diffusion", **options))

    message = "diffusion.prediction_type=v_prediction: must be epsilon, as training.init_from=.* was trained"
    with pytest.raises(UserError, match=message):
        start(tmp_path / "source")
    message = "diffusion.noise.beta_schedule=linear: must be squaredcos_cap_v2, as training.init_from="
    with pytest.raises(UserError, match=message):
        start(tmp_path / "source", diffusion__prediction_type="epsilon", diffusion__noise__beta_schedule="linear")
    start(tmp_path / "source" / "unet")  # only the weights


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"{", "must be JSON"),
        (b"\xff\xfe{}", "must be UTF-8"),
        (b"[]", "must be a JSON object"),
        ({"best": ...}, "no key 'best'"),
        ({"later": 1}, "unknown key 'later'"),
        ({"step": -1}, "'step' must be an integer of at least 0 .got -1"),
        ({"step": 2.5}, "'step' must be an integer"),
        ({"step": 3}, "must be that of its directory"),
        ({"validated": 9}, "must be at most 'step', 4 .got 9"),
        ({"scaler": []}, "'scaler' must be an object .got a list"),
        ({"replanned": [{"step": "x"}]}, "'replanned' must be"),
        ({"minutes": None}, "'minutes' must be a number .got null"),
    ],
)
def test_b8_state_json(tmp_path: Path, content: Any, message: str) -> None:
    folder = tmp_path / "step-00000004"
    folder.mkdir()
    if isinstance(content, dict):
        state = {**asdict(Progress(step=4)), **content}
        content = json.dumps({k: v for k, v in state.items() if v is not ...}).encode()
    (folder / "state.json").write_bytes(content)
    with pytest.raises(FileError, match=f"state.json: .*{message}"):
        read_progress(folder)


def test_b9_records_are_strict_json(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in [(whole / "summary.json").read_text(), *(whole / "metrics.jsonl").read_text().splitlines()]:
        json.loads(text, parse_constant=pytest.fail)
    monkeypatch.setattr(nonfinite, "gather_object", lambda names: names)
    with pytest.raises(TrainingStopped):
        nonfinite.skip_nonfinite({"loss": torch.tensor(torch.nan)}, ["a"], Progress(), 1, tmp_path, _Log())  # type: ignore[arg-type]
    assert json.loads((tmp_path / "nonfinite.json").read_text(), parse_constant=pytest.fail)["losses"] == {"loss": None}


class _Log:
    def log_metrics(self, *args: object) -> None: ...

    def info(self, text: str) -> None: ...


# --------------------------------------------------------------------------- directories that block a run


@pytest.mark.parametrize("flag", ["overwrite", "resume", None])
@pytest.mark.parametrize("operations", [0, 1, 4, 7])
def test_b2_a_kill_within_overwrite(
    run: Path, flag: str | None, operations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []

    def killed(path: Path) -> None:
        calls.append(path)
        if len(calls) > operations:
            raise KeyboardInterrupt
        delete_whole(path)

    delete_whole = overwriting.delete_whole
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(overwriting, "delete_whole", killed)
        rundir.open_run(config_of(run, training__overwrite=True, training__seed=5))
    new = config_of(run, training__seed=5, **({f"training__{flag}": True} if flag else {}))
    rundir.open_run(new)
    assert [path.name for path in run.iterdir()] == ["config.yaml"]
    assert "seed: 5" in (run / "config.yaml").read_text()


def test_b2_a_kill_within_the_first_write(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".writing-config.yaml").write_text("task: segm")
    for flags in ({}, {"training__resume": True}, {"training__overwrite": True}):
        rundir.check_run(config_of(tmp_path / "run", **flags))
    train(config_of(tmp_path / "run", training__steps=1))
    assert not (tmp_path / "run" / ".writing-config.yaml").exists()


def test_b10_a_run_that_failed_before_its_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise UserError("data.size: must be set")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="^data.size: must be set$"):
        patch.setattr(trainer, "optimizer_step", broken)
        train(config_of(tmp_path / "run"))
    assert (tmp_path / "run" / "config.yaml").exists()
    train(config_of(tmp_path / "run", training__steps=1, training__optimizer__lr=0.5))
    assert "lr: 0.5" in (tmp_path / "run" / "config.yaml").read_text()


def test_b10_a_config_written_by_hand_is_not_replaced(tmp_path: Path) -> None:
    text = "training: {steps: 1}  # mine\n"
    (tmp_path / "config.yaml").write_text(text)
    for flag in ("overwrite", "resume"):
        with pytest.raises(UserError, match="config.yaml: must be as a run wrote it"):
            train(config_of(tmp_path, training__steps=1, **{f"training__{flag}": True}))
    assert (tmp_path / "config.yaml").read_text() == text


def test_b5_two_processes_in_one_directory(run: Path) -> None:
    with locked(run):
        for flag in ("overwrite", "resume"):
            with pytest.raises(UserError, match=f"run: is in use by (process {os.getpid()}|another process)"):
                train(config_of(run, **{f"training__{flag}": True}))
        forked, ready = os.pipe()
        child = os.fork()
        if child == 0:  # a data loading process, which outlives its parent for a moment
            os.write(ready, b"1")
            signal.pause()
        os.read(forked, 1)
    try:
        with locked(run):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_b11_too_few_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (16, 16))
    message = "training.num_workers=1: must be 0 where 16 files may be open. Use 0, or raise the limit with ulimit -n"
    with pytest.raises(UserError, match=message):
        train(config_of(tmp_path / "run", training__num_workers=1))
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------ failures while training


def test_b1_a_full_disk_also_while_closing(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def cannot_close(self: logger.RunLogger) -> None:
        raise OSError(errno.ENOSPC, "closing")

    run = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(TrainingStopped) as stopped:
        patch.setattr(logger, "append_text", fails)
        patch.setattr(logger.RunLogger, "close", cannot_close)
        train(config_of(run))
    assert str(stopped.value) == (
        f"{run}/metrics.jsonl: no space left on device. The last complete checkpoint is "
        f"{run}/checkpoints/step-00000002; continue with the same command and --resume."
    )
    resume(run)
    assert_same(run, whole)


@pytest.mark.parametrize("code", [errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.EACCES, errno.ENOENT])
@pytest.mark.parametrize("error", [OSError, SafetensorError])
def test_b4_every_error_of_the_system(whole: Path, code: int, error: type[Exception]) -> None:
    text, path = os.strerror(code), str(whole / "checkpoints" / ".writing-step-00000005")
    raised = OSError(code, text, path) if error is OSError else SafetensorError(f"I/O error: {text} (os error {code})")
    ended = explained(raised, whole, 4, True)
    assert isinstance(ended, TrainingStopped) and ended.status == 1
    where = whole / "checkpoints" / "step-00000005" if error is OSError else whole
    assert str(ended).startswith(f"{where}: {text[0].lower()}{text[1:]}. The last complete checkpoint is {whole}/")


def test_b4_the_directory_is_deleted_while_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, add = tmp_path / "run", logger.LossMeter.add

    def deleting(self: logger.LossMeter, *args: Any) -> None:
        shutil.rmtree(run, ignore_errors=True)
        add(self, *args)

    monkeypatch.setattr(logger.LossMeter, "add", deleting)
    with pytest.raises(TrainingStopped, match=f"{run}: no such file or directory. No checkpoint"):
        train(config_of(run, training__log_every=99))
    assert not run.exists()


@pytest.mark.parametrize("place", ["file/run", "file", f"{'a' * 300}", f"new/{'a' * 300}/run"])
def test_b4_the_output_is_tested_before_the_work(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(trainer, "RunData", lambda *args: pytest.fail("read the data"))
    with pytest.raises(UserError, match="^training.output_dir=.*: must be (in a folder|a folder|writable)"):
        train(config_of(tmp_path / place))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


class _Gone:
    """A terminal that is gone."""

    encoding = "ascii"

    def write(self, text: str) -> int:
        text.encode("ascii")
        raise BrokenPipeError

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "/dev/full")

    def isatty(self) -> bool:
        raise ValueError("I/O operation on closed file")


@pytest.mark.parametrize("stream", [_Gone(), None])
def test_b6_a_lost_terminal(tmp_path: Path, stream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    train(config_of(tmp_path / "rün", training__steps=1))
    assert (tmp_path / "rün" / "summary.json").is_file()


def test_b6_an_encoding_without_the_letter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "out").open("w", encoding="ascii") as file:
        monkeypatch.setattr(sys, "stderr", file)
        Console().write("rün\n")
    assert (tmp_path / "out").read_text() == "r\\xfcn\n"


def test_b6_hangup_stops_a_run_unless_it_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert signal.SIGHUP in SIGNALS
    add, sent = logger.LossMeter.add, []

    def hang_up(self: logger.LossMeter, *args: Any) -> None:
        add(self, *args)
        if not sent:
            sent.append(1)
            os.kill(os.getpid(), signal.SIGHUP)

    monkeypatch.setattr(logger.LossMeter, "add", hang_up)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with pytest.raises(
            TrainingStopped, match="step-00000002; continue with the same command and --resume"
        ) as stopped:
            train(config_of(tmp_path / "run"))
        assert stopped.value.status == 128 + signal.SIGHUP
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
        with stop_on_signals() as request:
            os.kill(os.getpid(), signal.SIGHUP)
        assert request.number is None
    finally:
        signal.signal(signal.SIGHUP, before)


CAUGHT = """Caught FileError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "x.py", line 1
unetdiff.errors.FileError: a.png: cannot be decoded.
"""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed. "), "A data loading process ended"),
        (torch.OutOfMemoryError("CUDA out of memory"), "Out of memory after step 4"),
        (MemoryError(), "Out of memory after step 4"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "Out of memory after step 4"),
        (FileError.of("a.png", "cannot be decoded"), "a.png: cannot be decoded. The last"),
        (FileError(CAUGHT), "a.png: cannot be decoded. The last"),
    ],
)
def test_b7_in_one_line(whole: Path, error: Exception, message: str) -> None:
    text = str(explained(error, whole, 4, True))
    assert text.startswith(message) and "\n" not in text
    assert text.endswith("step-00000004; continue with the same command and --resume.")


def test_b7_a_failure_within_a_step(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of the running statistics that the unfinished step changed."""
    real, calls = SegmentationTask.forward, []

    def fails(self: SegmentationTask, *args: Any, **kwargs: Any) -> Any:
        before = [b.clone() for b in self.unet.buffers()]
        result = real(self, *args, **kwargs)
        calls.append([not torch.equal(a, b) for a, b in zip(self.unet.buffers(), before, strict=True)])
        if len(calls) == 2:
            raise MemoryError
        return result

    run = tmp_path / "run"
    message = "step-00000001; continue with the same command and --resume"
    with monkeypatch.context() as patch, pytest.raises(TrainingStopped, match=message):
        patch.setattr(SegmentationTask, "forward", fails)
        train(config_of(run))
    assert any(calls[1])  # running statistics had moved
    resume(run)
    shutil.rmtree(run / "checkpoints" / "step-00000001")
    assert_same(run, whole)


def test_b7_not_in_the_middle_of_an_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: saver.Saver) -> None:
        self.updating = True
        self.progress.step = 1
        raise MemoryError

    monkeypatch.setattr(saver.Saver, "step", fails)
    with pytest.raises(TrainingStopped, match="No checkpoint was written yet"):
        train(config_of(tmp_path / "run"))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()])
def test_b12_the_checkpoint_is_written_before_the_validation(
    tmp_path: Path, whole: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KeyboardInterrupt: a second signal."""

    def fails(*args: object) -> None:
        raise error

    run = tmp_path / "run"
    with (
        monkeypatch.context() as patch,
        pytest.raises(TrainingStopped, match="step-00000003; continue with the same command and --resume"),
    ):
        patch.setattr(SegmentationTask, "evaluate", fails)
        train(config_of(run))
    resume(run)
    assert_same(run, whole)


@pytest.mark.parametrize("step", [2, 3])
def test_b13_train_lines_of_a_resumed_run(run: Path, whole: Path, step: int) -> None:
    cut(run, step)
    resume(run)
    assert_same(run, whole)


def test_b3_no_checkpoint_during_a_streak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = trainer.optimizer_step

    def poisoned(*args: Any) -> Any:
        losses, wait, names = real(*args)
        return {**losses, "loss": losses["loss"] * (torch.nan if args[3] >= 2 else 1)}, wait, names

    monkeypatch.setattr(trainer, "optimizer_step", poisoned)
    run = tmp_path / "run"
    with pytest.raises(TrainingStopped, match=f"--training.init_from {run} with a lower --training.optimizer.lr"):
        train(config_of(run, training__steps=20, training__keep_checkpoints=1))
    assert [path.name for path in checkpoints.complete(run)] == ["step-00000002"]
    monkeypatch.undo()
    new = {"training__init_from": str(run), "training__optimizer__lr": 1e-5, "training__steps": 1}
    train(config_of(tmp_path / "new", **new))


def test_finished_config_is_as_it_is_compared(whole: Path) -> None:
    """`--overwrite` recognizes its own config.yaml by its text."""
    from unetdiff.config.reading import from_yaml

    assert to_yaml(from_yaml(whole / "config.yaml")) == (whole / "config.yaml").read_text()
