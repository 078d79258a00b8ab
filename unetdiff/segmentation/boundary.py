"""Boundary IoU (Cheng et al. 2021): the IoU of the pixels near class contours, for all classes at once."""

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

NO_CLASS = -1  # ignored pixels, and outside of the image


def boundary_width(height: int, width: int, ratio: float = 0.02) -> int:
    """d in pixels: `ratio` of the image's diagonal, rounded, at least 1 (as in the authors' code)."""
    return max(1, round(ratio * (height**2 + width**2) ** 0.5))


def boundary_mask(labels: Tensor, distance: int) -> Tensor:
    """Pixels of class indices (H, W) within `distance` pixels of their class's contour; bool (H, W).

    Equals each class's mask minus its erosion by a square of 2 d + 1 pixels, for all classes in one pass: a pixel is in
    the eroded mask if the minimum and the maximum label in its square are equal. The image border is a contour.
    """
    padded = F.pad(labels, (distance,) * 4, value=NO_CLASS)
    size = 2 * distance + 1
    low, high = (_pool(_pool(padded, size, 0, op), size, 1, op) for op in (torch.minimum, torch.maximum))
    return low != high


def _pool(x: Tensor, length: int, dim: int, op: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Minimum or maximum over sliding windows of `length` along `dim`, in log2(length) passes by doubling."""
    reached = 1
    while reached < length:
        step = min(reached, length - reached)
        size = x.shape[dim] - step
        x = op(x.narrow(dim, 0, size), x.narrow(dim, step, size))
        reached += step
    return x


class BoundaryIoU:
    """Boundary IoU of each class over a dataset, from int64 counts.

    For target G and prediction P of a class, with G_d and P_d the pixels within d of their contours (arXiv:2103.16562,
    section 5): |(G_d and G) and (P_d and P)| / |(G_d and G) or (P_d and P)|, where d is `ratio` of each mask's
    diagonal (2 % as in the paper). Intersections and unions are summed over the images, as in mIoU.

    Ignored pixels are cut out of target and prediction, so their border is a contour of both and predictions there have
    no effect.

    Args:
        num_classes: classes of the masks.
        ignore_index: ignored in the target, in addition to 255.
        ratio: d as a fraction of the image's diagonal.
        device: of the counts.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        ratio: float = 0.02,
        device: torch.device | str | None = None,
    ) -> None:
        if not 0 < ratio < 1:
            raise UserError(f"ratio={ratio}: must be in (0, 1), a fraction of the image's diagonal. Use e.g. 0.02.")
        self.num_classes, self.ignore_index, self.ratio = num_classes, ignore_index, ratio
        self.intersection = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self.union = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self.widths: tuple[int, int] | None = None
        """Smallest and largest d so far, in pixels."""

    def update(self, prediction: Tensor | np.ndarray, target: Tensor | np.ndarray) -> None:
        """Count one image: class indices (H, W), at the size of evaluation.

        Raises UserError if the shapes differ or a pixel that is not ignored has a class outside of 0..C-1.
        """
        prediction, target = check_indices(prediction, target, self.num_classes, self.ignore_index)
        if target.ndim != 2:
            raise UserError(f"target: shape must be (H, W), of one image (got {tuple(target.shape)}).")
        ignored = ignore_mask(target, self.ignore_index)
        target = target.to(torch.int16).masked_fill(ignored, NO_CLASS)
        pred = prediction.to(torch.int16).masked_fill(ignored, NO_CLASS)
        distance = boundary_width(target.shape[0], target.shape[1], self.ratio)
        low, high = self.widths or (distance, distance)
        self.widths = (min(low, distance), max(high, distance))
        target_boundary = boundary_mask(target, distance) & ~ignored
        pred_boundary = boundary_mask(pred, distance) & ~ignored
        intersection = self._count(target[target_boundary & pred_boundary & (target == pred)])
        self.intersection = self.intersection.to(intersection.device) + intersection
        self.union = (
            self.union.to(intersection.device)
            + self._count(target[target_boundary])
            + self._count(pred[pred_boundary])
            - intersection
        )

    def _count(self, labels: Tensor) -> Tensor:
        return torch.bincount(labels.long(), minlength=self.num_classes)

    def compute(self) -> dict[str, Any]:
        """`mean_boundary_iou` over the classes with a value, `boundary_iou_per_class` (nan: neither in target nor in
        prediction), `boundary_pixels` (smallest and largest d; None before the first image) and `boundary_width`, a
        description of d.
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
