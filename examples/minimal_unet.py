"""The 2015 U-Net, and the three changes that make it a conditional denoiser, in one file.

Read it top to bottom: `UNet2015` labels the pixels of an image. `WithTimestep`, `WithCondition` and `Denoiser` each add
one change to the class before, and nothing else. The tensors are those of `unetdiff.UNet` with the `classic` encoder
(tests/examples/test_minimal_unet.py loads one's weights into the other, at each of the four stages).

    python examples/minimal_unet.py            # trains the segmenter and the denoiser, two minutes on two cores
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from einops import rearrange
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.utils import save_image


# ---- 2015: label every pixel (Ronneberger et al. 2015)
def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(1, min(32, channels // 4)), channels)


class DoubleConv(nn.Module):
    """Two 3x3 convolutions with ReLU: the unit of the 2015 network (figure 1), with a norm added after each."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm1, self.norm2 = group_norm(out_channels), group_norm(out_channels)
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")

    def forward(self, h: Tensor, modulate: Callable[[Tensor], Tensor] = lambda h: h) -> Tensor:
        h = F.relu(modulate(self.norm1(self.conv1(h))))  # (B, out_channels, H, W)
        return F.relu(self.norm2(self.conv2(h)))  # (B, out_channels, H, W)


class UNet2015(nn.Module):
    """Down by max-pooling, up by transposed convolutions, a skip at each level; `channels` are the levels' widths."""

    def __init__(self, channels: list[int], in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.depth = len(channels) - 1  # number of max-poolings
        down = list(zip([in_channels, *channels], channels, strict=False))  # [(3, 32), (32, 64), (64, 128)]
        up = [(2 * c, c) for c in reversed(channels[:-1])]  # [(128, 64), (64, 32)]: the skip and the map below
        self.widths = [out for _, out in [*down, *up]]  # of the blocks, in the order in which they run
        self.blocks = nn.ModuleList(DoubleConv(*sizes) for sizes in [*down, *up])
        self.ups = nn.ModuleList(nn.ConvTranspose2d(c, c // 2, 2, stride=2) for c in reversed(channels[1:]))
        self.head: nn.Module = nn.Conv2d(channels[0], out_channels, 1)

    def block(self, index: int, h: Tensor, temb: Tensor | None, context: Tensor | None) -> Tensor:
        return self.blocks[index](h)  # changes 1 and 2 override this line

    def forward(self, x: Tensor, temb: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        skips = []  # x: (B, in_channels, H, W)
        for level in range(self.depth):
            x = self.block(level, x, temb, context)  # (B, channels[level], H / 2^level, W / 2^level)
            skips.append(x)
            x = F.max_pool2d(x, 2)  # half the height, half the width
        x = self.block(self.depth, x, temb, context)  # (B, channels[-1], H / 2^depth, W / 2^depth)
        for step, up in enumerate(self.ups):
            x = up(x)  # double the height, double the width, half the channels
            x = torch.cat([skips.pop(), x], dim=1)  # the skip first, then what came from below
            x = self.block(self.depth + 1 + step, x, temb, context)
        return self.head(x)  # (B, out_channels, H, W)


# ---- change 1: the timestep (Ho et al. 2020, appendix B)
def sinusoids(timestep: Tensor, dim: int) -> Tensor:
    """(B,) timesteps as (B, dim) cosines and sines of geometrically spaced frequencies (Vaswani et al. 2017)."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(dim // 2) / (dim // 2))  # (dim / 2,)
    angles = timestep[:, None].float() * frequencies  # (B, dim / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)  # (B, dim)


class WithTimestep(UNet2015):
    """Change 1: every block's first map is scaled and shifted by an embedding of the timestep."""

    def __init__(self, channels: list[int], in_channels: int, out_channels: int) -> None:
        super().__init__(channels, in_channels, out_channels)
        dim = 4 * channels[0]
        self.time_mlp = nn.Sequential(nn.Linear(channels[0], dim), nn.SiLU(), nn.Linear(dim, dim))
        self.scale_shift = nn.ModuleList(nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * c)) for c in self.widths)
        for parameter in self.scale_shift.parameters():  # starts as the 2015 network: scale 0, shift 0
            nn.init.zeros_(parameter)

    def block(self, index: int, h: Tensor, temb: Tensor | None, context: Tensor | None) -> Tensor:
        scale, shift = rearrange(self.scale_shift[index](temb), "b c -> b c 1 1").chunk(2, dim=1)  # (B, C, 1, 1) each
        return self.blocks[index](h, lambda h: h * (1 + scale) + shift)

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor | None = None) -> Tensor:
        temb = self.time_mlp(sinusoids(timestep, self.widths[0]))  # (B,) -> (B, 4 * channels[0])
        return super().forward(x, temb, context)


# ---- change 2: cross-attention to a condition (Rombach et al. 2022, section 3.3)
class Attention(nn.Module):
    """softmax(q k^T / sqrt(d)) v of tokens (B, N, C) over context (B, M, D), head by head (Vaswani et al. 2017)."""

    def __init__(self, dim: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k, self.to_v = (nn.Linear(context_dim, dim, bias=False) for _ in range(2))
        self.to_out = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        q, k, v = self.to_q(tokens), self.to_k(context), self.to_v(context)  # (B, N, C), (B, M, C), (B, M, C)
        q, k, v = (rearrange(t, "b n (heads d) -> b heads n d", heads=self.heads) for t in (q, k, v))
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1)  # (B, heads, N, M)
        return self.to_out(rearrange(weights @ v, "b heads n d -> b n (heads d)"))  # (B, N, C)


class Transformer(nn.Module):
    """Self-attention, cross-attention, feed-forward, each with a residual: Stable Diffusion's transformer block."""

    def __init__(self, channels: int, context_dim: int, head_dim: int = 32) -> None:
        super().__init__()
        heads = max(1, channels // head_dim)
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.proj_in, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(2))
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.self_attention = Attention(channels, channels, heads)
        self.cross_attention = Attention(channels, context_dim, heads)
        self.geglu, self.linear = nn.Linear(channels, 8 * channels), nn.Linear(4 * channels, channels)
        for parameter in self.proj_out.parameters():  # starts as the network before it: adds 0
            nn.init.zeros_(parameter)

    def forward(self, h: Tensor, context: Tensor) -> Tensor:
        tokens = rearrange(self.proj_in(self.norm(h)), "b c h w -> b (h w) c")  # every pixel is a token
        tokens = tokens + self.self_attention(self.norm1(tokens), self.norm1(tokens))  # (B, H W, C)
        tokens = tokens + self.cross_attention(self.norm2(tokens), context)  # where the condition comes in
        value, gate = self.geglu(self.norm3(tokens)).chunk(2, dim=-1)  # (B, H W, 4 C) each
        tokens = tokens + self.linear(value * F.gelu(gate))
        return h + self.proj_out(rearrange(tokens, "b (h w) c -> b c h w", h=h.shape[-2]))  # (B, C, H, W)


class WithCondition(WithTimestep):
    """Change 2: at the two coarsest levels, every pixel attends to the condition's tokens."""

    def __init__(self, channels: list[int], in_channels: int, out_channels: int, context_dim: int) -> None:
        super().__init__(channels, in_channels, out_channels)
        coarse = [self.depth - 1, self.depth, self.depth + 1]  # down, bottom, up
        self.attentions = nn.ModuleDict({str(i): Transformer(self.widths[i], context_dim) for i in coarse})

    def block(self, index: int, h: Tensor, temb: Tensor | None, context: Tensor | None) -> Tensor:
        h = super().block(index, h, temb, context)
        return self.attentions[str(index)](h, context) if str(index) in self.attentions else h


# ---- change 3: an output with the noise's channels
class Denoiser(WithCondition):
    """Change 3: instead of one logit for each class, one number for each channel of the noise."""

    def __init__(self, channels: list[int], in_channels: int, context_dim: int) -> None:
        super().__init__(channels, in_channels, in_channels, context_dim)
        self.head = nn.Sequential(group_norm(channels[0]), nn.SiLU(), nn.Conv2d(channels[0], in_channels, 3, padding=1))


# ---- the two training loops
DIGITS, CHANNELS, SIZE, CLASSES, TIMESTEPS = load_digits(), [32, 64, 128], 16, 10, 1000
ALPHA_BAR = (1 - torch.linspace(1e-4, 0.02, TIMESTEPS)).cumprod(0)  # (T,), the linear schedule (Ho et al. 2020)


def digits(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Real handwritten digits at random places: images (B, 1, 16, 16) in [-1, 1], masks (B, 16, 16), labels (B,)."""
    chosen = torch.randint(len(DIGITS.target), (batch,), generator=generator)
    large = F.interpolate(torch.from_numpy(DIGITS.images).float()[chosen, None] / 16, size=(12, 12), mode="bilinear")
    images = torch.zeros(batch, 1, SIZE, SIZE)
    for image, digit, (y, x) in zip(images, large, torch.randint(5, (batch, 2), generator=generator), strict=True):
        image[:, y : y + 12, x : x + 12] = digit
    labels = torch.from_numpy(DIGITS.target)[chosen].long()
    return images * 2 - 1, torch.where(images[:, 0] > 0.4, labels[:, None, None] + 1, 0), labels  # 0: background


def train_segmentation(steps: int, generator: torch.Generator) -> UNet2015:
    """Every pixel of a clean image has a class: cross-entropy."""
    unet = UNet2015(CHANNELS, 1, CLASSES + 1)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=2e-3)
    for step in range(steps):
        images, masks, _ = digits(32, generator)
        loss = F.cross_entropy(unet(images), masks)  # (B, 11, 16, 16) against (B, 16, 16)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"segmentation step {step}: cross-entropy {loss.item():.3f}")
    return unet


def train_diffusion(steps: int, generator: torch.Generator) -> tuple[Denoiser, nn.Embedding]:
    """Every pixel of a noisy image has its noise (Ho et al. 2020), as velocity (Salimans & Ho 2022, appendix D)."""
    unet, classes = Denoiser(CHANNELS, 1, context_dim=64), nn.Embedding(CLASSES, 2 * 64)  # two tokens for each class
    optimizer = torch.optim.AdamW([*unet.parameters(), *classes.parameters()], lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        images, _, labels = digits(32, generator)
        noise = torch.randn(images.shape, generator=generator)
        timesteps = torch.randint(TIMESTEPS, (32,), generator=generator)
        alpha_bar = rearrange(ALPHA_BAR[timesteps], "b -> b 1 1 1")
        noisy = alpha_bar.sqrt() * images + (1 - alpha_bar).sqrt() * noise  # equation 4
        tokens = rearrange(classes(labels), "b (n d) -> b n d", n=2)  # (B, 2, 64)
        velocity = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * images  # the noise, and less of the image
        loss = F.mse_loss(unet(noisy, timesteps, tokens), velocity)  # (B, 1, 16, 16)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"diffusion step {step}: mean squared error {loss.item():.3f}")
    return unet, classes


@torch.no_grad()
def sample(unet: Denoiser, classes: nn.Embedding, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B, 1, 16, 16) of the classes (B,), from noise by DDIM (Song et al. 2021, equation 12, eta = 0)."""
    x = torch.randn(len(labels), 1, SIZE, SIZE, generator=generator)
    times = torch.linspace(TIMESTEPS - 1, 0, 50).long().tolist()
    for t, following in zip(times, [*times[1:], None], strict=True):
        velocity = unet(x, torch.full((len(labels),), t), rearrange(classes(labels), "b (n d) -> b n d", n=2))
        x0 = (ALPHA_BAR[t].sqrt() * x - (1 - ALPHA_BAR[t]).sqrt() * velocity).clamp(-1, 1)
        noise = (x - ALPHA_BAR[t].sqrt() * x0) / (1 - ALPHA_BAR[t]).sqrt()  # that agrees with the clipped x0
        after = ALPHA_BAR[following] if following is not None else torch.tensor(1.0)
        x = after.sqrt() * x0 + (1 - after).sqrt() * noise
    return x


def main(segmentation_steps: int = 500, diffusion_steps: int = 900, output: str = "minimal_unet.png") -> None:
    generator, began = torch.Generator().manual_seed(0), time.perf_counter()
    segmenter = train_segmentation(segmentation_steps, generator).eval()
    images, masks, _ = digits(256, generator)
    with torch.no_grad():
        correct = segmenter(images).argmax(dim=1) == masks  # (256, 16, 16)
    print(f"segmentation: {correct[masks > 0].float().mean():.1%} of the digits' pixels have the right class")
    denoiser, classes = train_diffusion(diffusion_steps, generator)
    samples = sample(denoiser, classes, torch.arange(CLASSES).repeat(4), generator)  # (40, 1, 16, 16)
    save_image(F.interpolate(samples / 2 + 0.5, scale_factor=4), output, nrow=CLASSES)
    print(f"diffusion: samples in {output}, a column for each digit; {time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
