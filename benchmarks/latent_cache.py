"""Training with latents encoded once next to encoding in each step: steps of both, interleaved in one process.

OMP_NUM_THREADS=2 python benchmarks/latent_cache.py --root path/to/flowers --vae path/to/taesd

Both read batches as a run does: the one decodes and encodes images, the other takes latents from memory. The time of
encoding the images once is not counted; it is printed per image.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory

from unetdiff.config.reading import load, parse
from unetdiff.training.step import optimizer_step
from unetdiff.training.trainer import Trainer

CONFIG = Path(__file__).parents[1] / "configs" / "diffusion" / "flowers_latent.yaml"
WARMUPS = 1


def few_images(root: Path, target: Path, count: int) -> None:
    """A folder per class with the first images of `root`'s training split, about `count` in all."""
    folders = sorted(path for path in (root / "train").iterdir() if path.is_dir())
    for folder in folders:
        for file in sorted(folder.iterdir())[: -(-count // len(folders))]:
            (target / folder.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target / folder.name)


def build_trainer(mode: str, args: argparse.Namespace, channels: list[int], folder: Path) -> tuple[Trainer, float]:
    """The trainer of the config with one `latent.cache`, and the seconds that it took to build."""
    keys = {
        "data.root": str(folder / "data"),
        "latent.vae": str(args.vae),
        "latent.cache": mode,
        "model.encoder.channels": channels,
        "training.batch_size": args.batch_size,
        "training.output_dir": str(folder / f"{mode}-{channels[0]}"),
    }
    began = time.perf_counter()
    trainer = Trainer(load(CONFIG, keys), None)
    return trainer, time.perf_counter() - began


def compare(args: argparse.Namespace, channels: list[int], folder: Path) -> None:
    """Print images/s of both and the ratio."""
    built = {mode: build_trainer(mode, args, channels, folder) for mode in ("none", "memory")}
    trainers = {mode: trainer for mode, (trainer, _) in built.items()}
    batches = {
        mode: t.data.batches(t.config.training, 0, t.steps, t.lr.strong_until, t.accelerator)
        for mode, t in trainers.items()
    }
    seconds: dict[str, list[float]] = {mode: [] for mode in trainers}
    for step in range(WARMUPS + args.steps):
        for mode, t in trainers.items():
            began = time.perf_counter()
            optimizer_step(
                t.model, t.prepared_optimizer, batches[mode], step, t.config.training, t.accelerator, t.layers
            )
            seconds[mode].append(time.perf_counter() - began)
    data = trainers["memory"].data
    views = 2 * len(data.train) + len(data.val)
    size, precision = sum(p.numel() for p in t.task.unet.parameters()) / 1e6, t.accelerator.mixed_precision
    print(f"channels {channels}, {size:.1f} M parameters, batches of {args.batch_size}, {precision}")
    print(f"  encoding once: about {1000 * (built['memory'][1] - built['none'][1]) / views:.0f} ms per image")
    for mode, label in (("none", "encoded in each step"), ("memory", "encoded once")):
        rate = args.batch_size / median(seconds[mode][WARMUPS:])
        print(f"  {label}: {rate:.1f} images/s")
    ratios = [slow / fast for slow, fast in zip(seconds["none"], seconds["memory"], strict=True)][WARMUPS:]
    low, middle, high = quantiles(ratios, n=4)
    print(f"  ratio: {middle:.2f}× ({low:.2f} to {high:.2f})", flush=True)
    for t in trainers.values():
        t.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="with train/CLASS/*.jpg")
    parser.add_argument("--vae", type=Path, required=True, help="a folder with a diffusers autoencoder")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each (default: 8)")
    parser.add_argument("--batch_size", type=int, default=32, help="images per step (default: 32)")
    parser.add_argument("--images", type=int, default=64, help="images in the dataset (default: 64)")
    parser.add_argument("--factors", type=float, nargs="+", default=[1.0], help="of the config's channels (default: 1)")
    args = parser.parse_args()
    with TemporaryDirectory() as output:
        few_images(args.root, Path(output) / "data", args.images)
        channels = parse(CONFIG, {}).model.encoder.channels or []
        for factor in args.factors:
            compare(args, [round(factor * width) for width in channels], Path(output))


if __name__ == "__main__":
    main()
