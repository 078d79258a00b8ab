"""A run directory as one typed object."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from unetdiff.errors import UserError
from unetdiff.training.logger import METRICS, read_lines

SHARED_PARTS = ("encoder", "mid_block", "decoder", "conditioning")
"""The parts of `UNet.parameter_counts()` that all heads share."""

JsonDict = dict[str, Any]


@dataclass
class Run:
    """The files of one training run."""

    name: str
    """Short name, unique on the page."""
    path: Path
    """The run directory."""
    task: str
    """segmentation, diffusion or joint."""
    config: JsonDict
    """The resolved config: task, model, data, segmentation, diffusion, training."""
    train: list[JsonDict] = field(default_factory=list)
    """Lines of metrics.jsonl with kind "train", by step."""
    validation: list[JsonDict] = field(default_factory=list)
    """Lines of metrics.jsonl with kind "validation", by step."""
    summary: JsonDict = field(default_factory=dict)
    """summary.json; empty for an unfinished run."""
    model: Path | None = None
    """The directory of the evaluated weights (best/, else latest/)."""
    model_config: JsonDict = field(default_factory=dict)
    """config.json of the evaluated U-Net; the config's `model` section if no weights are saved yet."""

    @property
    def heads(self) -> list[str]:
        """The heads that this run trained; other heads of the network are left out."""
        heads = self.model_config.get("heads") or {}
        trained = [name for name in ("segmentation", "diffusion") if self.task in (name, "joint")]
        return [name for name in trained if heads.get(name) is not None]

    @property
    def finished(self) -> bool:
        """True if training finished."""
        return bool(self.summary)

    @property
    def parameters(self) -> dict[str, int]:
        """Number of parameters by part of the network, as in `UNet.parameter_counts()`; {} if unknown."""
        return {k: int(v) for k, v in (self.summary.get("parameters") or {}).items() if k != "total"}

    @property
    def shared_parameters(self) -> int | None:
        """Number of parameters of encoder, mid block, decoder and conditioning; None if unknown."""
        counts = self.parameters
        return sum(counts.get(part, 0) for part in SHARED_PARTS) if counts else None

    def head_parameters(self, head: str) -> int | None:
        """Number of parameters of a head; None if the run does not have it."""
        return self.parameters.get(f"head.{head}") if head in self.heads else None

    @property
    def data_name(self) -> str:
        """Name of the dataset, with its folder if it has one; see `data_name`."""
        return data_name(self.config.get("data") or {})


def data_name(data: Mapping[str, Any]) -> str:
    """The name of the dataset in a `data:` section: "scenes", "voc_folder (camvid)"."""
    root = data.get("root")
    return f"{data.get('name', '?')}" + (f" ({Path(root).name})" if root else "")


def read_json(path: Path) -> JsonDict:
    """The object in a JSON file; {} if there is no file.

    Raises:
        UserError: the file is not a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON ({error}). Delete the run or train it again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must contain a JSON object (got {type(content).__name__}). Train the run again.")
    return content


def read_metrics(path: Path) -> list[JsonDict]:
    """The lines of metrics.jsonl, without an incomplete last line (see `read_lines`).

    Where a resumed run wrote a step twice, the later line is used.
    """
    if not path.is_file():
        return []
    latest: dict[tuple[str, int], JsonDict] = {}
    for entry in read_lines(path):
        latest[str(entry.get("kind")), int(entry.get("step", 0))] = entry
    return sorted(latest.values(), key=lambda entry: entry.get("step", 0))


def read_run(path: Path, name: str | None = None) -> Run:
    """Read the run in a directory.

    Args:
        path: a run directory (config.yaml, metrics.jsonl, summary.json, best/, latest/).
        name: short name on the page; None: the directory's name.

    Raises:
        UserError: not a run directory.
    """
    path = Path(path)
    config_file = path / "config.yaml"
    if not config_file.is_file():
        raise UserError(f"{path} is not a run directory (no config.yaml). Pass the training.output_dir of a run.")
    try:
        config = yaml.safe_load(config_file.read_text()) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{config_file} is not valid YAML: {error}") from error
    if not isinstance(config, dict) or "task" not in config:
        raise UserError(f"{config_file} is not the config of a run (no task). Pass the training.output_dir of a run.")
    metrics = read_metrics(path / METRICS)
    model = next((path / part for part in ("best", "latest") if (path / part / "unet").is_dir()), None)
    model_config = read_json(model / "unet" / "config.json") if model else {}
    return Run(
        name=name or path.resolve().name,
        path=path,
        task=str(config["task"]),
        config=config,
        train=[entry for entry in metrics if entry.get("kind") == "train"],
        validation=[entry for entry in metrics if entry.get("kind") == "validation"],
        summary=read_json(path / "summary.json"),
        model=model,
        model_config=model_config or _planned_model(config),
    )


def _planned_model(config: JsonDict) -> JsonDict:
    """The `model` section of a run without saved weights, with the heads that its task trains."""
    model = dict(config.get("model") or {})
    heads: JsonDict = {name: {} for name in ("segmentation", "diffusion") if config["task"] in (name, "joint")}
    model["heads"] = {k: v for k, v in (model.get("heads") or {}).items() if v is not None} or heads
    return model


def read_runs(paths: Iterable[Path]) -> list[Run]:
    """The runs in `paths`, with unique names: the shortest distinct endings of the paths."""
    paths = [Path(path) for path in paths]
    if not paths:
        raise UserError("runs: must contain at least one run directory.")
    resolved = [path.resolve() for path in paths]
    for index, path in enumerate(resolved):
        if path in resolved[:index]:
            raise UserError(f"runs={paths[index]}: must be listed once.")
    return [read_run(path, name) for path, name in zip(paths, distinct_names(resolved), strict=True)]


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """The shortest path endings of one length that are distinct, after removing the ending that all paths share."""
    parts = [list(path.parts) for path in paths]
    while len(parts) > 1 and all(len(each) > 1 and each[-1] == parts[0][-1] for each in parts):
        parts = [each[:-1] for each in parts]
    for length in range(1, max(len(each) for each in parts) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
