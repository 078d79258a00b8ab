"""`unetdiff export PATH`: a trained network as ONNX, torch.export or diffusers, compared with the network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetdiff.cli.parser import Parser
from unetdiff.errors import UserError

if TYPE_CHECKING:
    from unetdiff.export.files import Exported

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
DIFFUSERS = "diffusers"
FOR_FILES = ("head", "size", "fixed", "opset", "preprocess")
"""Options that a directory of diffusers has no use for: it is the denoiser, of any size."""


def main(argv: Sequence[str]) -> int:
    """Export; prints what goes in, what comes out, and how closely the file agrees with the network."""
    parser = Parser(
        "unetdiff export",
        "Write a trained network as one file, or a denoiser as a pipeline directory of diffusers; batch, height and "
        "width stay free.",
    )
    parser.add_argument("path", type=Path, help="a run directory or a model directory")
    parser.add_argument(
        "--format",
        choices=(*SUFFIXES, DIFFUSERS),
        default="onnx",
        help="ONNX, torch.export's .pt2, or what diffusers' from_pretrained loads",
    )
    parser.add_argument(
        "--output", type=Path, help="the file or directory; none given: PATH/HEAD.onnx, PATH/HEAD.pt2 or PATH/diffusers"
    )
    parser.add_argument(
        "--head", choices=("segmentation", "diffusion"), help="none given: segmentation where there is one"
    )
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="fix height and width")
    parser.add_argument("--fixed", action="store_true", help="fix all: batch 1, at --size or the size it predicts at")
    parser.add_argument("--opset", type=int, help="ONNX: version of the operators; none given: torch's choice")
    parser.add_argument("--preprocess", action="store_true", help="take images, uint8 (B, H, W, 3) of 0..255")
    given = parser.parse_strictly(argv)
    if given.opset is not None and given.format != "onnx":
        raise UserError(f"--opset: {given.opset} is for --format onnx, not {given.format}")
    if given.format == DIFFUSERS:
        for option in FOR_FILES:
            if getattr(given, option) not in (None, False):
                raise UserError(f"--{option}: is for --format onnx or torch, not {DIFFUSERS}; leave it out")

    from unetdiff.export.files import to_onnx, to_torch_export
    from unetdiff.export.stock import to_diffusers
    from unetdiff.training.checkpoints import model_directory

    if given.format == DIFFUSERS:
        return _print(to_diffusers(model_directory(given.path), given.output or given.path / DIFFUSERS))
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
    return _print(done)


def _print(done: Exported) -> int:
    """What goes in and comes out, and how closely it agrees."""
    inputs = ", ".join(f"{name} ({', '.join(map(str, dims))})" for name, dims in done.inputs.items())
    print(f"{done.path}: {inputs} -> {done.output}")
    shapes = " and ".join("x".join(map(str, shape)) for shape in done.checked)
    print(f"largest difference to the network at {shapes}: {done.difference:.1e}, of outputs up to {done.scale:.2g}")
    return 0


def load(path: Path, head: str | None) -> tuple[Any, dict[str, Any]]:
    """The network in a run or model directory, on the CPU, and what a segmenter's file should say about itself."""
    from unetdiff.models.unet import UNet
    from unetdiff.segmentation.pipeline import SETTINGS_FILE, SegmentationPipeline
    from unetdiff.training.checkpoints import model_directory

    directory = model_directory(path)
    if head == "diffusion" or not (directory / SETTINGS_FILE).is_file():
        return UNet.from_pretrained(directory / "unet"), {}
    pipeline = SegmentationPipeline.from_pretrained(directory)
    return pipeline.unet, {
        "classes": pipeline.classes,
        "palette": pipeline.palette.tolist(),
        "size": pipeline.size,
        "ignore_index": pipeline.ignore_index,
    }
