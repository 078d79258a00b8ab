"""The run directory: refused when occupied, emptied when asked, checked when a run goes on in it."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from unetdiff.config.reading import from_yaml, to_yaml
from unetdiff.config.schema import RunConfig
from unetdiff.errors import UserError
from unetdiff.files import write_whole

CONFIG, SUMMARY = "config.yaml", "summary.json"
# what may differ between the sessions of one run: nothing that the weights depend on
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
# what makes a run longer or shorter: from where it is, it follows the schedule of its new length
LENGTH = ("training.steps", "training.epochs")


def open_run(config: RunConfig) -> Path:
    """The run directory of a config, made ready; nothing is written where it is refused.

    Raises:
        UserError: it holds a run and neither --resume nor --overwrite was given, it holds something that is no run, or
            the run to be resumed was started with another config.
    """
    run = Path(config.training.output_dir)
    if run.exists() and not run.is_dir():
        raise UserError(f"training.output_dir: '{run}' is a file; give a directory")
    occupied = run.is_dir() and any(run.iterdir())
    is_run = (run / CONFIG).is_file()
    if occupied and not is_run:
        raise UserError(
            f"training.output_dir: '{run}' holds files but no run ({CONFIG}); give an empty or new directory"
        )
    if is_run and config.training.resume:
        old = from_yaml(run / CONFIG)
        _same(old, config, run)
        if (old.training.steps, old.training.epochs) != (config.training.steps, config.training.epochs):
            old.training.steps, old.training.epochs = config.training.steps, config.training.epochs
            write_whole(run / CONFIG, to_yaml(old))
            (run / SUMMARY).unlink(missing_ok=True)  # of the length that it had
        return run
    if is_run and not config.training.overwrite:
        raise UserError(
            f"training.output_dir: '{run}' holds a run already; --resume goes on with it, --overwrite deletes it"
        )
    if is_run:
        shutil.rmtree(run)
    run.mkdir(parents=True, exist_ok=True)
    lasting = replace(config, training=replace(config.training, resume=False, overwrite=False))  # what it is, not how
    write_whole(run / CONFIG, to_yaml(lasting))
    return run


def _same(old: RunConfig, new: RunConfig, run: Path) -> None:
    before, now = _flat(asdict(old)), _flat(asdict(new))
    # a section that may be null (segmentation.ohem) is one key without it, several with it
    free = FREE.union(LENGTH)
    changed = [k for k in now | before if k not in free and before.get(k) != now.get(k)]
    if changed:
        key = changed[0]
        raise UserError(
            f"{key}: {now.get(key)!r}, but the run in '{run}' was started with {before.get(key)!r}; "
            f"resume with the same config ({len(changed)} keys differ), or give another training.output_dir"
        )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
