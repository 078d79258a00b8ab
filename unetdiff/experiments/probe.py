"""What do frozen features know of the classes, block by block and timestep by timestep?

Baranchuk et al. 2022 ("Label-Efficient Semantic Segmentation with Diffusion Models") label pixels from a denoiser's
frozen maps, and find that the middle of the decoder at little noise knows most. Here every block of a network at every
timestep gets a linear probe (`probing`), all in one stream over the images: the published code keeps every map at
full resolution, and asks for 210 GB of memory for 50 images. The same probe reads a segmenter's own maps, those of
fresh weights (the floor), and of an ImageNet trunk where one is given.
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
from unetdiff.config.validation.checks import require_at_least
from unetdiff.data.base import ImageDataset
from unetdiff.data.sampling import EvalSampler, evenly_spaced_indices
from unetdiff.evaluation.config import IMAGENET
from unetdiff.evaluation.features import MIN_ENCODER_SIDE
from unetdiff.experiments.features import Features, TrunkFeatures, moments, open_features
from unetdiff.experiments.probe_report import Probed, probe_record
from unetdiff.experiments.probing import (
    Halves,
    LinearProbe,
    Recipe,
    Spec,
    count_halves,
    groups,
    judge_probes,
    label,
    look_through,
    train_probes,
)
from unetdiff.experiments.result_cache import kept
from unetdiff.experiments.run_inputs import given_runs, labelled, no_overrides
from unetdiff.models.config import PRETRAINED_ENCODERS
from unetdiff.models.loading import fingerprint
from unetdiff.models.unet import UNet
from unetdiff.reports.embed import as_array
from unetdiff.reports.record import Record
from unetdiff.reports.runs import Run
from unetdiff.segmentation.evaluation import network_logits
from unetdiff.segmentation.inference import resize_logits
from unetdiff.segmentation.metrics import ConfusionMatrix
from unetdiff.segmentation.palette import colorize
from unetdiff.training.config import TrainingConfig
from unetdiff.training.runtime import build_accelerator, facts

TIMESTEPS = ("clean", "50", "150", "300", "500", "750")
"""Paper: 50, 150 and 250 of 1,000 are the ones used; the map goes on to where little is left of the image."""

MEMORY_STEPS = 3
"""Steps that the memory of the stream is measured over."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `unetdiff experiment probe` takes."""
    recipe = Recipe()
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="finished runs of one set with masks")
    parser.add_argument("--timesteps", nargs="+", default=list(TIMESTEPS), metavar="T",
                        help="noise in a denoiser's images: timesteps, or clean")  # fmt: skip
    parser.add_argument("--images", type=int, default=200, help="labelled training images that probes learn from")
    parser.add_argument("--val_images", type=int, default=500, help="validation images, at most")
    parser.add_argument("--steps", type=int, default=recipe.steps, help="optimizer steps")
    parser.add_argument("--batch_size", type=int, default=recipe.batch_size, help="images of a step")
    parser.add_argument("--lr", type=float, default=recipe.lr, help="peak learning rate of the probes")
    parser.add_argument("--weight_decay", type=float, default=recipe.weight_decay, help="of the probes")
    parser.add_argument("--concat", type=int, default=3, help="best blocks that one more probe reads together; 0: none")
    parser.add_argument("--trunk", choices=PRETRAINED_ENCODERS, default=None, help="an ImageNet trunk to probe as well")
    parser.add_argument("--trunk_weights", default=IMAGENET,
                        help="its weights: imagenet (downloaded), or a safetensors file")  # fmt: skip
    parser.add_argument("--trunk_side", type=int, default=MIN_ENCODER_SIDE,
                        help="pixels that smaller images' short side is enlarged to for the trunk")  # fmt: skip
    parser.add_argument("--rows", type=int, default=6, help="validation images shown")
    parser.add_argument("--seed", type=int, default=0, help="of noise, order and fresh weights")


def run(given: argparse.Namespace, overrides: Sequence[str], output: Path, command: str) -> Record:
    """Probe every run, fresh weights of the first one, and the trunk; what was measured before is kept."""
    start = time.monotonic()
    no_overrides(overrides)
    for option, least in (("images", 1), ("val_images", 2), ("steps", 1), ("batch_size", 1), ("concat", 0)):
        require_at_least(f"--{option}", getattr(given, option), least)
    asked = moments(given.timesteps)
    runs = given_runs(given.runs)
    accelerator = build_accelerator(TrainingConfig(mixed_precision="no"))
    device = accelerator.device
    common = {k: v for k, v in vars(given).items() if k not in ("runs", "output")} | {"timesteps": asked}
    found: list[Probed] = []

    def whole(result: dict[str, Any]) -> bool:
        return all((output / mask).is_file() for mask in result["masks"])

    def measured(name: str, of: str, network: dict[str, Any], opened: partial[_Subject]) -> None:
        folder = output / name.replace("/", "-").replace(", ", "-").replace(" ", "-")
        result = kept(folder / "probes.json", common | network, lambda: _measure(opened, given, folder, output), whole)
        found.append(Probed(name, of, **result))

    first = runs[0]
    for one in runs:
        measured(one.name, one.task, _identity(one, first), partial(_subject, one, first, asked, given, device))
    fresh = partial(_random, first, asked, given, device)
    measured("random weights", "random", _identity(first, first) | {"fresh": True}, fresh)
    if given.trunk is not None:
        trunk = {"first": first.config["data"], "trunk_file": _file(given.trunk_weights)}
        measured(f"{given.trunk}, ImageNet", "trunk", trunk, partial(_trunk, first, given, device))
    shown = _images(labelled(first, first, "val"), given, output)
    configs = {one.name: (one.path / "config.yaml").read_text() for one in runs}
    minutes = (time.monotonic() - start) / 60
    return probe_record(found, shown, given, first.data_name, command, configs, facts(accelerator), minutes)


class _Subject:
    """A network, the images it is probed on, and its own segmentation head where it has one."""

    def __init__(self, features: Features, run: Run, first: Run, head: UNet | None = None) -> None:
        self.features, self.head = features, head
        self.train, self.val = labelled(run, first, "train"), labelled(run, first, "val")
        self.size = run.config["data"].get("size") or run.config["data"].get("longest_side")
        self.void = int((run.config.get("segmentation") or {}).get("ignore_index", 255))


def _subject(run: Run, first: Run, asked: list, given: argparse.Namespace, device: torch.device) -> _Subject:
    features = open_features(run, labelled(run, first, "val"), asked, given.seed, device)
    return _Subject(features, run, first, features.unet if "segmentation" in run.heads else None)


def _random(run: Run, asked: list, given: argparse.Namespace, device: torch.device) -> _Subject:
    """Fresh weights of the first run's config, on clean images."""
    features = open_features(run, labelled(run, run, "val"), asked, given.seed, device)
    return _Subject(features.with_random_weights("random weights", given.seed, [None]), run, run)


def _trunk(first: Run, given: argparse.Namespace, device: torch.device) -> _Subject:
    return _Subject(TrunkFeatures(given.trunk, given.trunk_weights, given.trunk_side, device), first, first)


def _measure(opened: partial[_Subject], given: argparse.Namespace, folder: Path, output: Path) -> dict[str, Any]:
    """Train and judge the probes of one network; writes the masks that the gallery shows."""
    start = time.monotonic()
    memory = run_in_subprocess(_memory, opened, given)
    subject = opened()
    features, train, val = subject.features, subject.train, subject.val
    classes, void = len(train.classes), subject.void
    learned, judged = evenly_spaced_indices(len(train), given.images), evenly_spaced_indices(len(val), given.val_images)
    recipe = _recipe(given)
    seen = look_through(features, train, learned, given.batch_size)
    specs = [Spec(moment, (block,)) for moment, block in seen.scales]
    probes = train_probes(features, train, learned, specs, seen.scales, classes, recipe, void)

    def judge(which: dict[Spec, LinearProbe]) -> dict[Spec, Halves]:
        return judge_probes(features, val, judged, which, classes, given.batch_size, void)

    counts = judge(probes)
    best = max(specs, key=lambda spec: _chosen_by(counts[spec]))
    concat = None
    if given.concat > 1:
        there = sorted((s for s in specs if s.moment == best.moment), key=lambda s: -_chosen_by(counts[s]))
        ranked = [block for s in there[: given.concat] for block in s.blocks]
        joined = Spec(best.moment, tuple(block for m, block in seen.scales if m == best.moment and block in ranked))
        more = train_probes(features, train, learned, [joined], seen.scales, classes, recipe, void)
        concat = _told(joined, more[joined], judge(more)[joined])
    own = None
    if subject.head is not None:
        own = [half.matrix.tolist() for half in _own(subject, judged, given.batch_size, classes)]
    return {
        "classes": classes,
        "probes": [_told(spec, probes[spec], counts[spec]) for spec in specs],
        "concat": concat,
        "own": own,
        "images": len(learned),
        "judged": len(judged),
        "as_maps": seen.as_maps,
        "at_masks": seen.at_masks,
        "memory": memory,
        "minutes": (time.monotonic() - start) / 60,
        "masks": _masks(subject, best, probes[best], judged, given.rows, folder, output),
    }


def _memory(opened: partial[_Subject], given: argparse.Namespace) -> int | None:
    """Bytes at the peak of training all probes, beyond what a new process with the network and the set holds.

    A few steps: later ones hold no more, and nothing is kept of an image.
    """
    subject = opened()
    recipe = replace(_recipe(given), steps=MEMORY_STEPS)
    chosen = evenly_spaced_indices(len(subject.train), min(given.images, MEMORY_STEPS * given.batch_size))

    def stream() -> None:
        seen = look_through(subject.features, subject.train, chosen, given.batch_size)
        specs = [Spec(moment, (block,)) for moment, block in seen.scales]
        classes = len(subject.train.classes)
        train_probes(subject.features, subject.train, chosen, specs, seen.scales, classes, recipe, subject.void)

    device = next(subject.features.network.parameters()).device
    return peak_working_memory(lambda: stream, device, rounds=1)


def _recipe(given: argparse.Namespace) -> Recipe:
    return Recipe(given.steps, given.batch_size, given.lr, given.weight_decay, given.seed)


def _told(spec: Spec, probe: LinearProbe, counts: Halves) -> dict[str, Any]:
    matrices = [half.matrix.tolist() for half in counts]
    return {"spec": asdict(spec), "parameters": probe.parameter_count, "matrices": matrices}


def _chosen_by(counts: Halves) -> float:
    """The mean IoU that the best probe is chosen by: of the first half, not of the one that it is then told with."""
    return counts[0].compute()["mean_iou"]


@torch.no_grad()
def _own(subject: _Subject, judged: list[int], batch_size: int, classes: int) -> Halves:
    """The counts of a network's own segmentation head on the same images."""
    assert subject.head is not None
    halves = (ConfusionMatrix(classes, subject.void), ConfusionMatrix(classes, subject.void))
    logits_of = network_logits(subject.head, subject.size)
    for places in EvalSampler(len(judged), batch_size):
        for group in groups(subject.val, judged, places):
            logits = logits_of(list(group.images))
            guesses = [
                resize_logits(one[None], (mask.shape[-2], mask.shape[-1]))[0].argmax(dim=0)
                for one, mask in zip(logits, group.masks, strict=True)
            ]
            count_halves(halves, group, guesses)
    return halves


def _shown(judged: list[int], rows: int) -> list[int]:
    """Places of the images that are shown: of the half that probes are told with."""
    return [1 + 2 * place for place in evenly_spaced_indices(len(judged) // 2, rows)]


@torch.no_grad()
def _masks(
    subject: _Subject, best: Spec, probe: LinearProbe, judged: list[int], rows: int, folder: Path, output: Path
) -> list[str]:
    """What the best probe makes of the shown images, as files relative to `output`."""
    files = []
    for row, place in enumerate(_shown(judged, rows)):
        for group in groups(subject.val, judged, [place]):
            maps = subject.features(group.images, group.names, best.moment)
            mask = label(probe, best, maps, group.masks)[0]
            files.append(_image(colorize(mask, subject.val.palette, subject.void), folder / f"mask{row}.png", output))
    return files


def _images(val: ImageDataset, given: argparse.Namespace, output: Path) -> dict[str, Any]:
    """The shown images and their truth as files, and the classes that masks of this set may show."""
    judged = evenly_spaced_indices(len(val), given.val_images)
    rows = []
    for row, place in enumerate(_shown(judged, given.rows)):
        item = val[judged[place]]
        image = _image(as_array(item["image"]), output / "images" / f"image{row}.png", output)
        truth = _image(colorize(item["mask"], val.palette), output / "images" / f"truth{row}.png", output)
        rows.append((str(item["name"]), [image, truth]))
    legend = [
        (name, "#{:02x}{:02x}{:02x}".format(*colour)) for name, colour in zip(val.classes, val.palette, strict=False)
    ]
    return {"rows": rows, "legend": legend}


def _image(pixels: Any, file: Path, output: Path) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)
    return str(file.relative_to(output))


def _identity(run: Run, first: Run) -> dict[str, Any]:
    """What the figures of a run depend on beside the options."""
    assert run.model is not None
    return {"network": fingerprint(run.model / "unet"), "data": [run.config["data"], first.config["data"]]}


def _file(weights: str) -> Any:
    path = Path(weights)
    return [weights, path.stat().st_size, path.stat().st_mtime] if path.is_file() else weights
