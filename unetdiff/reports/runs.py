"""A run directory as one typed object."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Required, TypedDict

from unetdiff.config.reading import from_yaml
from unetdiff.errors import FileError, UserError
from unetdiff.evaluation.load_run import is_pretrained, run_config, trained_size
from unetdiff.files.hub import shown_name
from unetdiff.files.records import jsonable, numbered_json_lines, read_object
from unetdiff.files.typed import typed
from unetdiff.models.config import ModelConfig
from unetdiff.models.loading import is_stock
from unetdiff.models.unet import UNet
from unetdiff.training.logger import METRICS

SHARED_PARTS = ("encoder", "mid_block", "decoder", "conditioning")
"""The parts of `UNet.parameter_counts()` that all heads share."""

REMEDY = "Restore the file, or train the run again."
CONFIG_JSON = "config.json"
MAX_LEVELS = 16
"""Levels of a network that a page draws."""

JsonDict = dict[str, Any]
Count = Annotated[int, 0]
Amount = Annotated[float | None, 0]


class Best(TypedDict, total=False):
    """The best validation in summary.json."""

    metric: str
    value: float | None
    step: Count | None


class Summary(TypedDict, total=False):
    """The keys of summary.json that are read; others may follow."""

    task: Required[str]
    steps: Required[Count]
    minutes: Required[Amount]
    images: Count
    train_minutes: Amount
    images_per_second: Amount
    parameters: Required[dict[str, Count]]
    best: Best
    final: dict[str, Any]
    device: str
    threads: Count
    processes: Count
    precision: str
    versions: dict[str, str]
    command: str | None
    init_from: dict[str, Any] | None


class MetricsLine(TypedDict, total=False):
    """The keys of a line of metrics.jsonl that are read by name."""

    kind: Required[str]
    step: Required[Count]
    images: Amount
    minutes: Amount
    train_minutes: Amount


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
    is_pretrained: bool = False
    """Whether it is not a run, but a pipeline directory of diffusers."""
    problems: list[str] = field(default_factory=list)
    """Why parts of the page may be missing or wrong: "it has no metrics.jsonl ..."."""

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


def read_summary(path: Path) -> JsonDict:
    """The content of a summary.json; {} if there is no file.

    Raises:
        UserError: the file is invalid; names the key.
    """
    if not path.exists():
        return {}
    summary: JsonDict = {**typed(Summary, jsonable(read_object(path, REMEDY)), path, remedy=REMEDY)}
    _require_numbers(summary.get("final") or {}, path, REMEDY, "final.")
    return summary


def read_metrics(path: Path) -> list[JsonDict]:
    """The lines of a metrics.jsonl by step, without an incomplete last line (the run is being written, or was killed).

    Where a resumed run wrote a step twice, the later line is used.

    Raises:
        UserError: a line is invalid; names the line and the key.
    """
    if not path.exists():
        return []
    latest: dict[tuple[str, int], JsonDict] = {}
    for where, entry in numbered_json_lines(path, torn=True):
        line = typed(MetricsLine, jsonable(entry), where, remedy="Remove the line.")
        _require_numbers(line, where, "Remove the line.")
        latest[line["kind"], line["step"]] = dict(line)
    return sorted(latest.values(), key=lambda entry: entry["step"])


def _require_numbers(metrics: Mapping[str, Any], where: str | Path, remedy: str, prefix: str = "") -> None:
    """Refuse a metric ("TASK/NAME", loss) that is a text, true or false."""
    for name, value in metrics.items():
        if ("/" in name or name == "loss") and isinstance(value, str | bool):
            raise FileError.of(where, f"{prefix}{name}: must be a number (got {value!r})", remedy)


def read_run(path: Path, name: str | None = None) -> Run:
    """Read the run in a directory; nothing is written.

    Args:
        path: a run directory (config.yaml, metrics.jsonl, summary.json, best/, latest/).
        name: short name on the page; None: the directory's name.

    Raises:
        UserError: not a run directory, or an invalid file in it; names file and key.
    """
    path = Path(path)
    config_file = path / "config.yaml"
    if is_pretrained(path):
        return _pretrained(path, name)
    if not config_file.is_file():
        raise UserError(f"{path} is not a run directory (no config.yaml). Pass the training.output_dir of a run.")
    config = asdict(from_yaml(config_file))
    metrics, summary, problems = read_metrics(path / METRICS), read_summary(path / "summary.json"), []
    if not metrics:
        problems.append("it has no metrics.jsonl with validations or losses; its curves and metrics are missing")
    elif summary and metrics[-1]["step"] > summary["steps"]:
        problems.append(
            f"its metrics.jsonl ends at step {metrics[-1]['step']}, its summary.json at step {summary['steps']}: they "
            "are of different runs or versions of it"
        )
    if summary and summary["task"] != config["task"]:
        problems.append(f"its config.yaml is of task {config['task']}, its summary.json of task {summary['task']}")
    model = next((path / part for part in ("best", "latest") if (path / part / "unet" / CONFIG_JSON).is_file()), None)
    return Run(
        name=name or shown_name(path),
        path=path,
        task=str(config["task"]),
        config=config,
        train=[entry for entry in metrics if entry["kind"] == "train"],
        validation=[entry for entry in metrics if entry["kind"] == "validation"],
        summary=summary,
        model=model,
        model_config=read_model_config(model / "unet" / CONFIG_JSON) if model else _planned_model(config),
        problems=problems,
    )


def _pretrained(path: Path, name: str | None) -> Run:
    """A pipeline directory of diffusers as a run without training; the other runs' dataset is filled in later."""
    config = run_config(path)
    config.task, config.data.size = "diffusion", trained_size(path)
    summary = {"task": config.task, "steps": 0, "minutes": 0.0, "parameters": {}}
    network = read_model_config(path / "unet" / CONFIG_JSON)
    options: JsonDict = {"config": asdict(config), "summary": summary, "model": path, "model_config": network}
    return Run(name or shown_name(path), path, config.task, **options, is_pretrained=True)


def read_model_config(path: Path) -> JsonDict:
    """The keys of `ModelConfig` in a config.json, with defaults for missing ones; other keys are left out.

    Raises:
        UserError: the file is invalid; names the key.
    """
    content = UNet.read_config(path.parent) if is_stock(path.parent) else read_object(path, REMEDY)
    known = {field.name for field in fields(ModelConfig)}
    own = {key: value for key, value in content.items() if key in known}
    model = typed(ModelConfig, own, path, remedy=REMEDY)
    if model.heads.segmentation is None and model.heads.diffusion is None:
        raise FileError.of(path, "heads: must have segmentation or diffusion", REMEDY)
    for key, widths in (("encoder", model.encoder.channels), ("decoder", model.decoder.channels)):
        if widths is not None and not (0 < len(widths) <= MAX_LEVELS and min(widths) > 0):
            raise FileError.of(path, f"{key}.channels: must be 1 to {MAX_LEVELS} positive integers", REMEDY)
    return asdict(model)


def _planned_model(config: JsonDict) -> JsonDict:
    """The `model` section of a run without saved weights, with the heads that its task trains."""
    model = dict(config.get("model") or {})
    heads: JsonDict = {name: {} for name in ("segmentation", "diffusion") if config["task"] in (name, "joint")}
    model["heads"] = {k: v for k, v in (model.get("heads") or {}).items() if v is not None} or heads
    return model


def read_runs(paths: Iterable[Path]) -> list[Run]:
    """The runs in `paths`, with unique names: the shortest distinct endings of the paths.

    A pipeline directory of diffusers has the dataset of the first run, at its own size.
    """
    paths = [Path(path) for path in paths]
    if not paths:
        raise UserError("runs: must contain at least one run directory.")
    resolved = [path.resolve() for path in paths]
    for index, path in enumerate(resolved):
        if path in resolved[:index]:
            raise UserError(f"runs={paths[index]}: must be listed once.")
    runs = [read_run(path, name) for path, name in zip(paths, distinct_names(resolved), strict=True)]
    trained = next((run for run in runs if not run.is_pretrained), None)
    for run in runs:
        if run.is_pretrained and trained is None:
            raise UserError(f"{run.path}: must be given with a run, whose dataset it is shown on (got no run).")
        if run.is_pretrained and trained is not None:
            run.config["data"] = {**trained.config["data"], "size": run.config["data"]["size"]}
    return runs


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
