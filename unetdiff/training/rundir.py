"""The run directory: must be empty, unless the run is resumed (the config must match) or overwritten."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from unetdiff.config.reading import from_yaml, to_yaml
from unetdiff.config.schema import RunConfig
from unetdiff.errors import UserError
from unetdiff.files.writing import write_text

CONFIG, SUMMARY = "config.yaml", "summary.json"
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


def open_run(config: RunConfig) -> Path:
    """Prepare the run directory of a config; nothing is written if it is refused.

    Raises:
        UserError: it contains a run (without --resume or --overwrite), other files, or the run of a different config
            (with --resume).
    """
    run = Path(config.training.output_dir)
    if run.exists() and not run.is_dir():
        raise UserError(f"training.output_dir={run}: must be a directory (got a file).")
    occupied = run.is_dir() and any(run.iterdir())
    is_run = (run / CONFIG).is_file()
    if occupied and not is_run:
        raise UserError(
            f"training.output_dir={run}: must be empty or contain a run (got other files, no {CONFIG}). "
            "Give an empty or new directory."
        )
    if is_run and config.training.resume:
        old = from_yaml(run / CONFIG)
        _require_same(old, config, run)
        if (old.training.steps, old.training.epochs) != (config.training.steps, config.training.epochs):
            old.training.steps, old.training.epochs = config.training.steps, config.training.epochs
            write_text(run / CONFIG, to_yaml(old))
            (run / SUMMARY).unlink(missing_ok=True)  # of the previous length
        return run
    if is_run and not config.training.overwrite:
        raise UserError(
            f"training.output_dir={run}: must be empty (got a run). "
            "Continue it with --resume, or delete it with --overwrite."
        )
    if is_run:
        shutil.rmtree(run)
    run.mkdir(parents=True, exist_ok=True)
    stored = replace(config, training=replace(config.training, resume=False, overwrite=False))
    write_text(run / CONFIG, to_yaml(stored))
    return run


def _require_same(old: RunConfig, new: RunConfig, run: Path) -> None:
    before, now = _flat(asdict(old)), _flat(asdict(new))
    # a section that may be null (segmentation.ohem) is one key without it, several with it
    free = FREE.union(LENGTH)
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
