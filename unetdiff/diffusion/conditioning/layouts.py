"""Layout conditioning: a segmentation mask as tokens of a coarse grid, and as channels at full resolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  (DiffusionPipeline looks for it in this module)
from einops import rearrange
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from unetdiff.data.transforms import IGNORE_INDEX
from unetdiff.diffusion.conditioning.base import Conditioner, Conditioning, Examples, Size
from unetdiff.errors import UserError

Layout = Tensor | np.ndarray | Image.Image
"""A mask (H, W) of class indices and 255, or several as (B, H, W)."""


class LayoutConditioner(Conditioner):
    """Masks to tokens and channels.

    Ignored pixels have the index `num_classes`, the null condition `num_classes + 1`.

    Args:
        num_classes: classes of the mask, background included.
        dim: width of a token, the U-Net's `cross_attention_dim`; None: no tokens.
        grid: the tokens are those of a grid of this many cells a side, each the sum of a projection of its class
            fractions and a position embedding; 0: no tokens.
        channels: channels concatenated to the noisy image, a learned embedding of each pixel's class; 0: none.
        labels: names of the classes.
        palette: colors of the classes, for visualization, each [r, g, b] in 0..255.

    Raises:
        UserError: neither tokens nor channels.
    """

    pipeline_arg = "layout"
    batch_key = "mask"

    @register_to_config
    def __init__(
        self,
        num_classes: int,
        dim: int | None,
        grid: int = 8,
        channels: int = 8,
        labels: list[str] | None = None,
        palette: list[list[int]] | None = None,
    ) -> None:
        super().__init__()
        if not channels and not (grid and dim):
            raise UserError("channels=0: must be at least 1 without tokens. Set channels, or grid and dim.")
        self.num_classes, self.grid, self.channels = num_classes, grid if dim else 0, channels
        self.labels = [str(i) for i in range(num_classes)] if labels is None else list(labels)
        self.palette = palette
        if self.grid and dim:
            self.shares = nn.Linear(num_classes + 2, dim, bias=False)
            self.places = nn.Parameter(0.02 * torch.randn(self.grid**2, dim))
        if channels:
            self.colours = nn.Embedding(num_classes + 2, channels)

    @property
    def null_index(self) -> int:
        """The mask value of the null condition."""
        return self.num_classes + 1

    def forward(self, conditions: Tensor, size: Size) -> Conditioning:
        """Masks (B, H, W) as tokens (B, grid^2, dim) and channels (B, channels, *size).

        Where the noisy images are smaller, as latents are, a cell has the mean embedding of its pixels.
        """
        masks = conditions.to(self.device).long()  # (B, H, W)
        masks = torch.where(masks == IGNORE_INDEX, self.num_classes, masks)
        tokens = channels = None
        if self.grid:
            tokens = self.shares(self._class_fractions(masks).to(self.places.dtype)) + self.places  # (B, grid^2, dim)
        if self.channels:
            channels = rearrange(self.colours(masks), "b h w c -> b c h w")
            if channels.shape[-2:] != size:
                mode = "area" if size[0] < channels.shape[-2] else "nearest-exact"
                channels = F.interpolate(channels, size=size, mode=mode)
        return Conditioning(tokens, channels)

    def _class_fractions(self, masks: Tensor) -> Tensor:
        """Fraction of each class in each cell of the grid, (B, grid^2, num_classes + 2)."""
        planes = F.one_hot(masks, self.num_classes + 2)
        planes = rearrange(planes, "b h w c -> b c h w").float()
        return rearrange(F.adaptive_avg_pool2d(planes, self.grid), "b c h w -> b (h w) c")

    def from_batch(self, batch: Mapping[str, Any]) -> Tensor:
        """A batch's "mask", (B, H, W)."""
        return batch["mask"].long()

    def null_condition(self, batch: int, size: Size) -> Tensor:
        return torch.full((batch, *size), self.null_index)

    def examples(self, items: Sequence[Mapping[str, Any]]) -> Examples:
        """The masks of the validation split."""
        masks = torch.stack([item["mask"] for item in items]).long()
        return Examples([str(item["name"]) for item in items], masks)

    def visualize(self, conditions: Tensor) -> Tensor | None:
        """The classes in their colors, ignored and null pixels gray, (B, 3, H, W)."""
        if self.palette is None:
            return None
        colours = torch.tensor([*self.palette, [128, 128, 128], [128, 128, 128]]) / 255
        masks = torch.where(conditions == IGNORE_INDEX, self.num_classes, conditions).long().cpu()
        return rearrange(colours[masks], "b h w c -> b c h w")

    def encode(self, conditions: Layout | Sequence[Layout], size: Size) -> Tensor:
        """Masks of any sizes, resized to `size` (nearest neighbor), (B, H, W).

        Raises:
            UserError: a mask of another shape, or with values that are not classes.
        """
        many = conditions if isinstance(conditions, Sequence) else [conditions]
        masks = [self._mask(mask) for mask in many]
        scaled = [F.interpolate(mask[:, None].float(), size=size, mode="nearest-exact")[:, 0].long() for mask in masks]
        return torch.cat(scaled)

    def _mask(self, layout: Layout) -> Tensor:
        """(B, H, W) int64."""
        array = layout if isinstance(layout, Tensor) else np.array(layout)
        if isinstance(array, np.ndarray) and array.dtype.kind not in "bui":
            raise UserError(f"layout: must be integers, class indices (got {array.dtype}).")
        mask = torch.from_numpy(array.astype(np.int64)) if isinstance(array, np.ndarray) else array.cpu()
        mask = mask.long() if mask.ndim == 3 else mask[None].long() if mask.ndim == 2 else mask
        if (
            mask.ndim != 3
            or not mask.numel()
            or (isinstance(layout, Image.Image) and layout.mode not in ("L", "P", "1"))
        ):
            got = f"mode {layout.mode}" if isinstance(layout, Image.Image) else str(tuple(mask.shape))
            raise UserError(f"layout: must be 8-bit class indices of shape (H, W) (got {got}). Convert it to indices.")
        values = mask.unique()
        wrong = values[(values != IGNORE_INDEX) & ((values < 0) | (values >= self.num_classes))]
        if len(wrong):
            raise UserError(
                f"layout: must have values in 0..{self.num_classes - 1}, or {IGNORE_INDEX} = ignore (got "
                f"{int(wrong[0])})."
            )
        return mask
