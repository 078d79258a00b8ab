"""A trained network as one file that runs without this package: ONNX, or torch.export's .pt2.

Batch, height and width stay free unless they are fixed. What was written is read back and must agree with the network
at sizes that it was not traced at, or nothing is left behind.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor

from unetdiff.errors import UserError
from unetdiff.export.plan import Dims, Plan, make_plan
from unetdiff.files import require_folder
from unetdiff.models.unet import Head, UNet

__all__ = ["TOLERANCE", "Exported", "Format", "to_onnx", "to_torch_export"]

Format = Literal["onnx", "torch"]

TOLERANCE = 1e-4  # largest difference to the network, as a share of the largest output
OPSETS = (18, 23)  # what the exporter has operators for, and what it converts to
METADATA = "unetdiff.json"  # name of the metadata inside a .pt2
EXTRA = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Exported:
    """What was written, and how closely it agrees with the network."""

    path: Path
    """The file."""
    inputs: dict[str, Dims]
    """Shape of each input; a free dimension has a name."""
    output: str
    """Name of the output."""
    checked: list[tuple[int, ...]]
    """Shapes of the first input that it was compared at."""
    difference: float
    """Largest difference to the network at any of these."""
    scale: float
    """Largest absolute output of the network there."""


def to_onnx(
    unet: UNet,
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

    `pixels` (B, channels, H, W) float32 in [-1, 1] -> `logits` (B, classes, H, W) of the segmentation head, or `sample`
    and `timestep` (B,) int64 (and `encoder_hidden_states` (B, tokens, dim), `class_labels` (B,) where the network has
    them) -> `prediction` of the diffusion head. The network is copied, in float32 on the CPU, in eval mode.

    Args:
        unet: the network.
        path: the file; weights of 2 GB or more go to a second one, PATH.data.
        head: None: the segmentation head where there is one, else the diffusion head.
        size: (H, W) to fix height and width; None: free.
        batch: to fix the batch; None: free.
        opset: version of ONNX's operators; None: torch's choice.
        preprocess: take images, uint8 (B, H, W, channels) of 0..255, instead of pixels.
        metadata: written into the model, each value as JSON (`session.get_modelmeta().custom_metadata_map`).

    Raises:
        UserError: for a missing package, a head that the network has not, a size or opset that cannot be, or a file
            that does not agree with the network to TOLERANCE; then nothing is left behind.
    """
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        raise UserError(f"export to ONNX needs {', '.join(missing)}; pip install 'unetdiff[export]'")
    if opset is not None and not OPSETS[0] <= opset <= OPSETS[1]:
        raise UserError(f"opset: {opset} is not one of {OPSETS[0]} to {OPSETS[1]}, which the exporter writes")
    path = _checked_path(path, ".onnx")
    plan = make_plan(unet, head, size, batch, preprocess)
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
            feed = dict(zip(names, (x.numpy() for x in inputs if x is not None), strict=True))
            return torch.from_numpy(session.run([plan.output], feed)[0])

        return run

    return write(path, plan, program.save, load, plan.cases())


def to_torch_export(
    unet: UNet,
    path: str | Path,
    *,
    head: Head | None = None,
    size: Sequence[int] | None = None,
    batch: int | None = None,
    preprocess: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> Exported:
    """Write a `torch.export` program (.pt2): `torch.export.load(path).module()(pixels)`. Arguments as in `to_onnx`.

    Its inputs are positional, in the order of `Exported.inputs`. `metadata` is the file's extra file "unetdiff.json".
    """
    path = _checked_path(path, ".pt2")
    plan = make_plan(unet, head, size, batch, preprocess)
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
        raise UserError(f"'{path}' must end in {suffix}")
    require_folder(path)
    return path


def write(
    path: Path,
    plan: Plan,
    save: Callable[[Path], Any],
    load: Callable[[Path], Callable[..., Tensor]],
    cases: Sequence[Sequence[Tensor | None]],
) -> Exported:
    """Save aside, compare what was saved with the network, and only then put it in its place.

    Args:
        path: the file, or a directory that is not there yet or empty.
        plan: what is exported.
        save: writes it to a path.
        load: reads that as a function of the plan's inputs.
        cases: inputs that both must agree on.

    Raises:
        UserError: where they do not, to TOLERANCE; then nothing is left behind.
    """
    checked, differences, outputs = [], [], []
    with TemporaryDirectory(prefix=".writing-", dir=path.parent) as folder:
        aside = Path(folder) / path.name
        with _quiet():
            save(aside)
            run = load(aside)
        for inputs in cases:
            with torch.no_grad():
                expected = plan.module(*inputs)
                result = run(*inputs)
            shape = tuple(inputs[0].shape)  # type: ignore[union-attr]
            if result.shape != expected.shape:
                raise UserError(
                    f"'{path}' is not written: for an input of {shape} it puts out {tuple(result.shape)}, "
                    f"the network {tuple(expected.shape)}"
                )
            checked.append(shape)
            differences.append((result - expected).abs().max())
            outputs.append(expected.abs().max())
        difference, scale = float(torch.stack(differences).max()), float(torch.stack(outputs).max())
        if not difference <= TOLERANCE * scale:  # "not", because NaN, which torch's max keeps, is refused too
            raise UserError(
                f"'{path}' is not written: its outputs differ from the network's by {difference:.2g} where they go up "
                f"to {scale:.2g}, more than {TOLERANCE:g} of that; try another opset, or the other format"
            )
        for file in Path(folder).iterdir():
            os.replace(file, path.parent / file.name)
    return Exported(path, plan.shapes, plan.output, checked, difference, scale)


def _name_dimensions(graph: Any, plan: Plan) -> None:
    """Call the free dimensions of an ONNX graph's inputs and output by their names."""
    from onnx_ir import Shape

    values, shapes = [*graph.inputs, *graph.outputs], [*plan.shapes.values(), plan.out_dims]
    for value, dims in zip(values, shapes, strict=True):
        value.shape = Shape(dims)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on its own insides."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
