"""The run directory: new, continued (`--resume`, the config must match) or replaced (`--overwrite`).

Nothing is deleted that no run wrote: `--overwrite` requires a config.yaml as a run writes it and only files as a run
writes them, and names the first other file. A directory that another process trains in is refused.
"""

from __future__ import annotations

from contextlib import ExitStack
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from unetdiff.config.command_line import apply
from unetdiff.config.reading import from_yaml, to_yaml
from unetdiff.config.schema import RunConfig
from unetdiff.data.stats import CLASS_WEIGHT_METHODS
from unetdiff.errors import UserError
from unetdiff.files.folders import names_in, regular_file
from unetdiff.files.locks import locked
from unetdiff.files.writing import (
    OLD,
    WRITING,
    make_folder,
    remove_tree,
    require_writable,
    sweep,
    write_text,
)
from unetdiff.training import checkpoints
from unetdiff.training.logger import CONFIG, IMAGES, METRICS, SUMMARY
from unetdiff.training.overwriting import (
    FILES,
    OVERWRITING,
    delete,
    own_names,
    require_deletable,
    require_inputs_outside,
)

RESULTS = ("best", "latest", SUMMARY)
"""Written after the first checkpoint."""
# keys that may differ between the sessions of a run: the weights do not depend on them
FREE = {
    "training.output_dir",
    "training.resume",
    "training.overwrite",
    "training.num_workers",
    "training.eval_batch_size",
    "training.log_every",
    "training.log_with",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "joint.log_gradients",
    "data.root",
    "data.regularization_root",
    "data.unlabelled_root",
    "data.download",
    "latent.cache_dir",
    "diffusion.text.cache_dir",
}
# keys that change the length of a run: a resumed run follows the schedule of the new length
LENGTH = ("training.steps", "training.epochs", "training.early_stopping_patience")


FROM_DATA = ("data.channels", "data.image_range", "model.encoder.mean", "model.encoder.std")
"""Keys that a run fills in from its training images where they are null."""


def with_saved_values(config: RunConfig, run: Path) -> RunConfig:
    """The config of a resumed run with the values of `FROM_DATA` that it began with, where they are null."""
    if not config.training.resume or directory_state(run) != "run":
        return config
    config, saved = deepcopy(config), from_yaml(run / CONFIG)
    for section, source in ((config.data, saved.data), (config.model.encoder, saved.model.encoder)):
        for name in (key.rpartition(".")[2] for key in FROM_DATA):
            if getattr(section, name, ...) is None:
                setattr(section, name, getattr(source, name))
    return config


def check_run(config: RunConfig) -> None:
    """Refuse a run directory that cannot be used, before any work. Nothing is written.

    Raises:
        UserError: it cannot be written, contains other files, or a run (without --resume or --overwrite), or the run
            of a different config (with --resume); inputs of the run lie in it.
    """
    run = Path(config.training.output_dir)
    require_writable("training.output_dir", run, folder=True)
    require_inputs_outside(config, run)
    state = directory_state(run)
    if state == "foreign":
        raise UserError(
            f"training.output_dir={run}: must be empty or contain a run (got other files, no {CONFIG} of a run). "
            "Give an empty or new directory."
        )
    if state == "run" and config.training.resume:
        _require_resumable(config, run)
    elif state == "run" and not config.training.overwrite:
        raise UserError(
            f"training.output_dir={run}: must be empty (got a run). "
            "Continue it with --resume, or delete it with --overwrite."
        )
    if (state == "run" and config.training.overwrite) or state == "not started":
        require_deletable(run)


def open_run(config: RunConfig) -> Path:
    """Prepare the run directory of a config; call it after `check_run`, holding the directory's lock.

    Raises:
        UserError: as of `check_run`, which is called again.
        OSError: the directory cannot be written.
    """
    run = Path(config.training.output_dir)
    check_run(config)
    if directory_state(run) == "run" and config.training.resume:
        tidy(run)
        old = from_yaml(run / CONFIG)
        length = {key: value for key, value in _flat(asdict(config)).items() if key in LENGTH}
        if (longer := apply(old, length)) != old:
            remove_tree(run / SUMMARY)  # of the previous length
            write_text(run / CONFIG, to_yaml(longer))
        return run
    make_folder(run)
    if any(name != OVERWRITING for name in own_names(run)):
        delete(run)
    stored = replace(config, training=replace(config.training, resume=False, overwrite=False))
    write_text(run / CONFIG, to_yaml(stored))
    remove_tree(run / OVERWRITING)
    return run


class Claim:
    """The run directory of a process that trains, locked until `close`: from `check` on, if it exists."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._lock: ExitStack | None = None

    def check(self, config: RunConfig) -> None:
        """`check_run`, and `tidy` a run that is resumed.

        Raises:
            UserError: as of `check_run`, or another process trains in it.
        """
        require_writable("training.output_dir", self.run, folder=True)
        if self.run.is_dir():
            self._hold()
        check_run(config)
        if config.training.resume and directory_state(self.run) == "run":
            tidy(self.run)

    def prepare(self, config: RunConfig) -> None:
        """`open_run`. Errors as of `check` and `open_run`."""
        make_folder(self.run)
        self._hold()
        open_run(config)

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.close()
        self._lock = None

    def _hold(self) -> None:
        if self._lock is None:
            stack = ExitStack()
            stack.enter_context(locked(self.run))
            self._lock = stack


def directory_state(run: Path) -> str:
    """ "new" (missing, empty, or only leftovers of ours), "not started" (no step was finished), "run" or "foreign".

    Raises:
        FileError: it cannot be read, or contains a config of another version.
    """
    if (run / OVERWRITING).exists():
        return "not started"
    if not run.is_dir() or not any(not name.startswith(WRITING) for name in own_names(run)):
        return "new"
    if not (run / CONFIG).exists():
        return "foreign"
    regular_file(run / CONFIG)
    written = _has_lines(run / METRICS) or any((run / name).exists() for name in RESULTS)
    return "run" if written or _has_checkpoint(run) else "not started"


def tidy(run: Path) -> None:
    """Delete what a killed process left in a run directory, and finish what it was replacing.

    Raises:
        OSError: the directory cannot be written.
    """
    folder = run / checkpoints.FOLDER
    for place in (run, folder, run / IMAGES):
        sweep(place)
    for checkpoint in checkpoints.complete(run):
        sweep(checkpoint)


def _has_lines(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _has_checkpoint(run: Path) -> bool:
    folder = run / checkpoints.FOLDER
    names = names_in(folder) if folder.is_dir() else []
    return any(name.removeprefix(OLD).startswith("step-") for name in names)


# ------------------------------------------------------------------------------------------- resuming


def _require_resumable(config: RunConfig, run: Path) -> None:
    for name in FILES:
        if (run / name).exists():
            regular_file(run / name)
    _require_same(from_yaml(run / CONFIG), config, run)
    results = [name for name in RESULTS if (run / name).exists()]
    if results and not _has_checkpoint(run):
        raise UserError(
            f"training.resume=true: must be of a run with {checkpoints.FOLDER}/ (got '{run}' with {results[0]} and "
            "without any). Restore them, or train in another training.output_dir."
        )


def _require_same(old: RunConfig, new: RunConfig, run: Path) -> None:
    before, now = _flat(asdict(old)), _flat(asdict(new))
    # a section that may be null (segmentation.ohem) is one key without it, several with it
    free = FREE.union(LENGTH)
    if new.segmentation.class_weights in CLASS_WEIGHT_METHODS and isinstance(old.segmentation.class_weights, list):
        free.add("segmentation.class_weights")  # compared when they are computed
    free |= {key for key in FROM_DATA if now.get(key) is None}  # taken from the run
    changed = [k for k in now | before if k not in free and before.get(k) != now.get(k)]
    if changed:
        key = changed[0]
        raise UserError(
            f"{key}={now.get(key)!r}: must be {before.get(key)!r}, as in the run in '{run}' "
            f"({len(changed)} keys differ). Resume with the same config, or give another training.output_dir."
        )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
