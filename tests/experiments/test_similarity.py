"""`unetdiff experiment similarity` from runs to record."""

from __future__ import annotations

import shutil

import pytest
import torch

from unetdiff.cli.experiment import main
from unetdiff.errors import UserError
from unetdiff.experiments import similarity
from unetdiff.experiments.cka import CKA, grid_examples
from unetdiff.experiments.features import open_features
from unetdiff.experiments.run_inputs import labeled_images
from unetdiff.reports.record import Chart, Heatmap, Table, read_record
from unetdiff.reports.runs import read_run

QUICK = ["--timesteps", "clean", "600", "--num_val_images", "12", "--batch_size", "6", "--grid_size", "2"]


def test_the_same_network_twice_is_one_and_another_is_not(make_run, tmp_path):
    one, other = make_run("one"), make_run("other", seed=5)
    shutil.copytree(one, tmp_path / "copy")
    output = tmp_path / "out"
    main(["similarity", str(one), str(tmp_path / "copy"), str(other), *QUICK, "--output", str(output)])
    charts = {part.title: part for part in read_record(output).parts if isinstance(part, Chart)}
    same = next(chart for title, chart in charts.items() if title.endswith("one and copy"))
    assert [line.name for line in same.lines] == [
        "clean images",
        "t = 600",
        "one and random weights (maximum)",
        "copy and random weights (maximum)",
    ]
    for line in same.lines[:2]:
        assert all(value.mean == pytest.approx(1, abs=1e-5) for value in line.y)
    different = next(chart for title, chart in charts.items() if title.endswith("one and other"))
    assert all(value.mean < 0.999 for line in different.lines[:2] for value in line.y)


def test_cka_is_that_of_the_features(make_run, tmp_path):
    runs = [read_run(make_run(name, name, seed)) for seed, name in enumerate(("segmentation", "diffusion"))]
    output = tmp_path / "out"
    assert main(["similarity", *(str(run.path) for run in runs), *QUICK, "--output", str(output)]) == 0
    record = read_record(output)
    maps = [part for part in record.parts if isinstance(part, Heatmap)]
    assert len(maps) == 2 + 2 and maps[1].rows[0] == "encoder 32x32"
    datasets = [labeled_images(run, runs[0], "val") for run in runs]
    networks = [open_features(run, val, [600], 0, "cpu") for run, val in zip(runs, datasets, strict=True)]
    table = CKA()
    for start in (0, 6):
        items = [[val[i] for i in range(start, start + 6)] for val in datasets]
        layers = []
        for network, batch, level in zip(networks, items, (None, 600), strict=True):  # the segmenter sees them clean
            images = torch.stack([item["image"] for item in batch])
            layers += [grid_examples(m, 2) for m in network(images, [item["name"] for item in batch], level).values()]
        table.update(layers)
    count = len(maps[1].rows)
    expected = table.compute()[:count, count:]
    assert torch.allclose(torch.tensor(maps[1].values, dtype=torch.float64), expected, atol=1e-5)
    chart = next(part for part in record.parts if isinstance(part, Chart))
    assert [value.mean for value in chart.lines[1].y] == pytest.approx(expected.diagonal().tolist(), abs=1e-5)
    (means,) = (part for part in record.parts if isinstance(part, Table))
    assert means.rows[1][1][0].mean == pytest.approx(float(expected.diagonal().mean()), abs=1e-5)
    assert any("most similar" in line for line in record.findings)


def test_networks_of_other_blocks_and_caching(make_run, tmp_path, monkeypatch):
    small = {"model.encoder.channels": [8], "model.conditioning.attention_levels": [0], "model.patch_size": 4}
    runs = [str(make_run("a")), str(make_run("b", **small))]
    argv = ["similarity", *runs, *QUICK, "--output", str(tmp_path / "out")]
    main(argv)
    record = read_record(tmp_path / "out")
    assert not any(isinstance(part, Chart) for part in record.parts)
    assert any("no corresponding layers; the most similar ones are" in line for line in record.findings)
    monkeypatch.setattr(similarity, "_measure", None)
    main(argv)  # cached


def test_too_few_examples(make_run):
    runs = [str(make_run("a")), str(make_run("b", seed=1))]
    with pytest.raises(UserError, match="--batch_size=1: .* at least 4"):
        main(["similarity", *runs, "--batch_size", "1", "--grid_size", "1"])
