"""Text-conditional scenes: do samples show the digit and the colour of the prompt, on pairings never trained?

    unetdiff train diffusion configs/diffusion/scenes_text.yaml --diffusion.text.encoder ENCODER
    python benchmarks/unseen_prompts.py runs/scenes-text --n 50

An independent classifier of digit and colour together is trained on real scenes of every pairing, those included that
the denoiser never saw. Its share of right answers on held-out real scenes is printed beside the samples'. Writes
unseen_prompts.json and a grid of the pairings never trained into the run directory.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from unetdiff import GenerationPipeline
from unetdiff.data.prompt import Prompt, prompts
from unetdiff.data.scene_pairs import ScenePairs
from unetdiff.data.transforms import to_uint8
from unetdiff.diffusion.images import grid
from unetdiff.diffusion.noise import generators_for
from unetdiff.evaluation.classifier import train_classifier
from unetdiff.evaluation.load_run import run_config
from unetdiff.training import runtime as machine
from unetdiff.training.checkpoints import model_directory

SHOWN = 8  # samples of each prompt in the grid


def draw(pipeline: GenerationPipeline, prompt: Prompt, given: argparse.Namespace, seed: int) -> Tensor:
    """Samples of a prompt, uint8 (n, 3, H, W)."""
    output = pipeline(
        prompt=prompt.caption,
        batch_size=given.n,
        num_inference_steps=given.steps,
        guidance_scale=given.guidance,
        generator=generators_for(seed, range(given.n)),
        output_type="pt",
    )
    return to_uint8(output.pixels() * 2 - 1)


def shares(seen: list[Tensor], asked: list[Prompt], colors: int) -> dict[str, float]:
    """Share of samples whose pairing, digit and colour are those asked for."""
    right = {"pairing": [], "digit": [], "color": []}
    for classes, prompt in zip(seen, asked, strict=True):
        digit, color = classes // colors == prompt.digit, classes % colors == prompt.color
        for name, hits in (("pairing", digit & color), ("digit", digit), ("color", color)):
            right[name].append(hits)
    return {name: torch.cat(hits).float().mean().item() for name, hits in right.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--n", type=int, default=50, help="samples of each prompt")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    scenes = run_config(given.run).data.scenes
    everything = prompts(scenes)
    judge = train_classifier(ScenePairs("train", scenes), len(everything), given.run / "judge-pairs")
    pipeline = GenerationPipeline.from_pretrained(model_directory(given.run))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.autocast_dtype = machine.autocast_dtype()
    samples = [draw(pipeline, p, given, given.seed + i) for i, p in enumerate(tqdm(everything, desc="prompts"))]
    seen = [judge.predict(images) for images in samples]

    figures: dict = {"judge_on_real": judge.accuracy(ScenePairs("val", scenes)), "samples_each": given.n}
    figures |= {"steps": given.steps, "guidance": given.guidance, "seed": given.seed}
    for name, held_out in (("trained", False), ("never trained", True)):
        chosen = [i for i, prompt in enumerate(everything) if prompt.held_out == held_out]
        if chosen:
            figures[name] = {"prompts": len(chosen)}
            figures[name] |= shares([seen[i] for i in chosen], [everything[i] for i in chosen], scenes.colors)
    unseen = [i for i, prompt in enumerate(everything) if prompt.held_out] or list(range(min(8, len(everything))))
    images = torch.cat([samples[i][:SHOWN] for i in unseen])
    grid(images, rows=[everything[i].caption for i in unseen]).save(given.run / "unseen_prompts.png")
    (given.run / "unseen_prompts.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
