"""Lovász-softmax: the convex extension of the Jaccard loss 1 - IoU, by class (Berman et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

from unetdiff.segmentation.loss_inputs import ClassWeights, LossInputs, class_weight_tensor, divisor, prepare


def lovasz(
    logits: Tensor,
    target: Tensor,
    ignore_index: int = 255,
    class_weights: ClassWeights = None,
    *,
    per_image: bool = False,
) -> Tensor:
    """Mean over the classes present of the Lovász extension of 1 - IoU at the softmax errors (eq. 11 and 12).

    The error of a pixel for class c is 1 - p_c if it is of class c, else p_c (eq. 8). For errors of 0 and 1 the loss
    is 1 - IoU. By default all pixels of the batch are one set; `per_image` averages the losses of the images that have
    a valid pixel. class_weights (C,) weight the mean over classes. Shapes, dtypes and errors as in `cross_entropy`.
    """
    inputs = prepare(logits, target, ignore_index).in_full_precision()
    if not per_image:
        return lovasz_loss(inputs, class_weights)
    per = torch.stack([lovasz_loss(image, class_weights) for image in inputs.images()])  # (B,)
    return per.sum() / divisor(inputs.valid.flatten(1).any(dim=1).sum())


def lovasz_loss(inputs: LossInputs, class_weights: ClassWeights) -> Tensor:
    """`lovasz` over the whole batch."""
    weight = class_weight_tensor(class_weights, inputs.logits)
    p = inputs.logits.softmax(dim=1)  # (B, C, H, W)
    present = torch.unique(inputs.target[inputs.valid]).tolist()
    by_class = p.unbind(dim=1)
    losses = [p.sum() * 0]  # a gradient where no class is present
    for c in present:
        foreground = (inputs.target == c) & inputs.valid
        error = torch.where(foreground, 1 - by_class[c], by_class[c])  # (B, H, W), eq. 8
        loss = (error * lovasz_gradient(error.detach(), foreground, inputs.valid)).sum()  # eq. 9
        losses.append(loss if weight is None else weight[c] * loss)
    weight_sum = p.new_tensor(len(present)) if weight is None else weight[present].sum()
    return torch.stack(losses).sum() / divisor(weight_sum)


def lovasz_gradient(error: Tensor, foreground: Tensor, valid: Tensor) -> Tensor:
    """Gradient of the Lovász extension with respect to each pixel's error, (B, H, W); 0 at ignored pixels.

    The extension is piecewise linear, so the gradient depends on the order of the errors only.
    """
    # Past the easiest pixel of the class the intersection is empty and the gradient 0: only these need sorting.
    hard = (valid & (error >= error[foreground].min())).flatten().nonzero()[:, 0]  # (P,)
    order = error.flatten()[hard].sort(descending=True)[1]
    hard = hard[order]
    gradient = torch.zeros_like(error).flatten()
    gradient[hard] = jaccard_gradient(foreground.flatten()[hard], error.dtype)
    return gradient.view_as(error)


def jaccard_gradient(foreground: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Increase of the Jaccard loss 1 - IoU with each further wrong pixel (alg. 1), (P,); sums to 1.

    In closed form instead of as differences of neighboring 1 - IoU, which cancel in float32 for millions of pixels.

    Args:
        foreground: bool (P,), pixels of the class, by decreasing error; all pixels of the class are included.
        dtype: of the result.
    """
    wrong_foreground = foreground.cumsum(0)  # int64
    rank = torch.arange(1, len(foreground) + 1, device=foreground.device)
    intersection = wrong_foreground[-1] - wrong_foreground
    union = (wrong_foreground[-1] + rank - wrong_foreground).to(dtype)
    # a wrong pixel of the class leaves the intersection, any other joins the union
    return torch.where(foreground, 1 / union, intersection / (union * (union - 1)))
