"""A trained denoiser as a pipeline directory that diffusers loads without this package."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel
from torch import Tensor

from unetdiff.errors import UserError
from unetdiff.export.convert.from_diffusers import CLASSES
from unetdiff.export.files import Exported, write
from unetdiff.export.plan import make_plan
from unetdiff.files import require_folder
from unetdiff.models.unet import UNet
from unetdiff.segmentation.pipeline import SETTINGS_FILE

INDEX, NETWORK = "model_index.json", "unet"
STOCK_PIPELINE = "DDIMPipeline"


def to_diffusers(directory: Path, output: Path) -> Exported:
    """Write a pipeline directory in diffusers' layout from one of our model directories, and compare the two networks.

    `unet/` becomes diffusers' own class (`UNet.to_diffusers`); everything else is as it was. A denoiser of
    images without condition and cross-attention is then a `DDIMPipeline` for diffusers; one that is told
    something goes on to need our conditioner, one of masks their classes, one of latents what decodes them, and all of
    these `GenerationPipeline`, which draws with diffusers' network as with ours.

    Args:
        directory: a model directory with `unet/` and, for a denoiser, model_index.json.
        output: a directory that is not there yet, or empty.

    Raises:
        UserError: for a directory that holds something, a network that diffusers has not, or one that answers
            otherwise there; then nothing is left behind.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"'{output}' is there already; delete it, or give another directory")
    require_folder(output)
    unet = UNet.from_pretrained(directory / NETWORK)
    if not (directory / INDEX).is_file():
        raise UserError(f"'{directory}' has no {INDEX}, so no denoiser, and diffusers' networks are; use onnx or torch")

    def save(aside: Path) -> None:
        unet.to_diffusers(aside / NETWORK)
        index = json.loads((directory / INDEX).read_text())
        for name, (library, _) in _parts(index).items():
            if name != NETWORK and library is not None:
                shutil.copytree(directory / name, aside / name)
        if (directory / SETTINGS_FILE).is_file():
            shutil.copy(directory / SETTINGS_FILE, aside)
        _write_index(aside, index)

    def load(aside: Path) -> Callable[..., Tensor]:
        stock: Any = _class(aside).from_pretrained(aside / NETWORK)

        def run(*inputs: Tensor | None) -> Tensor:
            arguments = {name: x for name, x in zip(plan.arguments, inputs, strict=True) if x is not None}
            return stock(**arguments, return_dict=False)[0]

        return run

    plan = make_plan(unet, "diffusion", None, None, False)
    unit = max(plan.smallest, 8)  # `UNet2DModel` takes multiples of the smallest size
    return write(output, plan, save, load, [plan.inputs(2, (2 * unit, 3 * unit), seed=1)])


def _write_index(directory: Path, index: dict[str, Any]) -> None:
    """model_index.json for diffusers' class of network, and for its own pipeline where that is enough."""
    index[NETWORK] = ["diffusers", _class(directory).__name__]
    parts = _parts(index)
    nothing = [name for name, (library, _) in parts.items() if library is None]
    cross_attention = _class(directory) is UNet2DConditionModel  # reads tokens, if only the null condition
    if (
        "conditioner" in nothing
        and not cross_attention
        and "masks" not in index
        and parts.get("vae", [None])[0] is None
    ):
        index["_class_name"] = STOCK_PIPELINE
        index = {key: value for key, value in index.items() if key not in nothing}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _parts(index: dict[str, Any]) -> dict[str, list[str | None]]:
    """A pipeline's parts by name: the library and the class of each, or two nulls."""
    return {key: value for key, value in index.items() if isinstance(value, list) and len(value) == 2}


def _class(directory: Path) -> Any:
    return CLASSES[json.loads((directory / NETWORK / "config.json").read_text())["_class_name"]]
