"""Fréchet distance and class consistency of samples by training minutes, of runs and peers, and grids of the last
samples.

    unetdiff train diffusion configs/diffusion/fashion_mnist.yaml --training.checkpoint_every 750 \\
        --training.keep_checkpoints 20
    python benchmarks/ddpm_curve.py unetdiff=runs/fashion_mnist peer=runs/peer-fashion_mnist --output curve

Each argument is NAME=FOLDER: a run directory, whose checkpoints are all sampled once (cached in its samples/), or a
folder of samples-MINUTES.safetensors (`images` uint8 (N, 3, H, W), `labels`), as benchmarks/ddpm_peer.py writes. The
first must be a run directory: its dataset provides the reference (validation images) and the classifier (trained on
training images). The number of samples of each class is the same for all, because the Fréchet distance depends on it.
Minutes are training time only. Writes curve.png, grids.png and curve.json.
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

from unetdiff.config.model_directory import model_directory
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
from unetdiff.training.tasks.build import load_task
from unetdiff.training.tasks.diffusion import DiffusionTask

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

COLUMNS = 8  # images of each class in a grid


def sample_checkpoints(run: Path, val: ImageDataset, args: argparse.Namespace) -> dict[float, Path]:
    """Sample each checkpoint of a run, unless cached; returns the files by training minutes."""
    files: dict[float, Path] = {}
    task: DiffusionTask | None = None
    for checkpoint in checkpoints.complete(run):
        minutes = checkpoints.read_progress(checkpoint).train_minutes
        setting = f"{args.samples_per_class}x{args.num_inference_steps}-{args.guidance_scale:g}-{args.seed}"
        name = f"{checkpoint.name}-{setting}.safetensors"
        file = files[minutes] = run / "samples" / name
        if file.is_file():
            continue
        if task is None:
            loaded = load_task(run_config(run), model_directory(run), val)
            if not isinstance(loaded, DiffusionTask):
                raise SystemExit(f"{run}: must be a diffusion run.")
            task = loaded
            task.to(args.device)
        checkpoints.load_eval_weights(checkpoint, task)
        config = SamplingConfig(args.num_inference_steps, args.guidance_scale, args.seed)
        images, labels = sample(task, args.samples_per_class * len(val.labels), config)
        if labels is None:
            raise SystemExit(f"{run}: must be class-conditional.")
        file.parent.mkdir(exist_ok=True)
        save_file({"images": images.contiguous(), "labels": labels}, file)
    return files


def sample_files(folder: Path, val: ImageDataset, args: argparse.Namespace) -> dict[float, Path]:
    """Sample files of a run or a peer, sorted by training minutes."""
    if (folder / CONFIG).is_file():
        files = sample_checkpoints(folder, val, args)
    else:
        files = {float(p.stem.partition("-")[2]): p for p in folder.glob("samples-*.safetensors")}
    if not files:
        raise SystemExit(f"{folder}: must contain checkpoints or samples-MINUTES.safetensors.")
    return dict(sorted(files.items()))


def first_of_each_class(file: Path, count: int, classes: int) -> tuple[Tensor, Tensor]:
    """The first `count` images of each class, uint8 (classes · count, 3, H, W), and their labels."""
    content = load_file(file)
    indices = [torch.nonzero(content["labels"] == c).flatten()[:count] for c in range(classes)]
    if min(len(i) for i in indices) < count:
        raise SystemExit(f"--samples_per_class={count}: must be at most the images of each class in {file}.")
    order = torch.cat(indices)
    return content["images"][order], content["labels"][order]


def hconcat(images: list[Image.Image]) -> Image.Image:
    """Images in one row on white."""
    canvas = Image.new("RGB", (sum(p.width for p in images), max(p.height for p in images)), "white")
    left = 0
    for image in images:
        canvas.paste(image, (left, 0))
        left += image.width
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER", help="a run directory first")
    parser.add_argument("--samples_per_class", type=int, default=100, help="evaluated samples of each class")
    parser.add_argument("--num_inference_steps", type=int, default=50, help="denoising steps of a run")
    parser.add_argument("--guidance_scale", type=float, default=2.0, help="guidance scale of a run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--features", default="classifier", help="classifier, inception or a torchvision encoder")
    parser.add_argument("--weights", help="weights of the feature network (default: downloaded)")
    parser.add_argument("--num_real_images", type=int, default=10_000, help="validation images in the distances")
    parser.add_argument("--root", help="folder of the dataset (default: that of the first run)")
    parser.add_argument(
        "--classifier_steps", type=int, default=ClassifierConfig.steps, help="optimizer steps of the classifier"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("curve"))
    args = parser.parse_args()
    folders = {name: Path(folder) for name, _, folder in (run.partition("=") for run in args.runs)}
    first_run = next(iter(folders.values()))
    if not (first_run / CONFIG).is_file():
        raise SystemExit(f"{first_run}: must be a run directory, which provides the dataset.")
    data = run_config(first_run).data
    data.root, data.download, data.augment = args.root or data.root, False, AugmentConfig()
    val = build_dataset(data, "val", False)
    classifier = train_classifier(
        build_dataset(data, "train", False),
        len(val.labels),
        first_run / "classifier",
        ClassifierConfig(steps=args.classifier_steps),
        args.device,
    )
    network = load_feature_extractor(args.features, args.weights, classifier, args.device)
    real = Gaussian.fit(
        network(torch.stack([val[i]["image"] for i in evenly_spaced_indices(len(val), args.num_real_images)]))
    )

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), dpi=150)
    result: dict = {
        "classifier_accuracy_on_real": classifier.accuracy(val),
        "features": network.name,
        "num_real_images": real.n,
    }
    grids = []
    for name, folder in folders.items():
        rows = []
        for minutes, file in sample_files(folder, val, args).items():
            images, labels = first_of_each_class(file, args.samples_per_class, len(val.labels))
            rows.append(
                (minutes, frechet_distance(network(images), real), classifier.class_consistency(images, labels))
            )
            print(
                f"{name}, {minutes:.1f} min, n = {len(images)}: {network.frechet_name} {rows[-1][1]:.2f}, "
                f"class consistency {rows[-1][2]:.3f}"
            )
        shown = torch.cat([images[labels == c][:COLUMNS] for c in range(len(val.labels))])
        grids.append(grid(shown, rows=val.labels, title=f"{name}, {minutes:.0f} training minutes"))
        left.plot([r[0] for r in rows], [r[1] for r in rows], marker="o", markersize=3, label=name)
        right.plot([r[0] for r in rows], [r[2] for r in rows], marker="o", markersize=3, label=name)
        result[name] = [dict(zip(("minutes", "frechet", "consistency"), row, strict=True)) for row in rows]
    count = args.samples_per_class * len(val.labels)
    left.set(xlabel="training minutes", ylabel=f"{network.frechet_name}, n = {count}", ylim=(0, None))
    right.set(xlabel="training minutes", ylabel="class consistency", ylim=(0, 1.02))
    right.axhline(result["classifier_accuracy_on_real"], color="grey", linestyle=":", label="real images")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.tight_layout()
    args.output.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output / "curve.png")
    hconcat(grids).save(args.output / "grids.png")
    (args.output / "curve.json").write_text(json.dumps(result, indent=1) + "\n")
    print(args.output)


if __name__ == "__main__":
    main()
