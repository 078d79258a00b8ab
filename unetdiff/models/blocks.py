"""The convolutional blocks of encoders and decoders."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from unetdiff.models.embeddings import TimeModulation


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm that always uses its stored statistics; survives `.train()`. Same tensors as BatchNorm2d."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.train()

    def train(self, mode: bool = True) -> FrozenBatchNorm2d:
        return super().train(False)


def norm_groups(channels: int, groups: int = 32) -> int:
    """The greatest common divisor of `channels` and `groups`: `groups` itself if it divides the channels."""
    return math.gcd(channels, groups)


def make_norm(kind: str, channels: int) -> nn.Module:
    """A normalization layer by name: none, batch, frozen or group (at most 32 groups of at least four channels)."""
    if kind == "none":
        return nn.Identity()
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "frozen":
        return FrozenBatchNorm2d(channels)
    if kind == "group":
        return nn.GroupNorm(norm_groups(channels, min(32, max(1, channels // 4))), channels)
    raise ValueError(f"norm={kind}: must be none, batch, frozen or group")


def replace_batch_norm(module: nn.Module, kind: str) -> None:
    """Turn every BatchNorm2d below `module` into frozen or group; weight, bias and (frozen) statistics stay."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            new = make_norm(kind, child.num_features)
            if isinstance(new, FrozenBatchNorm2d):
                new.eps = child.eps
            new.load_state_dict(child.state_dict(), strict=kind == "frozen")
            setattr(module, name, new.train(child.training))
        else:
            replace_batch_norm(child, kind)


def init_xavier_(conv: nn.Conv2d) -> nn.Conv2d:
    """Initialize a convolution so that it keeps its input's variance (Glorot & Bengio 2010), with zero bias.

    torch's default shrinks the variance to a third. On a shortcut, that loses the coarse maps in the decoder, and a
    segmenter learns the skips' strokes long before the objects.
    """
    nn.init.xavier_uniform_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


class DoubleConv(nn.Module):
    """(3x3 convolution, norm, ReLU) twice (Ronneberger et al. 2015, figure 1, with a norm added).

    With a time embedding, the first norm's output is scaled and shifted by it (zero at initialization).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        norm: str,
        padding: str = "same",
        time_dim: int | None = None,
    ) -> None:
        super().__init__()
        pad, bias = (1 if padding == "same" else 0), norm == "none"
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=pad, bias=bias)
        self.norm1 = make_norm(norm, out_channels)
        self.time = TimeModulation(time_dim, out_channels) if time_dim else None
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=pad, bias=bias)
        self.norm2 = make_norm(norm, out_channels)
        self.act = nn.ReLU(inplace=True)
        for conv in (self.conv1, self.conv2):  # He et al. 2015, as in section 3 of the 2015 paper
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def forward(self, h: Tensor, temb: Tensor | None = None) -> Tensor:
        h = self.norm1(self.conv1(h))
        if self.time is not None and temb is not None:
            h = self.time(h, temb)
        h = self.act(h)
        return self.act(self.norm2(self.conv2(h)))  # (B, out_channels, H, W)


class Upsample2d(nn.Module):
    """Upsample a map to the size of its skip: bilinear, nearest, or the 2015 paper's 2x2 transposed convolution."""

    def __init__(self, kind: str, channels: int, align_corners: bool = False) -> None:
        super().__init__()
        self.kind, self.align_corners = kind, align_corners
        self.conv = nn.ConvTranspose2d(channels, channels // 2, 2, stride=2) if kind == "transposed" else None
        self.out_channels = channels // 2 if kind == "transposed" else channels
        if self.conv is not None:  # each output pixel reads one input pixel: keep the variance
            nn.init.normal_(self.conv.weight, std=channels**-0.5)
            nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, h: Tensor, size: tuple[int, int] | None) -> Tensor:
        """`size`: (height, width) of the skip; None doubles (unpadded network, where the skip is cropped)."""
        if self.conv is not None:
            h = self.conv(h)
            return h if size is None else upsample_nearest(h, size)  # one pixel more where the skip is odd
        if self.kind == "bilinear":
            size = size or (2 * h.shape[-2], 2 * h.shape[-1])
            return F.interpolate(h, size=size, mode="bilinear", align_corners=self.align_corners)
        return upsample_nearest(h, size)


def upsample_nearest(h: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Nearest-neighbor upsampling to `size`, or to double the size."""
    if size is None:
        return F.interpolate(h, scale_factor=2.0, mode="nearest")
    return F.interpolate(h, size=size, mode="nearest")


def center_crop(h: Tensor, size: tuple[int, int]) -> Tensor:
    """The center of a map (B, C, H, W), cut to `size` (Ronneberger et al. 2015: skips of unpadded convolutions)."""
    top, left = (h.shape[-2] - size[0]) // 2, (h.shape[-1] - size[1]) // 2
    return h[..., top : top + size[0], left : left + size[1]]


class Downsample(nn.Module):
    """Half the size by a strided 3x3 convolution; padding 0 pads the right and bottom only, as google/ddpm-* do.

    `temb` is unused: the same signature as `ResnetBlock`, which may take its place.
    """

    def __init__(self, channels: int, padding: int = 1) -> None:
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, h: Tensor, temb: Tensor | None = None) -> Tensor:
        return self.conv(F.pad(h, (0, 1, 0, 1)) if self.padding == 0 else h)


class Upsample(nn.Module):
    """Nearest-neighbor upsampling to `size` (default: double), then a 3x3 convolution.

    `temb` is unused: the same signature as `ResnetBlock`, which may take its place.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, h: Tensor, temb: Tensor | None = None, size: tuple[int, int] | None = None) -> Tensor:
        return self.conv(upsample_nearest(h, size))


class ResnetBlock(nn.Module):
    """The residual block of DDPM and Stable Diffusion (Ho et al. 2020, appendix B; Dhariwal & Nichol 2021, section 3).

    `conv2` is zero-initialized: a new block passes its input on. `resample` ("up", "down") changes the size on both
    paths, after the first norm (ADM). With `scale_shift`, the time embedding scales and shifts the second norm (AdaGN)
    instead of being added before it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_dim: int | None,
        *,
        groups: int = 32,
        eps: float = 1e-5,
        scale_shift: bool = False,
        dropout: float = 0.0,
        resample: str | None = None,
    ) -> None:
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.norm1 = nn.GroupNorm(norm_groups(in_channels, groups), in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_dim, (2 if scale_shift else 1) * out_channels) if time_dim else None
        self.norm2 = nn.GroupNorm(norm_groups(out_channels, groups), out_channels, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.conv_shortcut = None if same else init_xavier_(nn.Conv2d(in_channels, out_channels, 1))
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, temb: Tensor | None = None, size: tuple[int, int] | None = None) -> Tensor:
        h = F.silu(self.norm1(x))
        if self.resample is not None:
            x, h = resample(x, self.resample, size), resample(h, self.resample, size)
        h = self.conv1(h)
        if self.time_emb_proj is None or temb is None:
            h = self.norm2(h)
        else:
            time = self.time_emb_proj(F.silu(temb))[:, :, None, None]  # (B, C or 2C, 1, 1)
            if self.scale_shift:
                scale, shift = time.chunk(2, dim=1)
                h = self.norm2(h) * (1 + scale) + shift
            else:
                h = self.norm2(h + time)
        h = self.conv2(self.dropout(F.silu(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


def resample(h: Tensor, way: str, size: tuple[int, int] | None) -> Tensor:
    """Half the size by average pooling ("down"), or nearest-neighbor upsampling to `size` ("up")."""
    return F.avg_pool2d(h, 2) if way == "down" else upsample_nearest(h, size)
