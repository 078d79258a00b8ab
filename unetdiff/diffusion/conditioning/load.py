"""Load a conditioner of any kind from its directory."""

from __future__ import annotations

from pathlib import Path

from unetdiff.diffusion.conditioning.base import Conditioner
from unetdiff.diffusion.conditioning.classes import ClassConditioner
from unetdiff.diffusion.conditioning.images import ImageConditioner
from unetdiff.diffusion.conditioning.layouts import LayoutConditioner
from unetdiff.diffusion.conditioning.text import TextConditioner
from unetdiff.errors import FileError
from unetdiff.models.loading import read_json

KINDS: tuple[type[Conditioner], ...] = (ClassConditioner, LayoutConditioner, ImageConditioner, TextConditioner)


def load_conditioner(directory: Path) -> Conditioner:
    """The conditioner that `save_pretrained` wrote.

    Raises:
        UserError: an unknown class, or damaged weights.
    """
    name = read_json(directory / "config.json").get("_class_name")
    for kind in KINDS:
        if kind.__name__ == name:
            return kind.from_pretrained(directory)
    known = ", ".join(kind.__name__ for kind in KINDS)
    raise FileError.of(directory / "config.json", f"_class_name={name}: must be one of {known}")
