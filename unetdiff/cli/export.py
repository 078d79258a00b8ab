"""`unetdiff export PATH`: a trained network as ONNX, torch.export or diffusers, checked against the network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetdiff.cli.model_path import HELP, local_model, output_folder
from unetdiff.cli.parser import Parser
from unetdiff.config.model_directory import model_directory
from unetdiff.errors import UserError, config_error, printable
from unetdiff.files.writing import file_errors, require_writable

if TYPE_CHECKING:
    from unetdiff.export.files import Exported

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
DIFFUSERS = "diffusers"
FOR_FILES = ("head", "size", "fixed", "opset", "preprocess")
"""Options of the single-file formats; a diffusers directory is always the denoiser, at any size."""


def main(argv: Sequence[str]) -> int:
    """Export; prints inputs, output, and the largest difference to the network."""
    parser = Parser(
        "unetdiff export",
        "Write a trained network to one file, or a denoiser to a diffusers pipeline directory; batch size, height and "
        "width are dynamic. A segmenter's file reads images in RGB order: pixels (batch, 3, height, width), float32 in "
        "[-1, 1], or with --preprocess uint8 images (batch, height, width, 3); its output is logits (batch, classes, "
        "height, width). Resizing to the size of the metadata is the caller's, as is the softmax or argmax.",
    )
    parser.add_argument("path", type=Path, help=HELP)
    parser.add_argument(
        "--format",
        choices=(*SUFFIXES, DIFFUSERS),
        default="onnx",
        help="ONNX, torch.export's .pt2, or a diffusers pipeline directory",
    )
    parser.add_argument(
        "--output", type=Path, help="file or directory; default: PATH/HEAD.onnx, PATH/HEAD.pt2 or PATH/diffusers"
    )
    parser.add_argument(
        "--head", choices=("segmentation", "diffusion"), help="default: segmentation if the model has it"
    )
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="fix height and width to this size")
    parser.add_argument(
        "--fixed", action="store_true", help="fix all dimensions: batch size 1, at --size or the model's own size"
    )
    parser.add_argument("--opset", type=int, help="ONNX operator set version; default: torch's")
    parser.add_argument(
        "--preprocess",
        action="store_true",
        help="read images as they are: uint8 (batch, height, width, channels)",
    )
    args = parser.parse_strictly(argv)
    if args.opset is not None and args.format != "onnx":
        raise config_error(
            "--opset", args.opset, f"left out with --format={args.format}", "Only --format=onnx has operator sets."
        )
    if args.format == DIFFUSERS:
        for option in FOR_FILES:
            if getattr(args, option) not in (None, False):
                raise UserError(f"--{option}: must be left out with --format={DIFFUSERS}.")

    folder, path = output_folder(args.path), local_model(args.path)
    directory = model_directory(path)
    default = DIFFUSERS if args.format == DIFFUSERS else f"{args.head or 'segmentation'}{SUFFIXES[args.format]}"
    require_writable("--output", args.output or folder / default, folder=args.format == DIFFUSERS)

    from unetdiff.export.files import to_onnx, to_torch_export
    from unetdiff.export.stock import to_diffusers

    if args.format == DIFFUSERS:
        return _print(to_diffusers(directory, args.output or folder / DIFFUSERS))
    unet, settings = load(path, args.head)
    head = args.head or ("segmentation" if settings else "diffusion")
    size = args.size
    if args.fixed and size is None:
        size = settings.get("size")
        if not isinstance(size, tuple):
            raise UserError(
                "--fixed: must be used with --size, as this model has no fixed input size. Give --size H W."
            )
    options: dict[str, Any] = {
        "head": head,
        "size": size,
        "batch": 1 if args.fixed else None,
        "preprocess": args.preprocess,
        "metadata": settings,
    }
    output = args.output or folder / f"{head}{SUFFIXES[args.format]}"
    with file_errors(output):
        if args.format == "onnx":
            done = to_onnx(unet, output, opset=args.opset, **options)
        else:
            done = to_torch_export(unet, output, **options)
    return _print(done)


def _print(done: Exported) -> int:
    """Print inputs, output and the largest difference to the network."""
    inputs = ", ".join(f"{name} ({', '.join(map(str, dims))})" for name, dims in done.inputs.items())
    print(f"{printable(str(done.path))}: {inputs} -> {done.output}")
    if done.expected is not None:
        print(f"pixels: {done.expected}")
    shapes = " and ".join("x".join(map(str, shape)) for shape in done.checked)
    print(f"largest difference to the network at {shapes}: {done.difference:.1e}, outputs up to {done.scale:.2g}")
    return 0


def load(path: Path, head: str | None) -> tuple[Any, dict[str, Any]]:
    """The network or segmenter of a run or model directory, on the CPU, and the metadata of a segmenter's file."""
    from unetdiff.files.folders import is_there
    from unetdiff.models.unet import UNet
    from unetdiff.segmentation.pipeline import SETTINGS_FILE, SegmentationPipeline

    directory = model_directory(path)
    if head == "diffusion" or not is_there(directory / SETTINGS_FILE):
        return UNet.from_pretrained(directory / "unet"), {}
    pipeline = SegmentationPipeline.from_pretrained(directory)
    return pipeline.segmenter, {
        "classes": pipeline.classes,
        "palette": pipeline.palette.tolist(),
        "size": pipeline.size,
        "ignore_index": pipeline.ignore_index,
        "image_range": pipeline.inference.image_range,
    }
