"""The comparison page: runs and experiments in one HTML file, and the metrics as JSON next to it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from unetdiff.errors import FileError, UserError
from unetdiff.files.records import read_json, write_json
from unetdiff.files.writing import file_errors, make_folder, require_writable, write_text
from unetdiff.reports.captions import TARGETS, changes
from unetdiff.reports.consistency import Consistency
from unetdiff.reports.curves import training_curves
from unetdiff.reports.dataset_groups import group_by_dataset, size_key, size_text
from unetdiff.reports.diagram import draw_network
from unetdiff.reports.experiments import Section, read_sections
from unetdiff.reports.findings import findings
from unetdiff.reports.illustrations import illustrations
from unetdiff.reports.masks import mask_blocks
from unetdiff.reports.network_spec import read_network_spec
from unetdiff.reports.runs import CONFIG_JSON, Run, read_runs
from unetdiff.reports.samples import Budget, SampleBlock, sample_blocks
from unetdiff.reports.table import Table, build_table, compact, percent, shown_validation
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
    """Write the page that compares runs and shows experiments, and report.json next to it.

    Args:
        runs: run directories, in the order of the page's columns; may be empty where there are experiments.
        output: the HTML file; or a folder, for report.html in it.
        title: heading of the page.
        facts: more facts under the heading, e.g. {"dataset": "scenes"}.
        seed: of the images shown and of the noise that sampling starts from.
        budget: number of samples and denoising steps, training steps of the classifier.
        command: the command that reproduces this page; None: `unetdiff compare` with these runs.
        cache: folder that keeps trained classifiers for the next page; None: they are not kept.
        experiments: folders with a record (the --output of `unetdiff experiment`), in the order of the page.

    Returns:
        The HTML file.

    Raises:
        UserError: neither runs nor experiments, a path that is not a run directory, unreadable weights, a folder
            without a record, or a foreign file in place of report.json.
    """
    output = Path(output)
    page = output if output.suffix.lower() in (".html", ".htm") else output / "report.html"
    if not runs and not experiments:
        raise UserError("nothing to show. Give run directories, or --experiments DIR.")
    _require_output(page)
    budget = budget or Budget()
    sections = read_sections(experiments)
    read = read_runs(runs) if runs else []

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
        "curves": [(c.title, c.across, Markup(c.svg)) for c in training_curves(read)],
        "experiments": sections,
        "command": command,
        "seed": seed,
        "versions": _versions([run.summary for run in read] + [section.record.machine for section in sections]),
        "percent": percent,
    }
    text = render("page.html", **content)  # before anything is written: a failure keeps the old page and its JSON
    with file_errors(page, "Give another --output, or make room."):
        make_folder(page.parent)
        write_json(page.with_suffix(".json"), _raw(read, table, scores, samples, sections, title, seed, command))
        write_text(page, text)
    return page


def _require_output(page: Path) -> None:
    """Refuse, before any work, an output that cannot be written, or whose JSON file is that of something else (such
    as a run's summary.json or a record.json)."""
    require_writable("--output", page.parent, folder=True)
    file = page.with_suffix(".json")
    if page.parent.is_dir():
        require_writable("--output", page)
        require_writable("--output", file)
    if not file.exists():
        return
    try:
        content = read_json(file)
    except FileError:
        content = None
    if not (isinstance(content, dict) and {"runs", "classifiers"} <= content.keys()):
        raise UserError(
            f"output={file}: must not be an existing file of another kind than a report. Choose another --output."
        )


def _facts(runs: Sequence[Run], sections: Sequence[Section]) -> dict[str, str]:
    """Datasets, encoders and hardware, for the line under the heading."""
    names = [run.data_name for run in runs] + [section.record.dataset_name for section in sections]
    datasets = list(dict.fromkeys(names))
    encoders = list(dict.fromkeys(str((run.model_config.get("encoder") or {}).get("name", "residual")) for run in runs))
    facts = {"dataset": ", ".join(filter(None, datasets)), "encoder": ", ".join(encoders)}
    machines = [run.summary for run in runs] + [section.record.machine for section in sections]
    machine = next((machine for machine in machines if machine.get("device")), {})
    if machine:
        count = machine.get("threads")
        threads = f", {count} thread{'s' if count != 1 else ''}" if count else ""
        precision = f", {machine['precision']}" if machine.get("precision") else ""
        facts["hardware"] = f"{machine['device']}{threads}{precision}"
    return {name: value for name, value in facts.items() if value}


def _notices(runs: Sequence[Run]) -> list[str]:
    """Warnings: runs that are not comparable or not finished."""
    notices = []
    if len(group_by_dataset(runs)) > 1:
        datasets = ", ".join(f"{run.name}: {run.data_name}" for run in runs)
        notices.append(f"The runs use different datasets ({datasets}). Metrics are not compared across datasets.")
    denoisers = [run for run in runs if "diffusion" in run.heads]
    if len(group_by_dataset(denoisers, size_key)) > len(group_by_dataset(denoisers)):
        sizes = ", ".join(f"{run.name}: {size_text(run)}" for run in denoisers)
        notices.append(
            f"The denoisers generate images of different sizes ({sizes}). Each size has its own noise, real images and "
            "classifier; class consistency and validation loss are not compared across sizes."
        )
    for run in runs:
        notices += [f"“{run.name}”: {problem}." for problem in run.problems]
        if run.model is None:
            notices.append(f"“{run.name}” has no weights (neither best/ nor latest/); its images are missing.")
        if not run.finished:
            notices.append(f"“{run.name}” has not finished training; its metrics are those of its last validation.")
    return notices


def _network(runs: Sequence[Run], seed: int) -> dict[str, Any]:
    """The diagram of the most complete network, in both formats, and its captions."""
    run = max(runs, key=lambda run: len(run.heads))
    size = (run.config.get("data") or {}).get("size")
    scenes = (run.config.get("data") or {}).get("name", "scenes") == "scenes"
    try:
        spec = read_network_spec(run.model_config, size[0] if size else (32 if scenes else None))
    except UserError as error:
        raise UserError(f"{run.model / 'unet' / CONFIG_JSON if run.model else run.path}: {error}") from None
    tiles = illustrations(run, seed)
    shared = f"{compact(run.shared_parameters)} parameters" if run.shared_parameters else ""
    target = TARGETS.get((run.config.get("diffusion") or {}).get("prediction_type", "v_prediction"), "output")
    return {
        "run": run.name,
        "name": spec.name,
        "several": len({json.dumps(other.model_config.get("encoder"), sort_keys=True) for other in runs}) > 1,
        "both": spec.num_classes is not None and spec.out_channels is not None,
        "attention": any(level.attention for level in spec.levels) or spec.mid_block_attention,
        "wide": Markup(draw_network(spec, True, tiles, shared, target)),
        "narrow": Markup(draw_network(spec, False, tiles, shared, target)),
        "changes": changes(spec, run),
    }


def _reproduce(run: Run) -> dict[str, Any]:
    """What reproduces a run: its command, seed and config."""
    training = run.config.get("training") or {}
    summary = run.summary
    return {
        "name": run.name,
        "task": run.task,
        "heads": run.heads,
        "dataset": run.data_name,
        "command": summary.get("command") or f"unetdiff train {run.task} {run.path / 'config.yaml'}",
        "seed": training.get("seed", 0),
        "steps": summary.get("steps"),
        "best": (summary.get("best") or {}).get("step"),
        "config": yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True),
    }


def _versions(machines: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Versions of the libraries, each distinct version listed."""
    distinct: dict[str, list[str]] = {}
    for machine in machines:
        for name, version in (machine.get("versions") or {}).items():
            if str(version) not in distinct.setdefault(name, []):
                distinct[name].append(str(version))
    return [(name, " / ".join(versions)) for name, versions in distinct.items()]


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
    """report.json: the metrics of the page at full precision, and the validation entries behind them."""
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
                "metrics": {row.key: row.values[index].number for row in table.rows},
                "best": [row.key for row in table.rows if row.values[index].best],
                "validation": {k: v for k, v in shown_validation(run).items() if k != "kind"},
                "class_consistency": asdict(scores[index]) if index in scores else None,
                "summary": run.summary,
                "config": run.config,
            }
            for index, run in enumerate(runs)
        ],
        "classifiers": [
            {
                "dataset": block.dataset_name,
                "accuracy": block.classifier.accuracy,
                "n": block.classifier.n,
                "trained_on": block.classifier.trained_on,
            }
            for block in samples
            if block.classifier is not None
        ],
        "experiments": [{"path": str(section.path), **asdict(section.record)} for section in sections],
    }
