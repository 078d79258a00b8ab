"""The cost of a joint training step next to the denoiser's, on the same scenes: their steps interleaved in one process.

OMP_NUM_THREADS=2 python benchmarks/joint_step.py --steps 20
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory

from unetdiff.config.reading import load
from unetdiff.training.step import optimizer_step
from unetdiff.training.trainer import Trainer

CONFIGS = Path(__file__).parents[1] / "configs"
WARMUPS = 3


def build_trainer(task: str, output: Path) -> Trainer:
    """The trainer of `configs/TASK/scenes.yaml` on a few scenes."""
    few = {"data.scenes.train_images": 320, "data.scenes.val_images": 8, "training.output_dir": str(output / task)}
    return Trainer(load(CONFIGS / task / "scenes.yaml", few), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each (default: 20)")
    args = parser.parse_args()
    with TemporaryDirectory() as output:
        trainers = {task: build_trainer(task, Path(output)) for task in ("diffusion", "joint")}
        batches = {
            task: t.data.batches(t.config.training, 0, t.steps, t.lr.strong_until, t.accelerator)
            for task, t in trainers.items()
        }
        seconds: dict[str, list[float]] = {task: [] for task in trainers}
        for step in range(WARMUPS + args.steps):
            for task, t in trainers.items():
                began = time.perf_counter()
                optimizer_step(
                    t.model, t.prepared_optimizer, batches[task], step, t.config.training, t.accelerator, t.layers
                )
                seconds[task].append(time.perf_counter() - began)
    ratios = [joint / alone for joint, alone in zip(seconds["joint"], seconds["diffusion"], strict=True)][WARMUPS:]
    for task, values in seconds.items():
        low, median, high = quantiles([1000 * value for value in values[WARMUPS:]], n=4)
        print(f"{task}: {median:.0f} ms per step ({low:.0f} to {high:.0f})")
    low, median, high = quantiles(ratios, n=4)
    print(f"joint / diffusion: {median:.2f}× ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
