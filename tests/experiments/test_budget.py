"""Joint against separate training: configs, gradient logs, tables, and a whole tiny experiment."""

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
from unetdiff.experiments.budget_report import cost_table, findings, head_tables
from unetdiff.experiments.class_consistency import CACHE_FILE, ClassConsistency
from unetdiff.experiments.gradients import (
    CosineStats,
    cosine_stats,
    gradient_chart,
    gradient_findings,
    gradient_table,
)
from unetdiff.experiments.result_cache import store_result
from unetdiff.models.unet import UNet
from unetdiff.reports.record import Chart, read_record, write_record
from unetdiff.reports.record_text import record_text
from unetdiff.reports.runs import Run

TINY = [
    "--model.encoder.channels=[8,16]",
    "--model.residual.layers_per_block=1",
    "--model.conditioning.attention_levels=[1]",
    "--model.conditioning.cross_attention_dim=8",
    "--model.conditioning.attention_head_dim=8",
    "--data.scenes.train_images=64",
    "--data.scenes.val_images=12",
    "--training.batch_size=8",
    "--diffusion.preview_steps=2",
    "--diffusion.preview_per_class=1",
]


def run_of(task: str, name: str, folder: Path, **metrics: Any) -> Run:
    heads: dict[str, Any] = {h: {} for h in ("segmentation", "diffusion") if task in (h, "joint")}
    summary = {"parameters": {"encoder": 60, "decoder": 30, "total": 100}, "peak_memory": 5e6, "task": task}
    summary["parameters"] |= {f"head.{head}": 5 for head in heads}  # type: ignore[operator]
    summary |= {key: metrics.pop(key) for key in ("train_minutes", "images_per_second") if key in metrics}
    validation = [{"step": 1, **{key.replace("__", "/"): value for key, value in metrics.items()}}]
    model = {"heads": heads}
    return Run(name, folder, task, {"task": task}, [], validation, summary, None, model)


def runs_by_method(folder: Path) -> dict[str, list[Run]]:
    miou = {"segmentation only": (0.80, 0.84), "joint, fixed": (0.70, 0.78)}
    loss = {"diffusion only": (0.10, 0.10), "joint, fixed": (0.10, 0.09)}
    tasks = {"segmentation only": "segmentation", "diffusion only": "diffusion", "joint, fixed": "joint"}
    runs: dict[str, list[Run]] = {}
    for method, task in tasks.items():
        for seed in (0, 1):
            metrics: dict[str, Any] = {"train_minutes": 2.0 + seed, "images_per_second": 10}
            metrics |= {"segmentation__mean_iou": miou[method][seed]} if method in miou else {}
            metrics |= {"diffusion__loss": loss[method][seed]} if method in loss else {}
            runs.setdefault(method, []).append(run_of(task, f"{method} {seed}", folder, **metrics))
    return runs


def test_tables_and_findings(tmp_path: Path) -> None:
    runs = runs_by_method(tmp_path)
    consistency = {
        "diffusion only 0": ClassConsistency(0.9, 10, 0.99),
        "diffusion only 1": ClassConsistency(0.7, 10, 0.99),
    }
    consistency |= {f"joint, fixed {seed}": ClassConsistency(0.5, 10, 0.99) for seed in (0, 1)}
    masks, noise = head_tables(runs, consistency)
    assert [name for name, _ in masks.rows] == ["segmentation only", "joint, fixed"]
    assert [values[0].mean for _, values in masks.rows] == pytest.approx([0.82, 0.74])
    assert masks.rows[0][1][1].mean is None, "no pixel accuracy was there"
    assert noise.columns[-1].name == "class consistency" and noise.rows[0][1][-1].mean == pytest.approx(0.8)

    cost = dict(cost_table(runs).rows)
    assert cost["both separate networks"][0].mean == pytest.approx(5.0)  # 2 + 2 and 3 + 3 minutes
    assert cost["both separate networks"][3].mean == 180 and cost["joint, fixed"][3].mean == 90
    assert cost["segmentation only"][5].mean is None and cost["joint, fixed"][2].mean == 5.0

    lines = findings(runs, consistency)
    # differences -0.10 and -0.06: mean -0.08, std 0.028; 0 and -0.01: mean -0.005, std 0.007
    assert lines[0].startswith(
        "joint, fixed: mIoU 0.740 ± 0.057 against 0.820 ± 0.028 with segmentation only (worse: -0.080 ± 0.028, 2 paired"
    )
    assert "with diffusion only (within one std: -0.0050 ± 0.0071" in lines[0], "no claim within the std"
    assert "(worse: -0.300 ± 0.141" in lines[0] and len(lines) == 2


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


def test_gradient_statistics(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, (2, 40))
    first = write_gradients(tmp_path / "a", {"encoder.0": list(0.5 + noise[0]), "middle": list(-0.3 + noise[1])})
    second = write_gradients(tmp_path / "b", {"encoder.0": [None] * 40, "middle": list(noise[0] - 0.3)})
    stats = cosine_stats({"joint, fixed": [first, second]})["joint, fixed"]
    middle = np.concatenate([-0.3 + noise[1], noise[0] - 0.3])
    assert stats["encoder.0"].n == 40 and stats["middle"].n == 80, "null is left out"
    assert stats["middle"].mean == pytest.approx(middle.mean())
    assert stats["middle"].standard_error == pytest.approx(middle.std(ddof=1) / math.sqrt(80))
    assert stats["middle"].negative == pytest.approx((middle < 0).mean())
    assert (stats["encoder.0"].sign, stats["middle"].sign) == (1, -1)
    assert CosineStats.of([0.1, -0.1, 0.05]).sign == 0 and CosineStats.of([0.7]).sign == 0, "one step proves nothing"

    line = gradient_findings({"joint, fixed": stats})[0]
    assert f"aligned in encoder.0 ({0.5 + noise[0].mean():+.3f})" in line and "conflicting in middle" in line
    table = gradient_table({"joint, fixed": stats, "joint, other": {}})
    assert [name for name, _ in table.rows] == ["encoder.0", "middle"] and len(table.columns) == 2

    chart = gradient_chart("joint, fixed", [first, second], num_windows=4)
    assert [line.name for line in chart.lines] == ["encoder.0", "middle"]
    assert chart.lines[0].x == [50, 150, 250, 350]
    means = (0.5 + noise[0]).reshape(4, 10).mean(axis=1)
    assert [y.mean for y in chart.lines[0].y] == pytest.approx(list(means)) and chart.lines[0].y[0].n == 1
    assert chart.lines[1].y[0].n == 2


def test_every_run_has_one_backbone_and_one_budget(parse_args: Callable[..., Any], tmp_path: Path) -> None:
    args, overrides = parse_args("budget", "--train_steps", "10", "--num_validations", "4",
                                 "--weighting", "fixed", "uncertainty", *TINY,
                             "--model.encoder.name=classic", "--model.patch_size=1", "--training.seed=5",
                             "--model.conditioning.pooled_context=false", "--num_seeds", "2")  # fmt: skip
    plan = budget.plan(args, overrides, tmp_path)
    assert list(plan) == ["segmentation", "diffusion", "joint-fixed", "joint-uncertainty"]
    assert all(list(each) == [5, 6] for each in plan.values())
    one = [each[5] for each in plan.values()]
    assert all(config.model == one[0].model for config in one), "a classic segmenter alone has the norms of the others"
    assert one[0].model.encoder.norm == "group" and one[0].model.conditioning.timestep is True
    assert {(c.training.steps, c.training.batch_size, c.training.validate_every) for c in one} == {(10, 8, 3)}
    assert (one[2].joint.segmentation_weight, one[2].joint.diffusion_weight) == (0.5, 10.0)
    assert (one[3].joint.segmentation_weight, one[3].joint.diffusion_weight) == (1.0, 1.0)
    args, overrides = parse_args("budget", "--model.encoder.name=classic", "--model.encoder.padding=valid")
    with pytest.raises(UserError, match="^model.encoder.padding=valid: must be same"):
        budget.plan(args, overrides, tmp_path)


def test_a_whole_tiny_budget(parse_args: Callable[..., Any], tmp_path: Path) -> None:
    words = (
        "--train_steps 4 --num_validations 2 --num_gradient_steps 4 --num_images 10 --num_inference_steps 2 "
        "--classifier_train_steps 4 --weighting gradient_norm"
    )
    args, overrides = parse_args("budget", *words.split(), *TINY)
    record = budget.run(args, overrides, tmp_path, "unetdiff experiment budget")
    write_record(record, tmp_path)
    assert read_record(tmp_path) == record
    tables = {part.title: part for part in record.parts if part.kind == "table"}
    names = ["segmentation only", "diffusion only", "joint, gradient norm"]
    noise = tables["Diffusion head"]
    assert [name for name, _ in noise.rows] == names[1:]
    assert all(values[-1].mean is not None for _, values in noise.rows), "samples were classified"
    assert [name for name, _ in tables["Cosine similarity of the two losses' gradients"].rows][-1] == "all"
    curves = {part.title: part for part in record.parts if isinstance(part, Chart)}
    assert [line.x for line in curves["mIoU against images seen"].lines] == [[16.0, 32.0]] * 2
    assert len(record.findings) == 3 and "mIoU" in record_text(record)

    shared = UNet.from_pretrained(tmp_path / "joint-gradient_norm/seed-0/latest/unet").parameter_counts()
    separate = UNet.from_pretrained(tmp_path / "segmentation/seed-0/latest/unet").parameter_counts()
    assert {key: n for key, n in shared.items() if "head" not in key} == {
        k: n for k, n in separate.items() if "head" not in k
    }

    cached = tmp_path / "diffusion/seed-0" / CACHE_FILE
    content = json.loads(cached.read_text())
    store_result(cached, content["settings"], {**content["result"], "value": 0.123})
    again = budget.run(args, overrides, tmp_path, "unetdiff experiment budget")
    table = next(part for part in again.parts if part.title == "Diffusion head")
    assert dict(table.rows)["diffusion only"][-1].mean == 0.123, "neither trained nor classified again"
