"""The run directory: new, continued (`--resume`, the config must match) or replaced (`--overwrite`).

Nothing is deleted that no run wrote: `--overwrite` requires a config.yaml as a run writes it and only files as a run
writes them, and names the first other file. A directory that another process trains in is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from unetdiff.config.reading import from_yaml, to_yaml
from unetdiff.config.schema import RunConfig
from unetdiff.data.stats import CLASS_WEIGHT_METHODS
from unetdiff.errors import FileError, UserError, config_error
from unetdiff.files.folders import JUNK, names_in, regular_file
from unetdiff.files.texts import read_text
from unetdiff.files.writing import (
    OLD,
    WRITING,
    discard,
    make_folder,
    remove_tree,
    require_writable,
    sweep,
    write_text,
)
from unetdiff.training import checkpoints
from unetdiff.training.logger import IMAGES, METRICS, TENSORBOARD
from unetdiff.training.nonfinite import NONFINITE

CONFIG, SUMMARY = "config.yaml", "summary.json"
OVERWRITING = f"{WRITING}overwrite"
"""Exists while `--overwrite` deletes a run: a directory with it counts as empty, whatever was not deleted yet."""
SYSTEM = frozenset({".ds_store", *JUNK})
FILES = (CONFIG, METRICS, SUMMARY, NONFINITE)
OURS = {
    **{name: None for name in FILES},
    "best": r"unet|scheduler|conditioner|vae|text_encoder|tokenizer|.*\.json",
    "latest": r"unet|scheduler|conditioner|vae|text_encoder|tokenizer|.*\.json",
    checkpoints.FOLDER: r"step-\d+",
    IMAGES: r"step-\d+-[\w-]+\.png",
    TENSORBOARD: r"events\.out\.tfevents\..*",
    "evaluation-val": r".*\.(json|csv|md|png|html)",
    "evaluation-train": r".*\.(json|csv|md|png|html)",
    "classifier.json": None,
    "classifier.safetensors": None,
    "class_consistency.json": None,
    "reference": r".*\.(json|safetensors)",
}
"""What commands write in a run directory -> pattern of the names in it (None: anything)."""
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
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "joint.log_gradients",
    "data.root",
    "data.download",
}
# keys that change the length of a run: a resumed run follows the schedule of the new length
LENGTH = ("training.steps", "training.epochs")


def check_run(config: RunConfig) -> None:
    """Refuse a run directory that cannot be used, before any work. Nothing is written.

    Raises:
        UserError: it cannot be written, contains other files, or a run (without --resume or --overwrite), or the run
            of a different config (with --resume); inputs of the run lie in it.
    """
    run = Path(config.training.output_dir)
    require_writable("training.output_dir", run, folder=True)
    _require_inputs_outside(config, run)
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
        _require_deletable(run)


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
        if (old.training.steps, old.training.epochs) != (config.training.steps, config.training.epochs):
            remove_tree(run / SUMMARY)  # of the previous length
            old.training.steps, old.training.epochs = config.training.steps, config.training.epochs
            write_text(run / CONFIG, to_yaml(old))
        return run
    make_folder(run)
    if any(name != OVERWRITING for name in _names(run)):
        _delete(run)
    stored = replace(config, training=replace(config.training, resume=False, overwrite=False))
    write_text(run / CONFIG, to_yaml(stored))
    remove_tree(run / OVERWRITING)
    return run


def directory_state(run: Path) -> str:
    """ "new" (missing, empty, or only leftovers of ours), "not started" (no step was finished), "run" or "foreign".

    Raises:
        FileError: it cannot be read, or contains a config of another version.
    """
    if (run / OVERWRITING).exists():
        return "not started"
    if not run.is_dir() or not any(not name.startswith(WRITING) for name in _names(run)):
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


# ------------------------------------------------------------------------------------------- deleting


def _inputs(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Keys that name files or folders to read, with their values."""
    diffusion = config.diffusion
    paths = {
        "data.root": None if config.data.name == "scenes" else config.data.root,
        "model.encoder.weights": config.model.encoder.weights,
        "diffusion.latent.vae": diffusion.latent.vae,
        "diffusion.text.encoder": diffusion.text.encoder if diffusion.condition == "text" else None,
    }
    for key, value in paths.items():
        if value is not None:
            yield key, value


def _require_inputs_outside(config: RunConfig, run: Path) -> None:
    inside = run.resolve()
    for key, value in _inputs(config):
        path = Path(value).expanduser()
        if path.exists() and path.resolve().is_relative_to(inside):
            raise config_error(key, value, f"outside of training.output_dir={run}", "Give another output directory.")
    if config.training.overwrite:
        for name, place in (("the working directory", Path.cwd()), ("your home folder", Path.home())):
            if place.resolve().is_relative_to(inside):
                remedy = f"It is or contains {name}. Give another directory."
                raise config_error("training.output_dir", run, "a directory that can be deleted", remedy)


def _require_deletable(run: Path) -> None:
    """Refuse to delete a directory that is not exactly what runs write."""
    remedy = "Move it, or give another training.output_dir."
    if not (run / OVERWRITING).exists():
        try:
            is_ours = read_text(run / CONFIG) == to_yaml(from_yaml(run / CONFIG))
        except FileError as error:
            raise FileError.of(run / CONFIG, f"must be of a run to be replaced ({error.reason})", remedy) from None
        if not is_ours:
            reason = "must be as a run wrote it, to be replaced (it was written or edited by hand)"
            raise FileError.of(run / CONFIG, reason, remedy)
    for path in _foreign(run):
        raise FileError.of(path, "was not written by a run, so its directory is not replaced", remedy)


def _names(folder: Path) -> list[str]:
    """The names in a folder, without those that operating systems add to any folder."""
    return [name for name in names_in(folder) if not (name.lower() in SYSTEM or name.startswith(("._", ".nfs")))]


def _foreign(run: Path) -> Iterator[Path]:
    for name in _names(run):
        path, plain = run / name, name.removeprefix(WRITING).removeprefix(OLD)
        if (
            plain not in OURS
            and not name.startswith(WRITING)
            or path.is_symlink()
            or (plain in FILES and not path.is_file())
        ):
            yield path
        elif plain in OURS and (pattern := OURS[plain]) is not None:
            if not path.is_dir():
                yield path
                continue
            for inner in _names(path):
                if not inner.startswith((WRITING, OLD)) and not re.fullmatch(pattern, inner):
                    yield path / inner


def _delete(run: Path) -> None:
    """Delete what runs write; after a kill, the directory counts as empty."""
    write_text(run / OVERWRITING, "")
    names = [name for name in _names(run) if name != OVERWRITING]
    for name in sorted(names, key=lambda name: name == CONFIG):
        discard(run / name) if name in OURS else remove_tree(run / name)
