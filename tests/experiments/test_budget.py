"""One backbone trained three ways: the plan, the reading of gradients, the tables, and a whole tiny experiment."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unetdiff.errors import UserError
from unetdiff.experiments import budget
from unetdiff.experiments.budget_tables import cost_table, findings, head_tables
from unetdiff.experiments.consistency import KEPT, Judged
from unetdiff.experiments.gradients import Pull, gradient_chart, gradient_findings, gradient_table, pulls_of
from unetdiff.models.unet import UNet
from unetdiff.reports.record import Chart, read_record, write_record
from unetdiff.reports.record_text import record_text
from unetdiff.reports.runs import Run

TINY = [
    "--model.encoder.channels=[8,16]",
    "--model.conditioning.attention_levels=[1]",
    "--model.conditioning.cross_attention_dim=8",
    "--model.conditioning.attention_head_dim=8",
    "--data.scenes.train_images=64",
    "--data.scenes.val_images=12",
    "--training.batch_size=8",
    "--diffusion.preview_steps=2",
    "--diffusion.preview_per_class=1",
]


def run_of(task: str, name: str, folder: Path, **figures: Any) -> Run:
    heads: dict[str, Any] = {h: {} for h in ("segmentation", "diffusion") if task in (h, "joint")}
    summary = {"parameters": {"encoder": 60, "decoder": 30, "total": 100}, "peak_memory": 5e6, "task": task}
    summary["parameters"] |= {f"head.{head}": 5 for head in heads}  # type: ignore[operator]
    summary |= {key: figures.pop(key) for key in ("train_minutes", "images_per_second") if key in figures}
    validation = [{"step": 1, **{key.replace("__", "/"): value for key, value in figures.items()}}]
    model = {"heads": heads}
    return Run(name, folder, task, {"task": task}, [], validation, summary, None, model)


def ways_of(folder: Path) -> dict[str, list[Run]]:
    miou = {"segmentation alone": (0.80, 0.84), "joint, fixed": (0.70, 0.78)}
    loss = {"diffusion alone": (0.10, 0.10), "joint, fixed": (0.10, 0.09)}
    tasks = {"segmentation alone": "segmentation", "diffusion alone": "diffusion", "joint, fixed": "joint"}
    ways: dict[str, list[Run]] = {}
    for way, task in tasks.items():
        for seed in (0, 1):
            figures: dict[str, Any] = {"train_minutes": 2.0 + seed, "images_per_second": 10}
            figures |= {"segmentation__mean_iou": miou[way][seed]} if way in miou else {}
            figures |= {"diffusion__loss": loss[way][seed]} if way in loss else {}
            ways.setdefault(way, []).append(run_of(task, f"{way} {seed}", folder, **figures))
    return ways


def test_tables_and_findings_by_hand(tmp_path: Path) -> None:
    ways = ways_of(tmp_path)
    judged = {"diffusion alone 0": Judged(0.9, 10, 0.99), "diffusion alone 1": Judged(0.7, 10, 0.99)}
    judged |= {f"joint, fixed {seed}": Judged(0.5, 10, 0.99) for seed in (0, 1)}
    masks, noise = head_tables(ways, judged)
    assert [name for name, _ in masks.rows] == ["segmentation alone", "joint, fixed"]
    assert [values[0].mean for _, values in masks.rows] == pytest.approx([0.82, 0.74])
    assert masks.rows[0][1][1].mean is None, "no pixel accuracy was there"
    assert noise.columns[-1].name == "class consistency" and noise.rows[0][1][-1].mean == pytest.approx(0.8)

    cost = dict(cost_table(ways).rows)
    assert cost["both alone, together"][0].mean == pytest.approx(5.0)  # 2 + 2 and 3 + 3 minutes
    assert cost["both alone, together"][3].mean == 180 and cost["joint, fixed"][3].mean == 90
    assert cost["segmentation alone"][5].mean is None and cost["joint, fixed"][2].mean == 5.0

    told = findings(ways, judged)
    # differences -0.10 and -0.06: mean -0.08, deviation 0.028; 0 and -0.01: mean -0.005, deviation 0.007
    assert told[0].startswith(
        "joint, fixed: mIoU 0.740 ± 0.057, 0.820 ± 0.028 for segmentation alone (a loss, 0.080 lower"
    )
    assert "more than the spread of that difference over 2 seeds (0.028)" in told[0]
    assert "alone (0.0050 lower, within the spread" in told[0], "no gain is claimed within the spread"
    assert "(a loss, 0.300 lower" in told[0] and len(told) == 2


def write_gradients(folder: Path, cosines: dict[str, list[float | None]]) -> Run:
    folder.mkdir()
    lines = [
        {"kind": "gradients", "step": i + 1, "images": 10 * (i + 1)}
        | {f"{group}/cosine": values[i] for group, values in cosines.items()}
        | {f"{group}/diffusion_norm": 1.0 for group in cosines}
        for i in range(len(next(iter(cosines.values()))))
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run_of("joint", folder.name, folder)


def test_gradients_by_hand(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, (2, 40))
    first = write_gradients(tmp_path / "a", {"encoder.0": list(0.5 + noise[0]), "middle": list(-0.3 + noise[1])})
    second = write_gradients(tmp_path / "b", {"encoder.0": [None] * 40, "middle": list(noise[0] - 0.3)})
    pulls = pulls_of({"joint, fixed": [first, second]})["joint, fixed"]
    middle = np.concatenate([-0.3 + noise[1], noise[0] - 0.3])
    assert pulls["encoder.0"].n == 40 and pulls["middle"].n == 80, "null is left out"
    assert pulls["middle"].mean == pytest.approx(middle.mean())
    assert pulls["middle"].error == pytest.approx(middle.std(ddof=1) / math.sqrt(80))
    assert pulls["middle"].against == pytest.approx((middle < 0).mean())
    assert (pulls["encoder.0"].sign, pulls["middle"].sign) == (1, -1)
    assert Pull.of([0.1, -0.1, 0.05]).sign == 0 and Pull.of([0.7]).sign == 0, "one step proves nothing"

    told = gradient_findings({"joint, fixed": pulls})[0]
    assert f"together in encoder.0 ({0.5 + noise[0].mean():+.3f})" in told and "against each other in middle" in told
    table = gradient_table({"joint, fixed": pulls, "joint, other": {}})
    assert [name for name, _ in table.rows] == ["encoder.0", "middle"] and len(table.columns) == 2

    chart = gradient_chart("joint, fixed", [first, second], windows=4)
    assert [line.name for line in chart.lines] == ["encoder.0", "middle"]
    assert chart.lines[0].x == [50, 150, 250, 350]
    means = (0.5 + noise[0]).reshape(4, 10).mean(axis=1)
    assert [y.mean for y in chart.lines[0].y] == pytest.approx(list(means)) and chart.lines[0].y[0].n == 1
    assert chart.lines[1].y[0].n == 2


def test_every_run_has_one_backbone_and_one_budget(asked: Callable[..., Any], tmp_path: Path) -> None:
    given, overrides = asked("budget", "--steps", "10", "--points", "4", "--weighting", "fixed", "uncertainty", *TINY,
                             "--model.encoder.name=classic", "--model.patch_size=1", "--training.seed=5",
                             "--model.conditioning.pooled_context=false", "--seeds", "2")  # fmt: skip
    plan = budget.plan(given, overrides, tmp_path)
    assert list(plan) == ["segmentation", "diffusion", "joint-fixed", "joint-uncertainty"]
    assert all(list(each) == [5, 6] for each in plan.values())
    one = [each[5] for each in plan.values()]
    assert all(config.model == one[0].model for config in one), "a classic segmenter alone has the norms of the others"
    assert one[0].model.encoder.norm == "group" and one[0].model.conditioning.timestep is True
    assert {(c.training.steps, c.training.batch_size, c.training.validate_every) for c in one} == {(10, 8, 3)}
    assert (one[2].joint.segmentation_weight, one[2].joint.diffusion_weight) == (0.5, 10.0)
    assert (one[3].joint.segmentation_weight, one[3].joint.diffusion_weight) == (1.0, 1.0)
    given, overrides = asked("budget", "--model.encoder.name=classic", "--model.encoder.padding=valid")
    with pytest.raises(UserError, match="^model.encoder.padding: 'valid' shrinks"):
        budget.plan(given, overrides, tmp_path)


def test_a_whole_tiny_budget(asked: Callable[..., Any], tmp_path: Path) -> None:
    words = (
        "--steps 4 --points 2 --comparisons 4 --images 10 --sample_steps 2 --classifier_steps 4 "
        "--weighting gradient_norm"
    )
    given, overrides = asked("budget", *words.split(), *TINY)
    record = budget.run(given, overrides, tmp_path, "unetdiff experiment budget")
    write_record(record, tmp_path)
    assert read_record(tmp_path) == record
    tables = {part.title: part for part in record.parts if part.kind == "table"}
    names = ["segmentation alone", "diffusion alone", "joint, gradient norm"]
    noise = tables["The diffusion head"]
    assert [name for name, _ in noise.rows] == names[1:]
    assert all(values[-1].mean is not None for _, values in noise.rows), "samples were judged"
    assert [name for name, _ in tables["Do the two losses pull the same way?"].rows][-1] == "all"
    curves = {part.title: part for part in record.parts if isinstance(part, Chart)}
    assert [line.x for line in curves["mIoU against images seen"].lines] == [[16.0, 32.0]] * 2
    assert len(record.findings) == 3 and "mIoU" in record_text(record)

    shared = UNet.from_pretrained(tmp_path / "joint-gradient_norm/seed-0/latest/unet").parameter_counts()
    alone = UNet.from_pretrained(tmp_path / "segmentation/seed-0/latest/unet").parameter_counts()
    assert {key: n for key, n in shared.items() if "head" not in key} == {
        k: n for k, n in alone.items() if "head" not in k
    }

    kept = tmp_path / "diffusion/seed-0" / KEPT
    content = json.loads(kept.read_text())
    content["judged"]["value"] = 0.123
    kept.write_text(json.dumps(content))
    again = budget.run(given, overrides, tmp_path, "unetdiff experiment budget")
    table = next(part for part in again.parts if part.title == "The diffusion head")
    assert dict(table.rows)["diffusion alone"][-1].mean == 0.123, "neither trained nor judged again"
