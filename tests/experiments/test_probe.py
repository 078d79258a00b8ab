"""`unetdiff experiment probe` from runs to record."""

from __future__ import annotations

import json
import pickle

import pytest

from unetdiff.cli.experiment import main
from unetdiff.errors import UserError
from unetdiff.experiments import probe
from unetdiff.experiments.probe_report import ProbeResults
from unetdiff.reports.record import Gallery, Heatmap, Table, read_record

QUICK = ["--timesteps", "clean", "400", "--num_train_images", "6", "--num_val_images", "8", "--train_steps", "2",
         "--batch_size", "4", "--num_concat_blocks", "2", "--num_rows", "2"]  # fmt: skip


def here(function, *args):
    """A call as in a fresh process, without the start-up time."""
    function, args = pickle.loads(pickle.dumps((function, args)))
    return function(*args)


def test_command(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "run_in_subprocess", here)
    monkeypatch.setattr(probe, "MEMORY_STEPS", 1)
    runs = [str(make_run(name, name, seed)) for seed, name in enumerate(("segmentation", "diffusion", "joint"))]
    output = tmp_path / "out"
    argv = ["probe", *runs, *QUICK, "--output", str(output)]
    assert main(argv) == 0
    record = read_record(output)
    best, cost = (part for part in record.parts if isinstance(part, Table))
    assert len(best.rows) == 4 * 2 + 2  # the best probe and one of two blocks each; two trained heads
    assert len(cost.rows) == 4 and all(row[2].mean > 0 for _, row in cost.rows)
    maps = [part for part in record.parts if isinstance(part, Heatmap)]
    assert [m.columns for m in maps] == [["clean", "400"]] * 2 + [["segmentation", "random weights"]]
    assert all(0 <= v <= 1 for m in maps for row in m.values for v in row if v is not None)
    (gallery,) = (part for part in record.parts if isinstance(part, Gallery))
    assert len(gallery.columns) == 2 + 4 and len(gallery.rows) == 2 and gallery.legend[0][1].startswith("#")
    assert set(record.configs) == {"segmentation", "diffusion", "joint"}
    assert any("joint: best probe mIoU" in line for line in record.findings)
    result = json.loads((output / "diffusion" / "probes.json").read_text())["result"]
    assert result["num_val_images"] == 8 and len(result["probes"]) == 2 * len(maps[0].rows)

    (output / "joint" / "mask1.png").unlink()
    before = (output / "diffusion" / "probes.json").stat().st_mtime_ns
    assert main(argv) == 0 and (output / "joint" / "mask1.png").is_file()
    assert (output / "diffusion" / "probes.json").stat().st_mtime_ns == before, "complete results are kept"

    def fail(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(probe, "_measure", fail)
    assert main(argv) == 0  # cached
    with pytest.raises(AssertionError, match="measured again"):
        main([*argv, "--train_steps", "3"])


def test_best_is_selected_on_one_half_and_tested_on_the_other():
    right, wrong = [[9, 0], [0, 9]], [[0, 9], [9, 0]]
    lucky = {"input": {"level": None, "blocks": ["a"]}, "parameters": 1, "matrices": [right, wrong]}
    other = {"input": {"level": None, "blocks": ["b"]}, "parameters": 1, "matrices": [wrong, right]}
    probed = ProbeResults("x", "diffusion", 2, [other, lucky], None, None, 1, 2, 1, 1, None, 0.1)
    assert probed.best is lucky and probed.test_metrics(lucky) == (0.0, 0.0)
    assert probed.miou_map() == [[1 / 3], [1 / 3]]  # on all images: half right, IoU 9 / 27


def test_refusals(make_run, tmp_path):
    run = str(make_run("run"))
    with pytest.raises(UserError, match="--train_steps=0"):
        main(["probe", run, "--train_steps", "0"])
    with pytest.raises(UserError, match="--training.steps: config keys do not apply"):
        main(["probe", run, "--training.steps", "3"])
    with pytest.raises(UserError, match="encoder"):
        main(["probe", run, "--encoder", "resnet5"])
    record = tmp_path / "out" / "record.json"
    assert not record.exists()
