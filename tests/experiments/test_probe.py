"""`unetdiff experiment probe` from runs to record."""

from __future__ import annotations

import json
import pickle

import pytest

from unetdiff.cli.experiment import main
from unetdiff.errors import UserError
from unetdiff.experiments import probe
from unetdiff.experiments.probe_report import Probed
from unetdiff.reports.record import Gallery, Heatmap, Table, read_record

QUICK = ["--timesteps", "clean", "400", "--images", "6", "--val_images", "8", "--steps", "2", "--batch_size", "4",
         "--concat", "2", "--rows", "2"]  # fmt: skip


def here(function, *given):
    """A call as a fresh process would get it, without the seconds that one takes to start."""
    function, given = pickle.loads(pickle.dumps((function, given)))
    return function(*given)


def test_command(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "run_in_subprocess", here)
    runs = [str(make_run(name, name, seed)) for seed, name in enumerate(("segmentation", "diffusion", "joint"))]
    output = tmp_path / "out"
    argv = ["probe", *runs, *QUICK, "--output", str(output)]
    assert main(argv) == 0
    record = read_record(output)
    best, cost = (part for part in record.parts if isinstance(part, Table))
    assert len(best.rows) == 4 * 2 + 2  # a best probe and one of two blocks each; two have a head of their own
    assert len(cost.rows) == 4 and all(row[2].mean > 0 for _, row in cost.rows)
    maps = [part for part in record.parts if isinstance(part, Heatmap)]
    assert [m.columns for m in maps] == [["clean", "400"]] * 2 + [["segmentation", "random weights"]]
    assert all(0 <= v <= 1 for m in maps for row in m.values for v in row if v is not None)
    (gallery,) = (part for part in record.parts if isinstance(part, Gallery))
    assert len(gallery.columns) == 2 + 4 and len(gallery.rows) == 2 and gallery.legend[0][1].startswith("#")
    assert set(record.configs) == {"segmentation", "diffusion", "joint"}
    assert any("joint: the best probe reads" in line for line in record.findings)
    found = json.loads((output / "diffusion" / "probes.json").read_text())["result"]
    assert found["judged"] == 8 and len(found["probes"]) == 2 * len(maps[0].rows)

    (output / "joint" / "mask1.png").unlink()
    before = (output / "diffusion" / "probes.json").stat().st_mtime_ns
    assert main(argv) == 0 and (output / "joint" / "mask1.png").is_file()
    assert (output / "diffusion" / "probes.json").stat().st_mtime_ns == before, "what is whole is kept"

    def config_error(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(probe, "_measure", config_error)
    assert main(argv) == 0  # kept
    with pytest.raises(AssertionError, match="measured again"):
        main([*argv, "--steps", "3"])


def test_best_is_chosen_by_one_half_and_told_with_the_other():
    right, wrong = [[9, 0], [0, 9]], [[0, 9], [9, 0]]
    lucky = {"spec": {"moment": None, "blocks": ["a"]}, "parameters": 1, "matrices": [right, wrong]}
    other = {"spec": {"moment": None, "blocks": ["b"]}, "parameters": 1, "matrices": [wrong, right]}
    probed = Probed("x", "diffusion", 2, [other, lucky], None, None, 1, 2, 1, 1, None, 0.1)
    assert probed.best is lucky and probed.told(lucky) == (0.0, 0.0)
    assert probed.map() == [[1 / 3], [1 / 3]]  # on all images: half right, IoU 9 / 27


def test_refusals(make_run, tmp_path):
    run = str(make_run("run"))
    with pytest.raises(UserError, match="--steps=0: must be at least 1"):
        main(["probe", run, "--steps", "0"])
    with pytest.raises(UserError, match="--training.steps.*leave it out"):
        main(["probe", run, "--training.steps", "3"])
    with pytest.raises(UserError, match="trunk"):
        main(["probe", run, "--trunk", "resnet5"])
    record = tmp_path / "out" / "record.json"
    assert not record.exists()
