"""Steps with a non-finite loss: skipped and logged; too many in a row stop the run."""

from __future__ import annotations

import json
from pathlib import Path

from accelerate.utils import gather_object
from torch import Tensor

from unetdiff.errors import TrainingStopped
from unetdiff.training.checkpoints import Progress, resume_hint
from unetdiff.training.logger import RunLogger


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
    path = run / "nonfinite.json"
    if logger is not None:
        values = {name: float(value) for name, value in losses.items()}
        path.write_text(json.dumps({"step": progress.step, "losses": values, "names": names}, indent=1))
    raise TrainingStopped(
        f"{progress.nonfinite} non-finite losses in a row at step {progress.step}; {path} lists the files of the "
        f"last batch. Check those files, or lower training.optimizer.lr. {resume_hint(run)}"
    )
