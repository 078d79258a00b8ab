"""Samples against training minutes, of runs and of peers: Fréchet distance, class consistency, and the last grids.

    unetdiff train diffusion configs/diffusion/fashion_mnist.yaml --training.checkpoint_every 750 \\
        --training.keep_checkpoints 20
    python benchmarks/ddpm_curve.py ours=runs/fashion_mnist peer=runs/peer-fashion_mnist --output curve

Each argument is NAME=FOLDER: a run directory, whose every checkpoint is drawn from once (kept in its samples/), or a
folder of samples-MINUTES.safetensors (`images` uint8 (N, 3, H, W), `labels`), as benchmarks/ddpm_peer.py writes. The
first run says which set they are judged by: its validation images, and a classifier of its training images. All are
judged on the same number of samples of each class, as a Fréchet distance falls with the number. Minutes are those of
training alone. Writes curve.png, grids.png and curve.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from unetdiff.data.base import ImageDataset
from unetdiff.data.build import build_dataset
from unetdiff.data.config import AugmentConfig
from unetdiff.data.sampling import evenly_spaced_indices
from unetdiff.diffusion.images import grid
from unetdiff.evaluation.classifier import ClassifierConfig, train_classifier
from unetdiff.evaluation.distances import Gaussian, frechet_distance
from unetdiff.evaluation.features import load_feature_extractor
from unetdiff.evaluation.load_run import run_config
from unetdiff.evaluation.sampling import sample
from unetdiff.evaluation.types import SamplingConfig
from unetdiff.training import checkpoints
from unetdiff.training.rundir import CONFIG
from unetdiff.training.tasks import DiffusionTask, load_task

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

ACROSS = 8  # images of a class in a grid


def drawn(run: Path, val: ImageDataset, given: argparse.Namespace) -> dict[float, Path]:
    """Sample files of a run's checkpoints by minutes of training; those that are there already are kept."""
    files: dict[float, Path] = {}
    task: DiffusionTask | None = None
    for checkpoint in checkpoints.whole(run):
        minutes = checkpoints.read_progress(checkpoint).train_minutes
        name = f"{checkpoint.name}-{given.per_class}x{given.steps}-{given.guidance:g}-{given.seed}.safetensors"
        file = files[minutes] = run / "samples" / name
        if file.is_file():
            continue
        if task is None:
            loaded = load_task(run_config(run), checkpoints.model_directory(run), val)
            if not isinstance(loaded, DiffusionTask):
                raise SystemExit(f"{run} is no diffusion run")
            task = loaded
            task.to(given.device)
        checkpoints.load_judged(checkpoint, task)
        setting = SamplingConfig(given.steps, given.guidance, given.seed)
        images, labels = sample(task, given.per_class * len(val.labels), setting)
        if labels is None:
            raise SystemExit(f"{run} was trained without classes")
        file.parent.mkdir(exist_ok=True)
        save_file({"images": images.contiguous(), "labels": labels}, file)
    return files


def sample_files(folder: Path, val: ImageDataset, given: argparse.Namespace) -> dict[float, Path]:
    """Sample files of a run or a peer, by minutes of training, in order."""
    if (folder / CONFIG).is_file():
        files = drawn(folder, val, given)
    else:
        files = {float(p.stem.partition("-")[2]): p for p in folder.glob("samples-*.safetensors")}
    if not files:
        raise SystemExit(f"{folder}: neither checkpoints nor samples-MINUTES.safetensors")
    return dict(sorted(files.items()))


def first_of_each_class(file: Path, count: int, classes: int) -> tuple[Tensor, Tensor]:
    """The first `count` images of each class, uint8 (classes · count, 3, H, W), and their labels."""
    content = load_file(file)
    indices = [torch.nonzero(content["labels"] == c).flatten()[:count] for c in range(classes)]
    if min(len(i) for i in indices) < count:
        raise SystemExit(f"{file} has fewer than {count} images of some class; lower --per_class")
    chosen = torch.cat(indices)
    return content["images"][chosen], content["labels"][chosen]


def beside(images: list[Image.Image]) -> Image.Image:
    """Images in one row on white."""
    canvas = Image.new("RGB", (sum(p.width for p in images), max(p.height for p in images)), "white")
    left = 0
    for image in images:
        canvas.paste(image, (left, 0))
        left += image.width
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER", help="ours first")
    parser.add_argument("--per_class", type=int, default=100, help="samples of each class that are judged")
    parser.add_argument("--steps", type=int, default=50, help="denoising steps of a run's samples")
    parser.add_argument("--guidance", type=float, default=2.0, help="of a run's samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--features", default="classifier", help="classifier, inception or a torchvision trunk")
    parser.add_argument("--weights", help="the feature network's weights; downloaded without")
    parser.add_argument("--real", type=int, default=10_000, help="validation images that samples are held against")
    parser.add_argument("--root", help="where the set lies, if not where the first run found it")
    parser.add_argument(
        "--classifier_steps", type=int, default=ClassifierConfig.steps, help="optimizer steps of the classifier"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("curve"))
    given = parser.parse_args()
    folders = {name: Path(folder) for name, _, folder in (run.partition("=") for run in given.runs)}
    ours = next(iter(folders.values()))
    if not (ours / CONFIG).is_file():
        raise SystemExit(f"{ours} is no run directory; give one of ours first, its set is the judges'")
    data = run_config(ours).data
    data.root, data.download, data.augment = given.root or data.root, False, AugmentConfig()
    val = build_dataset(data, "val", False)
    judge = train_classifier(
        build_dataset(data, "train", False),
        len(val.labels),
        ours / "judge",
        ClassifierConfig(steps=given.classifier_steps),
        given.device,
    )
    network = load_feature_extractor(given.features, given.weights, judge, given.device)
    real = Gaussian.fit(network(torch.stack([val[i]["image"] for i in evenly_spaced_indices(len(val), given.real)])))

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), dpi=150)
    result: dict = {"judge_accuracy_on_real": judge.accuracy(val), "features": network.name, "real": real.n}
    grids = []
    for name, folder in folders.items():
        rows = []
        for minutes, file in sample_files(folder, val, given).items():
            images, labels = first_of_each_class(file, given.per_class, len(val.labels))
            rows.append((minutes, frechet_distance(network(images), real), judge.class_consistency(images, labels)))
            print(
                f"{name}, {minutes:.1f} min, n = {len(images)}: Fréchet {rows[-1][1]:.2f}, consistent {rows[-1][2]:.3f}"
            )
        shown = torch.cat([images[labels == c][:ACROSS] for c in range(len(val.labels))])
        grids.append(grid(shown, rows=val.labels, title=f"{name}, {minutes:.0f} minutes of training"))
        left.plot([r[0] for r in rows], [r[1] for r in rows], marker="o", markersize=3, label=name)
        right.plot([r[0] for r in rows], [r[2] for r in rows], marker="o", markersize=3, label=name)
        result[name] = [dict(zip(("minutes", "frechet", "consistency"), row, strict=True)) for row in rows]
    count = given.per_class * len(val.labels)
    left.set(xlabel="minutes of training", ylabel=f"{network.frechet_name}, n = {count}", ylim=(0, None))
    right.set(xlabel="minutes of training", ylabel="share taken for the class asked for", ylim=(0, 1.02))
    right.axhline(result["judge_accuracy_on_real"], color="grey", linestyle=":", label="real images")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.tight_layout()
    given.output.mkdir(parents=True, exist_ok=True)
    figure.savefig(given.output / "curve.png")
    beside(grids).save(given.output / "grids.png")
    (given.output / "curve.json").write_text(json.dumps(result, indent=1) + "\n")
    print(given.output)


if __name__ == "__main__":
    main()
