"""Compositional generalization of text-conditional scenes: accuracy of samples for digit-color pairs never trained on.

    unetdiff train diffusion configs/diffusion/scenes_text.yaml --diffusion.text.encoder ENCODER
    python benchmarks/unseen_prompts.py runs/scenes-text --num_images_per_prompt 50

An independent classifier of digit-color pairs is trained on real scenes of all pairs, including those held out from
the denoiser. Its accuracy on held-out real scenes is printed with that on the samples. Writes unseen_prompts.json and
a grid of the held-out pairs to the run directory.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from unetdiff import GenerationPipeline
from unetdiff.config.model_directory import model_directory
from unetdiff.data.prompt import Prompt, prompts
from unetdiff.data.scene_pairs import ScenePairs
from unetdiff.data.transforms import to_uint8
from unetdiff.diffusion.images import grid
from unetdiff.diffusion.noise import generators_for
from unetdiff.evaluation.classifier import train_classifier
from unetdiff.evaluation.load_run import run_config
from unetdiff.training import runtime as machine

COLUMNS = 8  # samples of each prompt in the grid


def sample(pipeline: GenerationPipeline, prompt: Prompt, args: argparse.Namespace, seed: int) -> Tensor:
    """Samples of a prompt, uint8 (n, 3, H, W)."""
    output = pipeline(
        prompt=prompt.caption,
        batch_size=args.num_images_per_prompt,
        num_inference_steps=args.num_inference_steps,
        guidance_scale=args.guidance_scale,
        generator=generators_for(seed, range(args.num_images_per_prompt)),
        output_type="pt",
    )
    return to_uint8(output.pixels() * 2 - 1)


def accuracies(predictions: list[Tensor], targets: list[Prompt], colors: int) -> dict[str, float]:
    """Fraction of samples with the correct pair, digit and color, of predicted pairs (n,) for each prompt."""
    correct = {"pair": [], "digit": [], "color": []}
    for classes, prompt in zip(predictions, targets, strict=True):
        digit, color = classes // colors == prompt.digit, classes % colors == prompt.color
        for name, hits in (("pair", digit & color), ("digit", digit), ("color", color)):
            correct[name].append(hits)
    return {name: torch.cat(hits).float().mean().item() for name, hits in correct.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--num_images_per_prompt", type=int, default=50, help="samples of each prompt")
    parser.add_argument("--num_inference_steps", type=int, default=50)
    parser.add_argument("--guidance_scale", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    scenes = run_config(args.run).data.scenes
    all_prompts = prompts(scenes)
    classifier = train_classifier(ScenePairs("train", scenes), len(all_prompts), args.run / "classifier-pairs")
    pipeline = GenerationPipeline.from_pretrained(model_directory(args.run))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.autocast_dtype = machine.autocast_dtype()
    samples = [sample(pipeline, p, args, args.seed + i) for i, p in enumerate(tqdm(all_prompts, desc="prompts"))]
    predictions = [classifier.predict(images) for images in samples]

    metrics: dict = {
        "classifier_accuracy_on_real": classifier.accuracy(ScenePairs("val", scenes)),
        "num_images_per_prompt": args.num_images_per_prompt,
    }
    metrics |= {
        "num_inference_steps": args.num_inference_steps,
        "guidance_scale": args.guidance_scale,
        "seed": args.seed,
    }
    for name, held_out in (("trained", False), ("held out", True)):
        indices = [i for i, prompt in enumerate(all_prompts) if prompt.held_out == held_out]
        if indices:
            metrics[name] = {"prompts": len(indices)}
            metrics[name] |= accuracies(
                [predictions[i] for i in indices], [all_prompts[i] for i in indices], scenes.colors
            )
    unseen = [i for i, prompt in enumerate(all_prompts) if prompt.held_out] or list(range(min(8, len(all_prompts))))
    images = torch.cat([samples[i][:COLUMNS] for i in unseen])
    grid(images, rows=[all_prompts[i].caption for i in unseen]).save(args.run / "unseen_prompts.png")
    (args.run / "unseen_prompts.json").write_text(json.dumps(metrics, indent=1) + "\n")
    print(json.dumps(metrics, indent=1))


if __name__ == "__main__":
    main()
