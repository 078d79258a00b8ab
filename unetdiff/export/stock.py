"""Export of a denoiser to a pipeline directory in diffusers' layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel
from torch import Tensor

from unetdiff.errors import config_error
from unetdiff.export.convert.from_diffusers import CLASSES
from unetdiff.export.files import Exported, write
from unetdiff.export.plan import make_plan
from unetdiff.files import records
from unetdiff.files.folders import inside, names_in
from unetdiff.files.writing import copy_tree, require_writable
from unetdiff.models.unet import UNet
from unetdiff.segmentation.pipeline import SETTINGS_FILE

INDEX, NETWORK = "model_index.json", "unet"
STOCK_PIPELINE = "DDIMPipeline"


def to_diffusers(directory: Path, output: Path) -> Exported:
    """Write a pipeline directory in diffusers' layout from a model directory, and compare the two networks' outputs.

    `unet/` becomes a `UNet2DModel` or `UNet2DConditionModel` (`UNet.to_diffusers`); the rest is copied. diffusers loads
    an unconditional denoiser of pixels without cross-attention as a `DDIMPipeline`. One with a condition, of masks or
    of latents still needs `GenerationPipeline` with its conditioner, classes or decoder, which samples with diffusers'
    networks too.

    Args:
        directory: a model directory with `unet/` and model_index.json.
        output: a directory that does not exist or is empty.

    Returns:
        The directory, and the comparison of the outputs.

    Raises:
        UserError: a directory that is not empty, a directory without a denoiser, a network without a counterpart in
            diffusers, or outputs that differ; then nothing is written.
    """
    if output.exists() and (not output.is_dir() or names_in(output)):
        raise config_error("output", output, "a new or an empty directory", "Delete it, or choose another.")
    require_writable("output", output, folder=True)
    unet = UNet.from_pretrained(directory / NETWORK)
    if not (directory / INDEX).is_file():
        constraint = f"a denoiser's model directory, with {INDEX}"
        raise config_error("path", directory, constraint, "Export a segmenter with --format=onnx or --format=torch.")

    def save(aside: Path) -> None:
        unet.to_diffusers(aside / NETWORK)
        index = records.read_object(directory / INDEX)
        for name, (library, _) in _parts(index).items():
            if name != NETWORK and library is not None:
                copy_tree(inside(directory, name), aside / name)
        if (directory / SETTINGS_FILE).is_file():
            records.write_json(aside / SETTINGS_FILE, records.read_object(directory / SETTINGS_FILE))
        _write_index(aside, index)

    def load(aside: Path) -> Callable[..., Tensor]:
        stock: Any = _class(aside).from_pretrained(aside / NETWORK)

        def run(*inputs: Tensor | None) -> Tensor:
            arguments = {name: x for name, x in zip(plan.arguments, inputs, strict=True) if x is not None}
            return stock(**arguments, return_dict=False)[0]

        return run

    plan = make_plan(unet, "diffusion", None, None, False)
    unit = max(plan.min_side, 8)  # `UNet2DModel` takes multiples of the smallest size
    return write(output, plan, save, load, [plan.inputs(2, (2 * unit, 3 * unit), seed=1)])


def _write_index(directory: Path, index: dict[str, Any]) -> None:
    """Write model_index.json with diffusers' class of network, and its own pipeline class if that suffices."""
    index[NETWORK] = ["diffusers", _class(directory).__name__]
    parts = _parts(index)
    absent = [name for name, (library, _) in parts.items() if library is None]
    cross_attention = _class(directory) is UNet2DConditionModel  # needs tokens, at least the null condition
    if "conditioner" in absent and not cross_attention and "masks" not in index and parts.get("vae", [None])[0] is None:
        index["_class_name"] = STOCK_PIPELINE
        index = {key: value for key, value in index.items() if key not in absent}
    records.write_json(directory / INDEX, index, indent=2)


def _parts(index: dict[str, Any]) -> dict[str, list[str | None]]:
    """A pipeline's components by name: the library and the class of each, or two nulls."""
    return {key: value for key, value in index.items() if isinstance(value, list) and len(value) == 2}


def _class(directory: Path) -> Any:
    return CLASSES[records.read_object(directory / NETWORK / "config.json")["_class_name"]]
