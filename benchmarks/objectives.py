"""One table of runs trained with different forward processes: Fréchet distance and class consistency by sampling steps.

    for process in ddpm flow edm; do
        unetdiff train diffusion configs/diffusion/fashion_mnist.yaml --diffusion.noise.process $process \\
            --training.output_dir runs/fashion_$process
    done
    python benchmarks/objectives.py v=runs/fashion_ddpm flow=runs/fashion_flow edm=runs/fashion_edm \\
        --features mobilenet_v2=WEIGHTS --output objectives

Each argument is NAME=RUN. The network and the batch are the same for all, so the same steps are the same minutes. All
are sampled from the same starting noise, with the same classes; the reference and the classifier are those of the
first run's training images. heun calls the network twice a step, except at the last. Writes table.md, table.json and
samples.png: the first sample of each class, a row for each setting.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unetdiff.diffusion.images import grid
from unetdiff.diffusion.processes.load import process_of
from unetdiff.diffusion.scheduler_names import SCHEDULERS
from unetdiff.evaluation.config import EvaluationConfig
from unetdiff.evaluation.feature_extractors import EvaluationNetworks, ReferenceFeatures, load_evaluation_networks
from unetdiff.evaluation.load_run import load_run
from unetdiff.evaluation.sampling import as_denoiser
from unetdiff.evaluation.sweep import sweep
from unetdiff.evaluation.types import Denoiser, EvalSplits, SamplingConfig, concat_batches
from unetdiff.files.images import save_image
from unetdiff.files.records import write_json
from unetdiff.files.writing import make_folder, write_text
from unetdiff.text import markdown
from unetdiff.training import checkpoints


def main(argv: list[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    networks: EvaluationNetworks | None = None
    references: ReferenceFeatures | None = None
    runs: list[dict[str, Any]] = []
    tiles: list[tuple[str, Tensor]] = []
    loaded_runs = [(name, load_run(path), _budget(path)) for name, path in args.runs]  # all, before one is sampled
    for name, loaded, budget in loaded_runs:
        task = loaded.diffusion
        if task is None:
            raise SystemExit(f"{name}: must have a diffusion head.")
        denoiser = as_denoiser(task)
        if networks is None or references is None:
            splits = EvalSplits(loaded.config.data.name, loaded.split("train"), loaded.images, "val")
            evaluation = EvaluationConfig(features=tuple(args.features) or None)
            networks = load_evaluation_networks(denoiser, splits, evaluation, args.output / "cache", args.device)
            references = ReferenceFeatures(splits, args.output / "cache")
        process = process_of(denoiser.scheduler).name
        schedulers = [one for one in args.schedulers if one in SCHEDULERS[process]]
        network = networks.extractors[0]
        result = sweep(
            lambda count, sampling, name=name, denoiser=denoiser: _sample(name, denoiser, count, sampling, tiles),
            args.num_inference_steps,
            schedulers,
            [args.guidance_scale],
            args.samples_per_class * len(denoiser.classes),
            args.seed,
            network,
            references.get(network, "train"),
            networks.classifier,
        )
        runs.append({"name": name, "process": process, **budget, **result.metrics()})
    make_folder(args.output)
    lines = _table(runs, args)
    write_text(args.output / "table.md", "\n".join(lines) + "\n")
    write_json(args.output / "table.json", runs)
    rows = [label for label, _ in tiles]
    save_image(grid(torch.cat([images for _, images in tiles]), rows=rows), args.output / "samples.png")
    print("\n".join(lines))


def _sample(
    name: str, denoiser: Denoiser, count: int, sampling: SamplingConfig, tiles: list[tuple[str, Tensor]]
) -> tuple[Tensor, Tensor | None]:
    images, labels = concat_batches(denoiser.sample(count, sampling))
    across = max(1, len(denoiser.classes))  # classes in turn
    if count >= across:
        tiles.append((f"{name}, {sampling.scheduler}, {sampling.num_inference_steps} steps", images[:across]))
    return images, labels


def _budget(path: Path) -> dict[str, Any]:
    newest = checkpoints.newest(path)
    if newest is None:
        return {}
    progress = checkpoints.read_progress(newest)
    return {"step": progress.step, "train_minutes": progress.train_minutes}


def _table(runs: list[dict[str, Any]], args: argparse.Namespace) -> list[str]:
    header = ["run", "sampler", *(f"{steps} steps" for steps in args.num_inference_steps)]
    rows: list[list[str]] = []
    for run in runs:
        cells: dict[str, list[str]] = {}
        for one in run["results"]:
            consistency = one["class_consistency"]
            text = f"{one['frechet_distance']:.3g}" + ("" if consistency is None else f" / {consistency:.3f}")
            cells.setdefault(one["scheduler"], []).append(text)
        minutes = f", {run['step']} training steps, {run['train_minutes']:.1f} min" if "step" in run else ""
        rows += [[f"{run['name']} ({run['process']}{minutes})", name, *texts] for name, texts in cells.items()]
    first = runs[0]
    note = (
        f"{first['distance']} / class consistency of {first['n']} samples, guidance {args.guidance_scale:g}, seed "
        f"{args.seed}; reference: {first['reference']}."
    )
    return [*markdown([header, *rows]), "", note]


def _named(text: str) -> tuple[str, Path]:
    name, _, path = text.rpartition("=")
    return name or Path(path).name, Path(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=_named, metavar="NAME=RUN")
    parser.add_argument("--num_inference_steps", type=int, nargs="+", default=[5, 10, 25, 50])
    parser.add_argument("--schedulers", nargs="+", default=["ddim", "euler", "dpm++"], help="those that a run has")
    parser.add_argument("--samples_per_class", type=int, default=30)
    parser.add_argument("--guidance_scale", type=float, default=1.5)
    parser.add_argument("--features", nargs="*", default=[], help="NAME or NAME=WEIGHTS; default: the classifier")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("objectives"))
    return parser


if __name__ == "__main__":
    main()
