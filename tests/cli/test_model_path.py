"""OWNER/NAME on the Hub as a command's PATH, from the Hub's cache without a connection."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from huggingface_hub import constants
from PIL import Image

from unetdiff.cli import compare, evaluate, experiment, export, predict, sample
from unetdiff.cli.experiment import OF_RUNS
from unetdiff.cli.model_path import local_model
from unetdiff.cli.parser import Parser
from unetdiff.config.schema import RunConfig
from unetdiff.data.build import build_dataset
from unetdiff.errors import UserError
from unetdiff.experiments import EXPERIMENTS
from unetdiff.files.hub import shown_name
from unetdiff.training.tasks.build import build_task


@pytest.fixture
def cached(
    stable_diffusion: Path, tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The Hub's cache, with owner/tiny of diffusers and owner/masks, a segmenter of ours; the current folder."""
    config = tiny("segmentation")
    data = build_dataset(config.data, "train", True)
    build_task(config, data, data).save(tmp_path / "masks")
    for name, source in (("tiny", stable_diffusion), ("masks", tmp_path / "masks")):
        model = tmp_path / "cache" / f"models--owner--{name}"
        shutil.copytree(source, model / "snapshots" / "0123")
        (model / "refs").mkdir()
        (model / "refs" / "main").write_text("0123")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def test_commands(cached: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What they write by default lies here, not in the Hub's cache."""
    before = sorted((cached.parent / "cache").rglob("*"))
    sample.main(["owner/tiny", "--prompt", "a", "--num_images", "1", "--num_inference_steps", "2"])
    assert (cached / "samples" / "grid.png").is_file()
    options = ["--data.name=scenes", "--data.scenes.val_images=2", "--data.scenes.train_images=4"]
    evaluate.main(["owner/masks", *options])
    assert (cached / "owner--masks" / "evaluation-val" / "metrics.json").is_file()
    assert "owner/masks on val" in (cached / "owner--masks" / "evaluation-val" / "report.html").read_text()
    export.main(["owner/masks", "--format", "torch"])
    assert (cached / "owner--masks" / "segmentation.pt2").is_file()
    image = next((cached / "samples").rglob("*.png"))
    predict.main(["owner/masks", str(image), "--output", "masks"])
    assert list((cached / "masks").rglob("*.png"))
    assert sorted((cached.parent / "cache").rglob("*")) == before
    snapshot = cached.parent / "cache" / "models--owner--tiny" / "snapshots" / "0123"
    assert shown_name(snapshot) == "owner/tiny" and shown_name(cached) == "here"


def test_what_is_nowhere(cached: Path) -> None:
    missing = "owner/none: must be a directory or a model on the Hub .offline, as HF_HUB_OFFLINE is set, [^.]*[.]$"
    Image.new("RGB", (8, 8)).save("x.png")
    for command, words, name in (
        (sample, ["owner/none"], "PATH"),
        (evaluate, ["owner/none"], "PATH"),
        (export, ["owner/none"], "PATH"),
        (predict, ["owner/none", "x.png"], "PATH"),
        (compare, ["owner/none"], "RUN"),
        (experiment, ["probe", "owner/none"], "RUN"),
    ):
        with pytest.raises(UserError, match=f"^{name}={missing}"):
            command.main(words)
    assert list(cached.rglob("*.*")) == [cached / "x.png"]


def test_a_mistyped_run(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every command says so before torch is imported; OWNER/NAME is not looked for in a folder of runs."""
    monkeypatch.chdir(run.parent.parent)
    mistyped = f"{run.parent.name}/{run.name}s"
    for words in (
        ["app", mistyped],
        ["benchmark", mistyped],
        ["compare", mistyped],
        ["evaluate", mistyped],
        *(["experiment", name, mistyped] for name in OF_RUNS),
        ["export", mistyped],
        ["predict", mistyped, "x.png"],
        ["push", mistyped, "owner/name"],
        ["sample", mistyped],
    ):
        with pytest.raises(UserError, match=f"^{mistyped}: does not exist. Did you mean {mistyped[:-1]}[?]$"):
            import_module(f"unetdiff.cli.{words[0]}").main(words[1:])
    code = (
        "import sys; from unetdiff.cli.main import main; "
        f"assert main(['predict', '{mistyped}', 'x.png']) == 2 and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_weights_that_were_not_validated(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert local_model(run) == run and not capsys.readouterr().err
    early = tmp_path / "early"
    shutil.copytree(run, early)
    shutil.rmtree(early / "best")
    state = next(early.glob("checkpoints/*/state.json"))
    content = json.loads(state.read_text()) | {"planned": 712, "validated": 0, "best": None, "best_step": None}
    state.write_text(json.dumps(content))
    local_model(early)
    assert capsys.readouterr().err == f"unetdiff: {early}: weights of step 2 of 712, not validated\n"


def test_experiments_of_runs() -> None:
    for name, (module, _) in EXPERIMENTS.items():
        parser = Parser(name, "")
        import_module(module).add_arguments(parser)
        positional = [action.dest for action in parser._actions if not action.option_strings]
        assert (positional in (["run"], ["runs"])) == (name in OF_RUNS)
