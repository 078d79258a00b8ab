"""`unetdiff export PATH`: a trained network as one file, ONNX or torch.export, compared with the network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unetdiff.cli.parser import Parser
from unetdiff.errors import UserError

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}


def main(argv: Sequence[str]) -> int:
    """Export; prints what goes in, what comes out, and how closely the file agrees with the network."""
    parser = Parser("unetdiff export", "Write a trained network as one file; batch, height and width stay free.")
    parser.add_argument("path", type=Path, help="a run directory or a model directory")
    parser.add_argument("--format", choices=SUFFIXES, default="onnx", help="ONNX, or torch.export's .pt2")
    parser.add_argument("--output", type=Path, help="the file; none given: PATH/HEAD.onnx or PATH/HEAD.pt2")
    parser.add_argument(
        "--head", choices=("segmentation", "diffusion"), help="none given: segmentation where there is one"
    )
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="fix height and width")
    parser.add_argument("--fixed", action="store_true", help="fix all: batch 1, at --size or the size it predicts at")
    parser.add_argument("--opset", type=int, help="ONNX: version of the operators; none given: torch's choice")
    parser.add_argument("--preprocess", action="store_true", help="take pictures, uint8 (B, H, W, 3) of 0..255")
    given = parser.parse_strictly(argv)
    if given.opset is not None and given.format != "onnx":
        raise UserError(f"--opset: {given.opset} is for --format onnx, not {given.format}")

    from unetdiff.export import to_onnx, to_torch_export

    unet, settings = load(given.path, given.head)
    head = given.head or ("segmentation" if settings else "diffusion")
    size = given.size
    if given.fixed and size is None:
        size = settings.get("size")
        if not isinstance(size, tuple):
            raise UserError("--fixed: this model has no height and width of its own; give --size H W")
    options: dict[str, Any] = {
        "head": head,
        "size": size,
        "batch": 1 if given.fixed else None,
        "preprocess": given.preprocess,
        "metadata": settings,
    }
    output = given.output or given.path / f"{head}{SUFFIXES[given.format]}"
    if given.format == "onnx":
        done = to_onnx(unet, output, opset=given.opset, **options)
    else:
        done = to_torch_export(unet, output, **options)
    inputs = ", ".join(f"{name} ({', '.join(map(str, dims))})" for name, dims in done.inputs.items())
    print(f"{done.path}: {inputs} -> {done.output}")
    shapes = " and ".join("x".join(map(str, shape)) for shape in done.checked)
    print(f"largest difference to the network at {shapes}: {done.difference:.1e}, of outputs up to {done.scale:.2g}")
    return 0


def load(path: Path, head: str | None) -> tuple[Any, dict[str, Any]]:
    """The network in a run or model directory, on the CPU, and what a segmenter's file should say about itself."""
    from unetdiff.models.unet import UNet
    from unetdiff.segmentation.pipeline import SETTINGS, SegmentationPipeline
    from unetdiff.training.checkpoints import model_directory

    directory = model_directory(path)
    if head == "diffusion" or not (directory / SETTINGS).is_file():
        return UNet.from_pretrained(directory / "unet"), {}
    pipeline = SegmentationPipeline.from_pretrained(directory)
    return pipeline.unet, {
        "classes": pipeline.classes,
        "palette": pipeline.palette.tolist(),
        "size": pipeline.size,
        "ignore_index": pipeline.ignore_index,
    }
