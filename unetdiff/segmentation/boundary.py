"""Boundary IoU (Cheng et al. 2021): the IoU of what lies along the contours, for every class at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unetdiff.data.transforms import ignore_mask
from unetdiff.errors import UserError
from unetdiff.segmentation.metrics import check_indices

__all__ = ["BoundaryIoU", "boundary_mask", "boundary_width"]

NO_CLASS = -1  # void, and everything beyond the image


def boundary_width(height: int, width: int, ratio: float = 0.02) -> int:
    """d in pixels: `ratio` of the image's diagonal, rounded, at least 1 (as in the authors' code)."""
    return max(1, round(ratio * (height**2 + width**2) ** 0.5))


def boundary_mask(labels: Tensor, distance: int) -> Tensor:
    """Which pixels of class indices (H, W) lie within `distance` pixels of their own class's contour; bool (H, W).

    That is a mask less its erosion by a square of 2 d + 1 pixels, for all classes in one pass: a pixel is within its
    class exactly where the least and the greatest label of the square around it are one. Beyond the image there is
    no class, so its border is a contour.
    """
    padded = F.pad(labels, (distance,) * 4, value=NO_CLASS)
    low, high = (
        _window(_window(padded, 2 * distance + 1, 0, extreme), 2 * distance + 1, 1, extreme)
        for extreme in (torch.minimum, torch.maximum)
    )
    return low != high


def _window(x: Tensor, length: int, dim: int, extreme: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The extreme of every `length` neighbours along `dim`, in log2(length) passes (windows grow by doubling)."""
    reached = 1
    while reached < length:
        step = min(reached, length - reached)
        kept = x.shape[dim] - step
        x = extreme(x.narrow(dim, 0, kept), x.narrow(dim, step, kept))
        reached += step
    return x


class BoundaryIoU:
    """Boundary IoU of each class over a whole set, from int64 counts.

    For truth G and prediction P of a class, with G_d and P_d the pixels within d of their contours (arXiv:2103.16562,
    section 5): |(G_d and G) and (P_d and P)| / |(G_d and G) or (P_d and P)|, where d is `ratio` of each mask's
    diagonal (2 % as in the paper). Intersections and unions are summed over the images, as in mIoU.

    Void counts nowhere. It is cut out of truth and prediction alike, so its rim is a contour of both, and what is
    predicted under it changes nothing.

    Args:
        num_classes: classes of the masks.
        ignore_index: void in the truth.
        ratio: d as a share of the image's diagonal.
        device: where the counts are.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        ratio: float = 0.02,
        device: torch.device | str | None = None,
    ) -> None:
        if not 0 < ratio < 1:
            raise UserError(f"boundary IoU's width: {ratio} of the diagonal; give a share, e.g. 0.02")
        self.num_classes, self.ignore_index, self.ratio = num_classes, ignore_index, ratio
        self.intersection = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self.union = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self.widths: tuple[int, int] | None = None
        """Least and greatest d so far, in pixels."""

    def update(self, prediction: Tensor | np.ndarray, target: Tensor | np.ndarray) -> None:
        """Count one image: class indices (H, W), at the size at which they are judged.

        Raises UserError where shapes differ or a pixel that counts has a class outside 0..C-1.
        """
        prediction, target = check_indices(prediction, target, self.num_classes, self.ignore_index)
        if target.ndim != 2:
            raise UserError(f"masks of shape {tuple(target.shape)}: boundary IoU takes one image (H, W) at a time")
        void = ignore_mask(target, self.ignore_index)
        truth = target.to(torch.int16).masked_fill(void, NO_CLASS)
        pred = prediction.to(torch.int16).masked_fill(void, NO_CLASS)
        distance = boundary_width(truth.shape[0], truth.shape[1], self.ratio)
        low, high = self.widths or (distance, distance)
        self.widths = (min(low, distance), max(high, distance))
        target_boundary = boundary_mask(truth, distance) & ~void
        pred_boundary = boundary_mask(pred, distance) & ~void
        both = self._count(truth[target_boundary & pred_boundary & (truth == pred)])
        self.intersection = self.intersection.to(both.device) + both
        self.union = (
            self.union.to(both.device) + self._count(truth[target_boundary]) + self._count(pred[pred_boundary]) - both
        )

    def _count(self, labels: Tensor) -> Tensor:
        return torch.bincount(labels.long(), minlength=self.num_classes)

    def compute(self) -> dict[str, Any]:
        """`mean_boundary_iou` over the classes that have one, `boundary_iou_per_class` (nan: in neither truth nor
        prediction), `boundary_pixels` (least and greatest d; None before the first image) and `boundary_width`,
        the same in words.
        """
        iou = self.intersection.cpu().double() / self.union.cpu().double()  # 0 / 0 is nan
        width = f"{100 * self.ratio:g} % of the diagonal"
        if self.widths is not None:
            low, high = self.widths
            width += f", {low} to {high} pixels" if low < high else f", {low} pixel{'s' if low > 1 else ''}"
        return {
            "mean_boundary_iou": float(iou.nanmean()),
            "boundary_width": width,
            "boundary_pixels": None if self.widths is None else list(self.widths),
            "boundary_iou_per_class": iou.tolist(),
        }
