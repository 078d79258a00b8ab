"""Linear probes of frozen features, block by block and timestep by timestep.

Baranchuk et al. 2022 ("Label-Efficient Semantic Segmentation with Diffusion Models") classify pixels from a denoiser's
frozen feature maps, and find the middle of the decoder at low noise most informative. Here every block of a network at
every timestep gets a linear probe (`linear_probes`), trained in one stream over the images; the published code stores
every map at full resolution, which takes 210 GB for 50 images. The same probes are trained on a segmenter's features,
on those of random weights (the baseline), and on a pretrained ImageNet encoder with `--encoder`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from unetdiff.benchmark.memory import peak_working_memory, run_in_subprocess
from unetdiff.config.training import TrainingConfig
from unetdiff.config.validation.checks import require_at_least
from unetdiff.data.base import ImageDataset
from unetdiff.data.sampling import EvalSampler, evenly_spaced_indices
from unetdiff.evaluation.config import IMAGENET
from unetdiff.evaluation.features import MIN_ENCODER_SIDE
from unetdiff.experiments.features import parse_noise_levels
from unetdiff.experiments.gallery import hex_color
from unetdiff.experiments.linear_probes import (
    LinearProbe,
    ProbeInput,
    ProbeTraining,
    SplitMatrices,
    evaluate_probes,
    feature_stats,
    groups_by_size,
    predict,
    split_matrices,
    train_probes,
    update_split,
)
from unetdiff.experiments.probe_report import ProbeResults, probe_record
from unetdiff.experiments.probed_network import (
    ProbedNetwork,
    encoder_network,
    random_network,
    trained_network,
)
from unetdiff.experiments.result_cache import cached_result
from unetdiff.experiments.run_inputs import finished_runs, labeled_images, refuse_overrides
from unetdiff.files.images import save_image
from unetdiff.files.records import dump_yaml
from unetdiff.files.writing import make_folder
from unetdiff.models.config import PRETRAINED_ENCODERS
from unetdiff.models.weights_files import fingerprint
from unetdiff.reports.embed import as_array
from unetdiff.reports.record import Record
from unetdiff.reports.runs import Run
from unetdiff.segmentation.evaluation import network_logits
from unetdiff.segmentation.inference import resize_logits
from unetdiff.segmentation.palette import colorize
from unetdiff.training.runtime import build_accelerator, facts

TIMESTEPS = ("clean", "50", "150", "300", "500", "750")
"""The paper uses 50, 150 and 250 of 1,000; these reach to where little of the image is left."""

MEMORY_STEPS = 3
"""Optimizer steps over which peak memory is measured."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `unetdiff experiment probe`."""
    defaults = ProbeTraining()
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="finished runs on one dataset with masks")
    parser.add_argument("--timesteps", nargs="+", default=list(TIMESTEPS), metavar="T",
                        help="noise levels for denoisers: timesteps, or clean")  # fmt: skip
    parser.add_argument("--num_train_images", type=int, default=200, help="labeled images the probes are trained on")
    parser.add_argument("--num_val_images", type=int, default=500, help="maximum number of validation images")
    parser.add_argument("--train_steps", type=int, default=defaults.steps, help="optimizer steps of the probes")
    parser.add_argument("--batch_size", type=int, default=defaults.batch_size, help="images per step")
    parser.add_argument("--lr", type=float, default=defaults.lr, help="peak learning rate of the probes")
    parser.add_argument("--weight_decay", type=float, default=defaults.weight_decay, help="weight decay of the probes")
    parser.add_argument("--num_concat_blocks", type=int, default=3,
                        help="best blocks concatenated for an additional probe; 0: none")  # fmt: skip
    parser.add_argument(
        "--encoder", choices=PRETRAINED_ENCODERS, default=None, help="ImageNet encoder to probe as well"
    )
    parser.add_argument("--encoder_weights", default=IMAGENET,
                        help="its weights: imagenet (downloaded), or a safetensors file")  # fmt: skip
    parser.add_argument("--encoder_min_size", type=int, default=MIN_ENCODER_SIDE,
                        help="pixels to which the shorter side of smaller images is enlarged for it")  # fmt: skip
    parser.add_argument("--num_rows", type=int, default=6, help="validation images in the gallery")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise, the image order and random weights")


def run(args: argparse.Namespace, overrides: Sequence[str], output: Path, command: str) -> Record:
    """Probe every run, random weights of the first one, and the ImageNet encoder; measured results are cached."""
    start = time.monotonic()
    refuse_overrides(overrides)
    minima = {"num_train_images": 1, "num_val_images": 2, "train_steps": 1, "batch_size": 1, "num_concat_blocks": 0}
    for option, minimum in minima.items():
        require_at_least(f"--{option}", getattr(args, option), minimum)
    levels = parse_noise_levels(args.timesteps)
    runs = finished_runs(args.runs)
    accelerator = build_accelerator(TrainingConfig(mixed_precision="no"))
    device = accelerator.device
    settings = {k: v for k, v in vars(args).items() if k not in ("runs", "output")} | {"timesteps": levels}
    results: list[ProbeResults] = []

    def is_complete(result: dict[str, Any]) -> bool:
        return all((output / mask).is_file() for mask in result["masks"])

    def measure(name: str, kind: str, identity: dict[str, Any], opener: partial[ProbedNetwork]) -> None:
        folder = output / name.replace("/", "-").replace(", ", "-").replace(" ", "-")
        result = cached_result(
            folder / "probes.json", settings | identity, lambda: _measure(opener, args, folder, output), is_complete
        )
        results.append(ProbeResults(name, kind, **result))

    first = runs[0]
    for one in runs:
        measure(one.name, one.task, _identity(one, first), partial(trained_network, one, first, levels, args, device))
    random = partial(random_network, first, levels, args, device)
    measure("random weights", "random", _identity(first, first) | {"random": True}, random)
    if args.encoder is not None:
        identity = {"data": first.config["data"], "weights": _file_identity(args.encoder_weights)}
        measure(f"{args.encoder}, ImageNet", "encoder", identity, partial(encoder_network, first, args, device))
    gallery = _gallery_images(labeled_images(first, first, "val"), args, output)
    configs = {one.name: dump_yaml(one.config) for one in runs}
    minutes = (time.monotonic() - start) / 60
    return probe_record(
        results,
        gallery,
        args,
        command=command,
        dataset_name=first.data_name,
        configs=configs,
        machine=facts(accelerator),
        minutes=minutes,
    )


def _measure(opener: partial[ProbedNetwork], args: argparse.Namespace, folder: Path, output: Path) -> dict[str, Any]:
    """Train and evaluate the probes of one network, and write its masks for the gallery."""
    start = time.monotonic()
    memory = run_in_subprocess(_memory, opener, args)
    network = opener()
    features, train, val = network.features, network.train, network.val
    num_classes, ignore_index = len(train.classes), network.ignore_index
    train_indices = evenly_spaced_indices(len(train), args.num_train_images)
    val_indices = evenly_spaced_indices(len(val), args.num_val_images)
    training = _training(args)
    stats = feature_stats(features, train, train_indices, args.batch_size)
    inputs = [ProbeInput(level, (block,)) for level, block in stats.channels]

    def fit(inputs: list[ProbeInput]) -> tuple[dict[ProbeInput, LinearProbe], dict[ProbeInput, SplitMatrices]]:
        probes = train_probes(features, train, train_indices, inputs, stats, num_classes, training, ignore_index)
        return probes, evaluate_probes(features, val, val_indices, probes, num_classes, args.batch_size, ignore_index)

    probes, matrices = fit(inputs)
    best = max(inputs, key=lambda x: _selection_miou(matrices[x]))
    concat = None
    if args.num_concat_blocks > 1:
        ranked = sorted((x for x in inputs if x.level == best.level), key=lambda x: -_selection_miou(matrices[x]))
        blocks = {block for x in ranked[: args.num_concat_blocks] for block in x.blocks}
        joined = ProbeInput(best.level, tuple(b for level, b in stats.channels if level == best.level and b in blocks))
        joined_probes, joined_matrices = fit([joined])
        concat = _as_dict(joined, joined_probes[joined], joined_matrices[joined])
    head = None
    if network.segmenter is not None:
        head = [half.matrix.tolist() for half in _evaluate_head(network, val_indices, args.batch_size, num_classes)]
    return {
        "num_classes": num_classes,
        "probes": [_as_dict(x, probes[x], matrices[x]) for x in inputs],
        "concat": concat,
        "head": head,
        "num_train_images": len(train_indices),
        "num_val_images": len(val_indices),
        "map_bytes": stats.map_bytes,
        "upsampled_bytes": stats.upsampled_bytes,
        "memory": memory,
        "minutes": (time.monotonic() - start) / 60,
        "masks": _write_masks(network, best, probes[best], val_indices, args.num_rows, folder, output),
    }


def _memory(opener: partial[ProbedNetwork], args: argparse.Namespace) -> int | None:
    """Peak memory of training all probes in bytes, beyond that of a new process with the network and the dataset.

    Measured over a few steps; later steps need no more, as nothing is kept between them.
    """
    network = opener()
    training = replace(_training(args), steps=MEMORY_STEPS)
    indices = evenly_spaced_indices(len(network.train), min(args.num_train_images, MEMORY_STEPS * args.batch_size))

    def work() -> None:
        stats = feature_stats(network.features, network.train, indices, args.batch_size)
        inputs = [ProbeInput(level, (block,)) for level, block in stats.channels]
        num_classes = len(network.train.classes)
        train_probes(
            network.features, network.train, indices, inputs, stats, num_classes, training, network.ignore_index
        )

    device = next(network.features.network.parameters()).device
    return peak_working_memory(lambda: work, device, rounds=1)


def _training(args: argparse.Namespace) -> ProbeTraining:
    return ProbeTraining(args.train_steps, args.batch_size, args.lr, args.weight_decay, args.seed)


def _as_dict(probe_input: ProbeInput, probe: LinearProbe, matrices: SplitMatrices) -> dict[str, Any]:
    return {
        "input": asdict(probe_input),
        "parameters": probe.parameter_count,
        "matrices": [half.matrix.tolist() for half in matrices],
    }


def _selection_miou(matrices: SplitMatrices) -> float:
    """mIoU on the half of the validation images that probes are selected on."""
    return matrices[0].compute()["mean_iou"]


@torch.no_grad()
def _evaluate_head(network: ProbedNetwork, indices: list[int], batch_size: int, num_classes: int) -> SplitMatrices:
    """Confusion matrices of a network's own segmentation head on the same images."""
    assert network.segmenter is not None
    matrices = split_matrices(num_classes, network.ignore_index)
    logits_of = network_logits(network.segmenter, network.size)
    for positions in EvalSampler(len(indices), batch_size):
        for group in groups_by_size(network.val, indices, positions):
            predictions = [
                resize_logits(logits[None], (mask.shape[-2], mask.shape[-1]))[0].argmax(dim=0)
                for logits, mask in zip(logits_of(list(group.images)), group.masks, strict=True)
            ]
            update_split(matrices, group, predictions)
    return matrices


def _gallery_positions(indices: list[int], num_rows: int) -> list[int]:
    """Positions of the images in the gallery, from the half that probes are tested on."""
    return [1 + 2 * position for position in evenly_spaced_indices(len(indices) // 2, num_rows)]


@torch.no_grad()
def _write_masks(
    network: ProbedNetwork,
    probe_input: ProbeInput,
    probe: LinearProbe,
    indices: list[int],
    num_rows: int,
    folder: Path,
    output: Path,
) -> list[str]:
    """Write the best probe's masks of the gallery's images; their files relative to `output`."""
    files = []
    for row, position in enumerate(_gallery_positions(indices, num_rows)):
        for group in groups_by_size(network.val, indices, [position]):
            maps = network.features(group.images, group.names, probe_input.level)
            mask = predict(probe, probe_input, maps, group.masks)[0]
            pixels = colorize(mask, network.val.palette, network.ignore_index)
            files.append(_write_image(pixels, folder / f"mask{row}.png", output))
    return files


def _gallery_images(val: ImageDataset, args: argparse.Namespace, output: Path) -> dict[str, Any]:
    """Write the gallery's images and ground truth; its rows and the legend of all classes."""
    indices = evenly_spaced_indices(len(val), args.num_val_images)
    rows = []
    for row, position in enumerate(_gallery_positions(indices, args.num_rows)):
        item = val[indices[position]]
        image = _write_image(as_array(item["image"]), output / "images" / f"image{row}.png", output)
        mask = _write_image(colorize(item["mask"], val.palette), output / "images" / f"mask{row}.png", output)
        rows.append((str(item["name"]), [image, mask]))
    legend = [(name, hex_color(color)) for name, color in zip(val.classes, val.palette, strict=False)]
    return {"rows": rows, "legend": legend}


def _write_image(pixels: Any, file: Path, output: Path) -> str:
    make_folder(file.parent)
    save_image(Image.fromarray(pixels), file)
    return str(file.relative_to(output))


def _identity(run: Run, first: Run) -> dict[str, Any]:
    """What a run's results depend on in addition to the options."""
    assert run.model is not None
    return {"network": fingerprint(run.model / "unet"), "data": [run.config["data"], first.config["data"]]}


def _file_identity(weights: str) -> Any:
    path = Path(weights)
    return [weights, path.stat().st_size, path.stat().st_mtime] if path.is_file() else weights
