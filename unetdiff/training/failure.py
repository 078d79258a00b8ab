"""What ends a run early, in one line: what happened, what was saved, and how to continue."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from safetensors import SafetensorError
from torch import OutOfMemoryError

from unetdiff.console import say
from unetdiff.errors import TrainingStopped, UserError, printable
from unetdiff.files.tensors import os_error_of
from unetdiff.files.writing import WRITING
from unetdiff.training.checkpoints import resume_hint
from unetdiff.training.saver import Saver

MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")
WORKER = ("dataloader worker",)
MEMORY_REMEDY = "Free memory, or lower training.eval_batch_size if it was a validation."
WORKER_REMEDY = "It may have been killed for memory: lower training.num_workers."


def end_run(error: Exception, run: Path, saver: Saver | None) -> NoReturn:
    """Save what can be saved of a run that fails, and raise `explained`; no saver: it failed before it was ready.

    Raises:
        UserError, TrainingStopped, or the error itself.
    """
    if saver is not None:
        saver.rescue()
    started = saver is not None and saver.started
    reason = explained(error, run, 0 if saver is None else saver.progress.step, started)
    if reason is not error:
        raise reason from error
    if started and not isinstance(error, UserError):
        say(resume_hint(run))
    raise error


def explained(error: BaseException, run: Path, step: int, started: bool) -> BaseException:
    """The exception that is raised in the place of another, from a run that had finished `step` steps.

    `started`: whether it began a step in this session, so that the error is not about how it was started.

    Errors of files, memory and data loader processes become TrainingStopped; a UserError says how to continue, if
    there is a checkpoint. Others are bugs and stay as they are.
    """
    hint = resume_hint(run)
    if isinstance(error, SafetensorError):
        error = os_error_of(error, run)
    if isinstance(error, UserError):
        return UserError(f"{error} {hint}") if started and step else error
    if isinstance(error, MemoryError | OutOfMemoryError):
        return TrainingStopped(f"Out of memory after step {step}. {MEMORY_REMEDY} {hint}")
    words = printable((str(error).splitlines() or [""])[0]).rstrip(".")
    if isinstance(error, OSError):
        path = str(error.filename or run).replace(WRITING, "")
        reason = error.strerror or words or type(error).__name__
        return TrainingStopped(f"{printable(path)}: {reason[:1].lower()}{reason[1:]}. {hint}")
    if isinstance(error, RuntimeError) and any(text in str(error).lower() for text in MEMORY):
        return TrainingStopped(f"Out of memory after step {step} ({words}). {MEMORY_REMEDY} {hint}")
    if isinstance(error, RuntimeError) and any(text in str(error).lower() for text in WORKER):
        return TrainingStopped(f"A data loading process ended ({words}). {WORKER_REMEDY} {hint}")
    return error
