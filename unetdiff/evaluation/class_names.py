"""The classes of a trained model against those of the dataset it is applied to: the same names in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unetdiff.data.base import ImageDataset
from unetdiff.diffusion.conditioning.base import Conditioner
from unetdiff.diffusion.conditioning.classes import ClassConditioner
from unetdiff.diffusion.conditioning.layouts import LayoutConditioner
from unetdiff.diffusion.mask_codec import MaskCodec
from unetdiff.errors import UserError
from unetdiff.segmentation.pipeline import saved_classes
from unetdiff.training.tasks.base import Task
from unetdiff.training.tasks.diffusion import DiffusionTask
from unetdiff.training.tasks.joint import JointTask
from unetdiff.training.tasks.segmentation import SegmentationTask

MAX_SHOWN = 12
"""Classes of a list that are shown, from the first that differs on."""


DATASET = "the dataset must have the classes of the model"
"""What is required of a dataset that a model is applied to."""


def require_same_classes(
    expected: Sequence[str], other: Sequence[str], where: str, remedy: str = "", rule: str = DATASET
) -> None:
    """Raise UserError, with both lists, unless they are the same names in the same order.

    Args:
        expected: the names, e.g. those that the model was trained with.
        other: the names to compare, e.g. those of the dataset.
        where: the model or option, for the message.
        remedy: a sentence.
        rule: "X must have the classes of Y".
    """
    expected, other = list(expected), list(other)
    if expected == other:
        return
    pairs = enumerate(zip(expected, other, strict=False))
    first = next((i for i, (a, b) in pairs if a != b), min(len(expected), len(other)))
    raise UserError(
        f"{where}: {rule} in their order, {_listed(expected, first)} (got {_listed(other, first)}; they differ from "
        f"index {first} on). " + (remedy or "Evaluate on the dataset of the run, or give its classes in this order.")
    )


def require_classes_of_task(task: Task, directory: Path, images: ImageDataset) -> None:
    """`require_same_classes` of every head of a task that was loaded from a model directory.

    The segmentation head, a layout condition and a denoiser of masks have the classes of the masks; a class condition
    has the labels of the images.
    """
    diffusion = task.diffusion if isinstance(task, JointTask) else task
    where = str(directory)
    if isinstance(task, JointTask | SegmentationTask):
        names, number = saved_classes(directory), task.unet.num_classes or 0
        require_same_classes(names or [f"class {i}" for i in range(number)], images.classes, where)
    if isinstance(diffusion, DiffusionTask):
        if isinstance(diffusion.codec, MaskCodec):
            require_same_classes(diffusion.codec.classes, images.classes, where)
        require_classes_of_conditioner(diffusion.conditioner, images, where)


def require_classes_of_conditioner(conditioner: Conditioner | None, images: ImageDataset, where: str) -> None:
    """`require_same_classes` of a class or layout condition; nothing for others."""
    if isinstance(conditioner, ClassConditioner):
        require_same_classes(conditioner.labels, images.labels, where)
    if isinstance(conditioner, LayoutConditioner):
        require_same_classes(conditioner.labels, images.classes, where)


def _listed(names: Sequence[str], first: int) -> str:
    if len(names) <= MAX_SHOWN:
        return f"[{', '.join(names)}]"
    start = max(0, min(first, len(names) - MAX_SHOWN))
    shown = ", ".join(names[start : start + MAX_SHOWN])
    before, after = "… " if start else "", " …" if start + MAX_SHOWN < len(names) else ""
    return f"[{before}{shown}{after}] ({len(names)} classes)"
