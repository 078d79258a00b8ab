"""Export of a network to one file: ONNX, or torch.export's .pt2.

Batch size, height and width are dynamic unless they are fixed. The file is loaded again and its outputs are compared
with the network's at sizes other than the traced one; if they differ, it is deleted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from unetdiff.errors import UserError, config_error
from unetdiff.export.plan import Dims, Plan, make_plan
from unetdiff.files.writing import file_errors, require_writable, write_into_directory
from unetdiff.models.unet import Head, UNet
from unetdiff.segmentation.segmenter import Segmenter

__all__ = ["TOLERANCE", "Exported", "Format", "to_onnx", "to_torch_export"]

Format = Literal["onnx", "torch"]

TOLERANCE = 1e-4
"""Largest difference to the network's outputs, relative to their largest absolute value."""
OPSETS = (18, 23)
"""Oldest and newest ONNX operator set that torch's exporter writes."""
METADATA = "unetdiff.json"
"""Name of the metadata inside a .pt2."""
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Exported:
    """A written file or directory, and the comparison of its outputs with the network's."""

    path: Path
    """The file or directory."""
    inputs: dict[str, Dims]
    """Shape of each input; a dynamic dimension is a name."""
    output: str
    """Name of the output."""
    checked: list[tuple[int, ...]]
    """Shapes of the first input that the outputs were compared at."""
    difference: float
    """Largest absolute difference of the outputs at these shapes."""
    scale: float
    """Largest absolute output of the network at these shapes."""
    expected: str | None = None
    """What the input `pixels` must hold: channels, type, range; None for a denoiser."""


def to_onnx(
    network: UNet | Segmenter,
    path: str | Path,
    *,
    head: Head | None = None,
    size: Sequence[int] | None = None,
    batch: int | None = None,
    opset: int | None = None,
    preprocess: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> Exported:
    """Write an ONNX model and compare it with the network in onnxruntime.

    Segmentation head: `pixels` (B, channels, H, W) float32 in [-1, 1] -> `logits` (B, classes, H, W). Diffusion head:
    `sample` (B, channels, H, W) float32 and `timestep` (B,) int64, and if the network has them `encoder_hidden_states`
    (B, tokens, dim) and `class_labels` (B,) -> `prediction` (B, out_channels, H, W). A float32 copy of the network is
    exported, on the CPU and in eval mode.

    Args:
        network: the network, or a segmenter (`SegmentationPipeline.segmenter`), with its autoencoder and its context.
        path: the file (.onnx); weights of 2 GB or more are written to a second one, PATH.data.
        head: None: the segmentation head if there is one, else the diffusion head.
        size: (H, W) to fix height and width; None: dynamic.
        batch: to fix the batch size; None: dynamic.
        opset: ONNX operator set version; None: torch's default.
        preprocess: the input is uint8 images (B, H, W, channels) in [0, 255] instead of pixels in [-1, 1].
        metadata: written into the model, each value as JSON (`session.get_modelmeta().custom_metadata_map`).

    Raises:
        UserError: a missing package, head or parent directory, an invalid size, batch size or opset, or outputs that
            differ from the network's by more than TOLERANCE; then no file is written.
    """
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(f"format=onnx: requires {', '.join(missing)}. Run `pip install 'unetdiff[export]'`.")
    if opset is not None and not OPSETS[0] <= opset <= OPSETS[1]:
        raise config_error("opset", opset, f"in [{OPSETS[0]}, {OPSETS[1]}]")
    path = _checked_path(path, ".onnx")
    plan = make_plan(network, head, size, batch, preprocess)
    names = list(plan.shapes)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            plan.capture(),
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=names,
            output_names=[plan.output],
        )
    assert program is not None
    _name_dimensions(program.model.graph, plan)
    for key, value in plan.metadata(metadata).items():
        program.model.metadata_props[key] = json.dumps(value)

    def load(file: Path) -> Callable[..., Tensor]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

        def run(*inputs: Tensor | None) -> Tensor:
            arrays = dict(zip(names, (x.numpy() for x in inputs if x is not None), strict=True))
            return torch.from_numpy(session.run([plan.output], arrays)[0])

        return run

    return write(path, plan, program.save, load, plan.cases())


def to_torch_export(
    network: UNet | Segmenter,
    path: str | Path,
    *,
    head: Head | None = None,
    size: Sequence[int] | None = None,
    batch: int | None = None,
    preprocess: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> Exported:
    """Write a `torch.export` program (.pt2): `torch.export.load(path).module()(pixels)`. Arguments as of `to_onnx`.

    Its inputs are positional, in the order of `Exported.inputs`. A network with class_labels but without
    cross-attention takes None in the place of encoder_hidden_states. `metadata` is the extra file "unetdiff.json".

    Raises:
        UserError: as `to_onnx`.
    """
    path = _checked_path(path, ".pt2")
    plan = make_plan(network, head, size, batch, preprocess)
    program = plan.capture()
    extra = {METADATA: json.dumps(plan.metadata(metadata))}
    return write(
        path,
        plan,
        save=lambda file: torch.export.save(program, file, extra_files=extra),
        load=lambda file: torch.export.load(file).module(),
        cases=plan.cases(),
    )


def _checked_path(path: str | Path, suffix: str) -> Path:
    path = Path(path)
    if path.suffix != suffix:
        raise config_error("output", path, f"a path that ends in {suffix}")
    require_writable("output", path)
    return path


def write(
    path: Path,
    plan: Plan,
    save: Callable[[Path], Any],
    load: Callable[[Path], Callable[..., Tensor]],
    cases: Sequence[Sequence[Tensor | None]],
) -> Exported:
    """Save to a temporary directory, compare outputs with the network's, and move to `path` if they agree.

    Args:
        path: the file, or a directory that does not exist or is empty.
        plan: the module to export, and its inputs.
        save: writes the export to a path.
        load: loads it as a function of the plan's inputs.
        cases: inputs to compare at.

    Raises:
        UserError: outputs differ by more than TOLERANCE; then nothing is written to `path`.
    """
    checked: list[tuple[int, ...]] = []
    compared: list[tuple[float, float]] = []

    def save_checked(folder: Path) -> None:
        aside = folder / path.name
        with _quiet():
            save(aside)
            run = load(aside)
        compared.append(_compare(path, plan, run, cases, checked))

    with file_errors(path, "Give another path."):
        write_into_directory(path.parent, save_checked)
    difference, scale = compared[0]
    return Exported(path, plan.shapes, plan.output, checked, difference, scale, plan.expected)


def _compare(
    path: Path,
    plan: Plan,
    run: Callable[..., Tensor],
    cases: Sequence[Sequence[Tensor | None]],
    checked: list[tuple[int, ...]],
) -> tuple[float, float]:
    """Largest difference of the outputs, and the network's largest; appends the inputs' shapes to `checked`."""
    differences, outputs = [], []
    for inputs in cases:
        with torch.no_grad():
            expected = plan.module(*inputs)
            result = run(*inputs)
        shape = tuple(inputs[0].shape)  # type: ignore[union-attr]
        if result.shape != expected.shape:
            raise UserError(
                f"output={path}: must have the network's output shape {tuple(expected.shape)} at an input of "
                f"{shape} (got {tuple(result.shape)}). Nothing was written."
            )
        checked.append(shape)
        differences.append((result - expected).abs().max())
        outputs.append(expected.abs().max())
    difference, scale = float(torch.stack(differences).max()), float(torch.stack(outputs).max())
    if not difference <= TOLERANCE * scale:  # `not`: NaN, which torch's max propagates, is refused too
        raise UserError(
            f"output={path}: must match the network's outputs to {TOLERANCE:g} of the largest, {scale:.2g} (got a "
            f"difference of {difference:.2g}). Nothing was written. Try another opset or format."
        )
    return difference, scale


def _name_dimensions(graph: Any, plan: Plan) -> None:
    """Name the dynamic dimensions of an ONNX graph's inputs and output."""
    from onnx_ir import Shape

    values, shapes = [*graph.inputs, *graph.outputs], [*plan.shapes.values(), plan.out_dims]
    for value, dims in zip(values, shapes, strict=True):
        value.shape = Shape(dims)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's warnings and log messages."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
