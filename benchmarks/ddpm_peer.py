"""The peer of the Fashion-MNIST figures: denoising-diffusion-pytorch with its classifier-free guidance.

    pip install denoising-diffusion-pytorch
    python benchmarks/ddpm_peer.py --root FASHION_MNIST --minutes 60 --output runs/peer-fashion_mnist

Its Unet and GaussianDiffusion with their defaults (cosine schedule, noise predicted, half of the classes dropped), and
what its Trainer does around them (which takes no classes, so the loop is here): Adam at 1e-4, gradients clipped to 1,
its EMA. `--dim 18` gives about as many parameters as ours has (3.25 M), 64 is its README's. Images are read by ours.
Every so many minutes of training it leaves its averaged weights (weights-MINUTES.safetensors) and a line of
metrics.jsonl; `minutes` counts training alone, data included. At the end, or later with `--draw_only`, it draws from
all of them with its own sampler: samples-MINUTES.safetensors (`images` uint8 (N, 3, H, W), `labels`), and a grid.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path

import torch
from denoising_diffusion_pytorch.classifier_free_guidance import GaussianDiffusion, Unet
from einops import reduce, repeat
from ema_pytorch import EMA
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from unetdiff.data.base import ImageDataset, collate
from unetdiff.data.build import build_dataset
from unetdiff.data.config import DataConfig
from unetdiff.data.sampling import StepSampler
from unetdiff.diffusion.images import grid

FOREVER = 10**8  # optimizer steps; the minutes end the run


def build(given: argparse.Namespace, classes: int) -> GaussianDiffusion:
    """Its network and its diffusion; what is not named here is its default."""
    width = {"dim_mults": tuple(given.dim_mults), "channels": given.channels}
    unet = Unet(given.dim, classes, cond_drop_prob=given.cond_drop_prob, **width)
    if given.channels_last:
        unet = unet.to(memory_format=torch.channels_last)
    return GaussianDiffusion(
        unet, image_size=given.size, sampling_timesteps=given.sampling_steps, objective=given.objective
    )


def inputs(images: Tensor, given: argparse.Namespace) -> Tensor:
    """uint8 (B, 3, H, W) as it wants them: floats in [0, 1], (B, channels, H, W)."""
    x = images.float() / 255
    x = reduce(x, "b c h w -> b 1 h w", "mean") if given.channels == 1 else x
    return x.contiguous(memory_format=torch.channels_last) if given.channels_last else x


@torch.inference_mode()
def draw(diffusion: GaussianDiffusion, labels: Tensor, given: argparse.Namespace) -> Tensor:
    """An image of each label by its own sampler, uint8 (N, 3, H, W); the same noise every time."""
    diffusion.eval()
    torch.manual_seed(given.seed)
    guidance = {"cond_scale": given.cond_scale, "rescaled_phi": given.rescaled_phi}
    with torch.autocast(given.device, torch.bfloat16, enabled=given.precision == "bf16"):
        parts = [diffusion.sample(part, **guidance) for part in labels.to(given.device).split(given.sample_batch)]
    pixels = torch.cat(parts).float().cpu()
    if not pixels.isfinite().all():  # with eta 1 and few steps, the 1 - α - σ² under its root rounds to below 0
        raise SystemExit(f"--sampling_steps {given.sampling_steps}: its sampler gave NaN; use more, e.g. 50")
    images = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
    return repeat(images, "n 1 h w -> n c h w", c=3) if given.channels == 1 else images


def write(images: Tensor, labels: Tensor, names: list[str], file: Path) -> None:
    """The samples, and a grid of eight of each class."""
    save_file({"images": images.contiguous(), "labels": labels}, file)
    shown = [i for c in range(len(names)) for i in torch.nonzero(labels == c).flatten().tolist()[:8]]
    grid(images[shown], rows=names).save(file.with_suffix(".png"))


def draw_all(diffusion: GaussianDiffusion, names: list[str], given: argparse.Namespace) -> None:
    """Samples of every point of the run that has none yet."""
    diffusion.to(given.device)
    labels = torch.arange(len(names)).repeat_interleave(given.per_class)
    for weights in sorted(given.output.glob("weights-*.safetensors"), key=lambda p: float(p.stem.partition("-")[2])):
        file = weights.with_name(weights.name.replace("weights", "samples"))
        if not file.is_file():
            diffusion.model.load_state_dict(load_file(weights))
            write(draw(diffusion, labels, given), labels, names, file)
            print(file, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="fashion_mnist", help="data.name of ours")
    parser.add_argument("--root", required=True, help="data.root of ours")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--dim", type=int, default=18, help="width of its network")
    parser.add_argument("--dim_mults", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--channels", type=int, choices=(1, 3), default=3)
    parser.add_argument("--objective", default="pred_noise", choices=("pred_noise", "pred_x0", "pred_v"))
    parser.add_argument("--cond_drop_prob", type=float, default=0.5)
    parser.add_argument("--batch_size", type=int, default=32, help="its README's, without the accumulation of two")
    parser.add_argument("--lr", type=float, default=1e-4, help="its Trainer's")
    parser.add_argument("--ema_decay", type=float, default=0.995, help="its Trainer's, every 10 steps")
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32", help="its Trainer's: amp is off")
    parser.add_argument("--channels_last", action="store_true")
    parser.add_argument("--minutes", type=float, default=60, help="of training")
    parser.add_argument("--keep_every", type=float, default=10, help="minutes of training between kept weights")
    parser.add_argument("--draw_only", action="store_true", help="train nothing; --output holds the weights")
    parser.add_argument("--device", default="cpu", help="of the drawing")
    parser.add_argument("--per_class", type=int, default=100, help="samples of each class; 0: drawn later")
    parser.add_argument(
        "--sampling_steps", type=int, default=250, help="its README's; below 1000 it is its DDIM, eta 1"
    )
    parser.add_argument("--cond_scale", type=float, default=6.0, help="its default; above 1")
    parser.add_argument("--rescaled_phi", type=float, default=0.7, help="its default")
    parser.add_argument("--sample_batch", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    if given.cond_scale == 1:
        raise SystemExit(
            "--cond_scale 1: its network then returns one value where its sampler unpacks two; use above 1"
        )
    if given.batch_size < 16:
        raise SystemExit(f"--batch_size {given.batch_size}: its Trainer as_segment_function for 16 or more")

    torch.manual_seed(given.seed)
    split = "val" if given.draw_only else "train"  # the names of its classes are all that drawing needs
    data = build_dataset(DataConfig(name=given.name, root=given.root, size=[given.size] * 2), split, False)
    diffusion = build(given, len(data.labels))
    if not given.draw_only:
        train(diffusion, data, given)
    if given.per_class:
        draw_all(diffusion, data.labels, given)


def train(diffusion: GaussianDiffusion, data: ImageDataset, given: argparse.Namespace) -> None:
    """What its Trainer does, with classes; leaves the averaged weights of several points."""
    ema = EMA(diffusion, beta=given.ema_decay, update_every=10)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=given.lr, betas=(0.9, 0.99))
    sampler = StepSampler(len(data), given.batch_size, given.seed, stop=FOREVER)
    parameters = sum(p.numel() for p in diffusion.parameters())
    given.output.mkdir(parents=True, exist_ok=True)
    facts = {**vars(given), "output": str(given.output), "parameters": parameters, "threads": torch.get_num_threads()}
    facts |= {name: version(name) for name in ("denoising-diffusion-pytorch", "ema-pytorch", "torch")}
    (given.output / "settings.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(f"{parameters / 1e6:.2f} M parameters, {len(data)} images, {given.precision}")

    seconds, due, losses = 0.0, given.keep_every, []
    batches = iter(DataLoader(data, batch_sampler=sampler, collate_fn=collate))
    began = time.perf_counter()
    with (given.output / "metrics.jsonl").open("w") as log:
        for step, batch in enumerate(tqdm(batches, total=float("inf"), unit="step", mininterval=30), 1):
            diffusion.train()
            with torch.autocast("cpu", torch.bfloat16, enabled=given.precision == "bf16"):
                loss = diffusion(inputs(batch["image"], given), classes=batch["label"])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            ema.update()
            losses.append(loss.item())
            spent = seconds + time.perf_counter() - began
            if spent < 60 * min(due, given.minutes):
                continue
            seconds, images = spent, step * given.batch_size
            line = {"kind": "weights", "step": step, "images": images, "minutes": seconds / 60}
            line |= {"images_per_second": images / seconds, "loss": sum(losses) / len(losses)}
            log.write(json.dumps(line) + "\n")
            log.flush()
            print(json.dumps(line), flush=True)
            averaged = {name: w.contiguous() for name, w in ema.ema_model.model.state_dict().items()}
            save_file(averaged, given.output / f"weights-{seconds / 60:.1f}.safetensors")
            if seconds >= 60 * given.minutes:
                break
            due, losses, began = due + given.keep_every, [], time.perf_counter()


if __name__ == "__main__":
    main()
