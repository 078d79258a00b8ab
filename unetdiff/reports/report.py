"""The page: any runs, side by side, in one HTML file, and its figures as JSON beside it."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from unetdiff.errors import UserError
from unetdiff.files import write_whole
from unetdiff.reports.captions import TARGETS, changes, illustrations
from unetdiff.reports.curves import learning_curves
from unetdiff.reports.dataset_groups import by_set, size_text, sized_key
from unetdiff.reports.diagram import draw_network
from unetdiff.reports.experiments import Section, read_sections
from unetdiff.reports.findings import findings
from unetdiff.reports.masks import mask_blocks
from unetdiff.reports.network_spec import read_anatomy
from unetdiff.reports.runs import Run, read_runs
from unetdiff.reports.samples import Budget, Consistency, SampleBlock, sample_blocks
from unetdiff.reports.table import Table, build_table, compact, judged_line, percent
from unetdiff.reports.templates import render

TITLE = "One U-Net, two heads"


def write_report(
    runs: Sequence[Path],
    output: Path,
    title: str = TITLE,
    facts: Mapping[str, str] | None = None,
    seed: int = 0,
    budget: Budget | None = None,
    command: str | None = None,
    cache: Path | None = None,
    experiments: Sequence[Path] = (),
) -> Path:
    """Write the page that compares runs and shows experiments, and report.json beside it.

    Args:
        runs: run directories, in the order of the page's columns; may be empty where there are experiments.
        output: the HTML file; or a folder, for report.html in it.
        title: heading of the page.
        facts: more to say under the heading, e.g. {"set": "scenes"}.
        seed: of the images that are shown, of the noise that samples start from.
        budget: how much is sampled and judged.
        command: what a person types to make this page; None: `unetdiff compare` with these runs.
        cache: folder where trained judges are kept for the next page; None: nowhere.
        experiments: folders with a record (the --output of `unetdiff experiment`), in the order of the page.

    Returns:
        The HTML file.

    Raises:
        UserError: nothing to show, a path that is no run directory, weights that cannot be read, a folder that holds no
            record, or a file that no page left where the page's figures would go.
    """
    output = Path(output)
    page = output if output.suffix.lower() in (".html", ".htm") else output / "report.html"
    if not runs and not experiments:
        raise UserError("unetdiff compare: nothing to show. Give run directories, or --experiments DIR.")
    _refuse_foreign(page.with_suffix(".json"))
    budget = budget or Budget()
    sections = read_sections(experiments)
    read = read_runs(runs) if runs else []
    page.parent.mkdir(parents=True, exist_ok=True)

    masks, mask_problems = mask_blocks(read, budget.rows, seed)
    samples, sample_problems = sample_blocks(read, budget, seed, cache)
    scores = {index: score for block in samples for index, score in block.scores.items()}
    table = build_table(read, scores)
    cards = findings(read, table, samples)
    shown = ["--experiments", *map(str, experiments)] if experiments else []
    command = command or shlex.join(["unetdiff", "compare", *map(str, runs), *shown, "--output", str(output)])

    content = {
        "title": title,
        "facts": {**_facts(read, sections), **(facts or {})},
        "notices": [*_notices(read), *mask_problems, *sample_problems],
        "findings": cards,
        "runs": [_reproduce(run) for run in read],
        "network": _network(read, seed) if read else None,
        "table": table,
        "masks": masks,
        "samples": samples,
        "curves": [(c.title, c.across, Markup(c.svg)) for c in learning_curves(read)],
        "experiments": sections,
        "command": command,
        "seed": seed,
        "versions": _versions([run.summary for run in read] + [section.record.machine for section in sections]),
        "percent": percent,
    }
    _write(page.with_suffix(".json"), _raw(read, table, scores, samples, sections, title, seed, command))
    _write(page, render("page.html", **content))
    return page


def _refuse_foreign(figures: Path) -> None:
    """Refuse to put the page's figures over others, such as a run's summary.json or an experiment's record.json."""
    if not figures.exists():
        return
    try:
        found = json.loads(figures.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not (isinstance(found, dict) and {"runs", "judges"} <= found.keys()):
        raise UserError(
            f"{figures} is there, and no page of `unetdiff compare` left it; this page's figures would replace it: "
            "give --output another name or folder"
        )


def _facts(runs: Sequence[Run], sections: Sequence[Section]) -> dict[str, str]:
    """What runs and experiments have in common, for the line under the heading."""
    sets = list(dict.fromkeys([run.data_name for run in runs] + [section.record.set_name for section in sections]))
    families = list(dict.fromkeys(str((run.model_config.get("encoder") or {}).get("name", "residual")) for run in runs))
    facts = {"set": ", ".join(filter(None, sets)), "encoder": ", ".join(families)}
    machines = [run.summary for run in runs] + [section.record.machine for section in sections]
    machine = next((machine for machine in machines if machine.get("device")), {})
    if machine:
        count = machine.get("threads")
        threads = f", {count} thread{'s' if count != 1 else ''}" if count else ""
        precision = f", {machine['precision']}" if machine.get("precision") else ""
        facts["machine"] = f"{machine['device']}{threads}{precision}"
    return {name: value for name, value in facts.items() if value}


def _notices(runs: Sequence[Run]) -> list[str]:
    """What a reader must know before comparing."""
    notices = []
    if len(by_set(runs)) > 1:
        sets = ", ".join(f"{run.name}: {run.data_name}" for run in runs)
        notices.append(
            f"These runs did not see the same set of images ({sets}). Figures of quality are not compared between them."
        )
    denoisers = [run for run in runs if "diffusion" in run.heads]
    if len(by_set(denoisers, sized_key)) > len(by_set(denoisers)):
        sizes = ", ".join(f"{run.name}: {size_text(run)}" for run in denoisers)
        notices.append(
            f"These denoisers draw images of several sizes ({sizes}). Each size has noise, real images and a judge "
            "of its own; class consistency and validation loss are not compared between them."
        )
    for run in runs:
        if not run.finished:
            notices.append(f"“{run.name}” has not come to its end; its figures are those of its last validation.")
    return notices


def _network(runs: Sequence[Run], seed: int) -> dict[str, Any]:
    """The diagram of the most complete network, in both formats, and its captions."""
    run = max(runs, key=lambda run: len(run.heads))
    size = (run.config.get("data") or {}).get("size")
    scenes = (run.config.get("data") or {}).get("name", "scenes") == "scenes"
    anatomy = read_anatomy(run.model_config, size[0] if size else (32 if scenes else None))
    tiles = illustrations(run, seed)
    shared = f"{compact(run.shared_parameters)} weights" if run.shared_parameters else ""
    target = TARGETS.get((run.config.get("diffusion") or {}).get("prediction_type", "v_prediction"), "its output")
    return {
        "run": run.name,
        "name": anatomy.name,
        "several": len({json.dumps(other.model_config.get("encoder"), sort_keys=True) for other in runs}) > 1,
        "both": anatomy.num_classes is not None and anatomy.out_channels is not None,
        "attention": any(level.attention for level in anatomy.levels) or anatomy.middle_attention,
        "wide": Markup(draw_network(anatomy, True, tiles, shared, target)),
        "narrow": Markup(draw_network(anatomy, False, tiles, shared, target)),
        "changes": changes(anatomy, run),
    }


def _reproduce(run: Run) -> dict[str, Any]:
    """What it takes to make a run again."""
    training = run.config.get("training") or {}
    summary = run.summary
    return {
        "name": run.name,
        "task": run.task,
        "heads": run.heads,
        "set": run.data_name,
        "command": summary.get("command") or f"unetdiff train {run.task} {run.path / 'config.yaml'}",
        "seed": training.get("seed", 0),
        "steps": summary.get("steps"),
        "best": (summary.get("best") or {}).get("step"),
        "config": yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True),
    }


def _versions(machines: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Versions of the libraries; where runs or experiments differ, all of them."""
    found: dict[str, list[str]] = {}
    for machine in machines:
        for name, version in (machine.get("versions") or {}).items():
            if str(version) not in found.setdefault(name, []):
                found[name].append(str(version))
    return [(name, " / ".join(versions)) for name, versions in found.items()]


def _raw(
    runs: Sequence[Run],
    table: Table,
    scores: Mapping[int, Consistency],
    samples: Sequence[SampleBlock],
    sections: Sequence[Section],
    title: str,
    seed: int,
    command: str,
) -> dict[str, Any]:
    """report.json: every number of the page at full precision, and the validation figures behind them."""
    return {
        "title": title,
        "command": command,
        "seed": seed,
        "runs": [
            {
                "name": run.name,
                "path": str(run.path),
                "task": run.task,
                "heads": run.heads,
                "parameters": run.parameters,
                "figures": {row.key: row.values[index].number for row in table.rows},
                "best": [row.key for row in table.rows if row.values[index].best],
                "validation": {k: v for k, v in judged_line(run).items() if k != "kind"},
                "class_consistency": asdict(scores[index]) if index in scores else None,
                "summary": run.summary,
                "config": run.config,
            }
            for index, run in enumerate(runs)
        ],
        "judges": [
            {
                "set": block.set_name,
                "accuracy": block.judge.accuracy,
                "n": block.judge.n,
                "trained_on": block.judge.trained_on,
            }
            for block in samples
            if block.judge is not None
        ],
        "experiments": [{"path": str(section.path), **asdict(section.record)} for section in sections],
    }


def _write(path: Path, content: str | dict[str, Any]) -> None:
    """Write aside and rename: a page that is there is whole."""
    text = content if isinstance(content, str) else json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"
    write_whole(path, text)


def _finite(value: Any) -> Any:
    """NaN and infinity, which JSON does not have, as null."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
