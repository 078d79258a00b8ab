"""Steps with a non-finite loss: skipped and logged; too many in a row stop the run."""

from __future__ import annotations

from pathlib import Path

from accelerate.utils import gather_object
from torch import Tensor

from unetdiff.errors import TrainingStopped
from unetdiff.files.records import write_json
from unetdiff.training.checkpoints import newest
from unetdiff.training.logger import RunLogger
from unetdiff.training.progress import Progress

NONFINITE = "nonfinite.json"


def skip_nonfinite(
    losses: dict[str, Tensor], names: list[str], progress: Progress, limit: int, run: Path, logger: RunLogger | None
) -> None:
    """Count and log a skipped step. Collective.

    Args:
        losses: of the step.
        names: of this process's images.
        progress: of the run, this step included.
        limit: non-finite losses in a row that stop the run.
        run: the run directory.
        logger: of the main process; None on the others.

    Raises:
        TrainingStopped: `limit` skipped steps in a row; nonfinite.json has the losses and images of the last.
    """
    progress.nonfinite += 1
    progress.skipped += 1
    names = gather_object(names)  # any process may have met the non-finite loss
    if logger is not None:
        logger.log_metrics("nonfinite", progress.step, {"in_a_row": progress.nonfinite, "names": names})
        logger.info(f"step {progress.step}: non-finite loss, step skipped ({progress.nonfinite} in a row)")
    if progress.nonfinite < limit:
        return
    path = run / NONFINITE
    if logger is not None:
        values = {name: float(value) for name, value in losses.items()}
        write_json(path, {"step": progress.step, "losses": values, "names": names})
    raise TrainingStopped(
        f"{progress.nonfinite} non-finite losses in a row at step {progress.step}; {path} lists the files of the last "
        f"batch. {nonfinite_hint(run)}"
    )


def nonfinite_hint(run: Path) -> str:
    """How to continue: with mended files, or in a new run from these weights with a lower learning rate."""
    checkpoint = newest(run)
    if checkpoint is None:
        return (
            "No checkpoint was written yet: check those files, or lower training.optimizer.lr, and start again with "
            "--overwrite."
        )
    return (
        f"If a file is damaged, replace it and continue from {checkpoint} with --resume. Otherwise start a new run "
        f"from the weights: --training.init_from {run} with a lower --training.optimizer.lr and another --output_dir."
    )
