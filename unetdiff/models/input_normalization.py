"""What an encoder expects of its input: mean and deviation of each channel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unetdiff.models.config import RGB, ModelConfig, image_channels


class InputNormalization(nn.Module):
    """Pixels p in [-1, 1] to ((p + 1) / 2 - mean) / std, by channel; channels beyond those of mean stay as they are."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], channels: int) -> None:
        super().__init__()
        rest = channels - len(mean)
        scale = torch.tensor([0.5 / s for s in std] + [1.0] * rest)
        shift = torch.tensor([(0.5 - m) / s for m, s in zip(mean, std, strict=True)] + [0.0] * rest)
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", scale[:, None, None], persistent=False)
        self.register_buffer("shift", shift[:, None, None], persistent=False)

    @classmethod
    def of(cls, config: ModelConfig) -> InputNormalization | None:
        """That of a config's own mean and std; None without."""
        mean, std = config.encoder.mean, config.encoder.std
        return None if mean is None or std is None else cls(mean, std, config.in_channels)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return pixels * self.scale + self.shift


def pretrained_normalization(config: ModelConfig, mean: Sequence[float], std: Sequence[float]) -> InputNormalization:
    """The input that a pretrained encoder expects: the config's own mean and std, else those of its training images
    (their means over RGB for the channels of other images), else pixels in [0, 1]."""
    own = InputNormalization.of(config)
    if own is not None:
        return own
    count = image_channels(config)
    if config.encoder.statistics == "none":
        mean, std = (0.0,) * count, (1.0,) * count
    elif count != RGB:
        mean, std = ((sum(values) / RGB,) * count for values in (mean, std))
    return InputNormalization(mean, std, config.in_channels)
