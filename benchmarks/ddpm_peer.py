"""Peer for the Fashion-MNIST results: denoising-diffusion-pytorch with its classifier-free guidance.

    pip install denoising-diffusion-pytorch
    python benchmarks/ddpm_peer.py --root FASHION_MNIST --minutes 60 --output runs/peer-fashion_mnist

Uses its Unet and GaussianDiffusion with their defaults (cosine schedule, noise prediction, half of the classes
dropped) and the training of its Trainer (which does not support classes): Adam at 1e-4, gradients clipped to 1, its
EMA. `--dim 18` gives about as many parameters as unetdiff's config (3.25 M); its README uses 64. Images are read by
unetdiff. Every `--save_every` minutes of training it writes its averaged weights (weights-MINUTES.safetensors) and a
line of metrics.jsonl, whose `minutes` include data loading, but not sampling. At the end, or later with
`--sample_only`, it samples from all of these weights with its own sampler: samples-MINUTES.safetensors (`images` uint8
(N, 3, H, W), `labels`), and a grid.
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

MAX_STEPS = 10**8  # the run ends after --minutes


def build(args: argparse.Namespace, classes: int) -> GaussianDiffusion:
    """Its network and diffusion, with its defaults for other arguments."""
    width = {"dim_mults": tuple(args.dim_mults), "channels": args.channels}
    unet = Unet(args.dim, classes, cond_drop_prob=args.cond_drop_prob, **width)
    if args.channels_last:
        unet = unet.to(memory_format=torch.channels_last)
    return GaussianDiffusion(
        unet, image_size=args.size, sampling_timesteps=args.num_inference_steps, objective=args.objective
    )


def inputs(images: Tensor, args: argparse.Namespace) -> Tensor:
    """uint8 (B, 3, H, W) to its inputs: floats in [0, 1], (B, channels, H, W)."""
    x = images.float() / 255
    x = reduce(x, "b c h w -> b 1 h w", "mean") if args.channels == 1 else x
    return x.contiguous(memory_format=torch.channels_last) if args.channels_last else x


@torch.inference_mode()
def sample(diffusion: GaussianDiffusion, labels: Tensor, args: argparse.Namespace) -> Tensor:
    """An image of each label from its own sampler, uint8 (N, 3, H, W), with a fixed seed."""
    diffusion.eval()
    torch.manual_seed(args.seed)
    guidance = {"cond_scale": args.cond_scale, "rescaled_phi": args.rescaled_phi}
    with torch.autocast(args.device, torch.bfloat16, enabled=args.precision == "bf16"):
        parts = [diffusion.sample(part, **guidance) for part in labels.to(args.device).split(args.sample_batch)]
    pixels = torch.cat(parts).float().cpu()
    if not pixels.isfinite().all():  # with eta 1 and few steps, the 1 - α - σ² under its root rounds to below 0
        raise SystemExit(
            f"--num_inference_steps={args.num_inference_steps}: its sampler returned NaN. Use more, e.g. 50."
        )
    images = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
    return repeat(images, "n 1 h w -> n c h w", c=3) if args.channels == 1 else images


def write_samples(images: Tensor, labels: Tensor, names: list[str], file: Path) -> None:
    """Write the samples, and a grid of eight of each class."""
    save_file({"images": images.contiguous(), "labels": labels}, file)
    indices = [i for c in range(len(names)) for i in torch.nonzero(labels == c).flatten().tolist()[:8]]
    grid(images[indices], rows=names).save(file.with_suffix(".png"))


def sample_all(diffusion: GaussianDiffusion, names: list[str], args: argparse.Namespace) -> None:
    """Sample from all saved weights that have no samples yet."""
    diffusion.to(args.device)
    labels = torch.arange(len(names)).repeat_interleave(args.samples_per_class)
    for weights in sorted(args.output.glob("weights-*.safetensors"), key=lambda p: float(p.stem.partition("-")[2])):
        file = weights.with_name(weights.name.replace("weights", "samples"))
        if not file.is_file():
            diffusion.model.load_state_dict(load_file(weights))
            write_samples(sample(diffusion, labels, args), labels, names, file)
            print(file, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="fashion_mnist", help="data.name in unetdiff")
    parser.add_argument("--root", required=True, help="data.root in unetdiff")
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
    parser.add_argument("--minutes", type=float, default=60, help="training time")
    parser.add_argument("--save_every", type=float, default=10, help="training minutes between saved weights")
    parser.add_argument("--sample_only", action="store_true", help="do not train; sample from the weights in --output")
    parser.add_argument("--device", default="cpu", help="device of sampling")
    parser.add_argument("--samples_per_class", type=int, default=100, help="samples of each class; 0: none")
    parser.add_argument(
        "--num_inference_steps", type=int, default=250, help="its README's; below 1000 it is its DDIM, eta 1"
    )
    parser.add_argument("--cond_scale", type=float, default=6.0, help="its default; above 1")
    parser.add_argument("--rescaled_phi", type=float, default=0.7, help="its default")
    parser.add_argument("--sample_batch", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    if args.cond_scale == 1:
        raise SystemExit("--cond_scale=1: must be above 1, because its sampler fails at 1.")
    if args.batch_size < 16:
        raise SystemExit(f"--batch_size={args.batch_size}: must be at least 16, as in its Trainer.")

    torch.manual_seed(args.seed)
    split = "val" if args.sample_only else "train"  # sampling needs the class names only
    data = build_dataset(DataConfig(name=args.name, root=args.root, size=[args.size] * 2), split, False)
    diffusion = build(args, len(data.labels))
    if not args.sample_only:
        train(diffusion, data, args)
    if args.samples_per_class:
        sample_all(diffusion, data.labels, args)


def train(diffusion: GaussianDiffusion, data: ImageDataset, args: argparse.Namespace) -> None:
    """The training loop of its Trainer, with classes; saves averaged weights at intervals."""
    ema = EMA(diffusion, beta=args.ema_decay, update_every=10)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=args.lr, betas=(0.9, 0.99))
    sampler = StepSampler(len(data), args.batch_size, args.seed, stop=MAX_STEPS)
    parameters = sum(p.numel() for p in diffusion.parameters())
    args.output.mkdir(parents=True, exist_ok=True)
    facts = {**vars(args), "output": str(args.output), "parameters": parameters, "threads": torch.get_num_threads()}
    facts |= {name: version(name) for name in ("denoising-diffusion-pytorch", "ema-pytorch", "torch")}
    (args.output / "settings.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(f"{parameters / 1e6:.2f} M parameters, {len(data)} images, {args.precision}")

    seconds, next_save, losses = 0.0, args.save_every, []
    batches = iter(DataLoader(data, batch_sampler=sampler, collate_fn=collate))
    start = time.perf_counter()
    with (args.output / "metrics.jsonl").open("w") as log:
        for step, batch in enumerate(tqdm(batches, total=float("inf"), unit="step", mininterval=30), 1):
            diffusion.train()
            with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
                loss = diffusion(inputs(batch["image"], args), classes=batch["label"])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            ema.update()
            losses.append(loss.item())
            elapsed = seconds + time.perf_counter() - start
            if elapsed < 60 * min(next_save, args.minutes):
                continue
            seconds, images = elapsed, step * args.batch_size
            line = {"kind": "weights", "step": step, "images": images, "minutes": seconds / 60}
            line |= {"images_per_second": images / seconds, "loss": sum(losses) / len(losses)}
            log.write(json.dumps(line) + "\n")
            log.flush()
            print(json.dumps(line), flush=True)
            averaged = {name: w.contiguous() for name, w in ema.ema_model.model.state_dict().items()}
            save_file(averaged, args.output / f"weights-{seconds / 60:.1f}.safetensors")
            if seconds >= 60 * args.minutes:
                break
            next_save, losses, start = next_save + args.save_every, [], time.perf_counter()


if __name__ == "__main__":
    main()
