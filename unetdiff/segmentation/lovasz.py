"""Lovász-softmax: the convex extension of 1 - IoU, by class (Berman et al. 2018, "The Lovász-Softmax loss")."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from unetdiff.segmentation.loss_inputs import IGNORED, ClassWeights, Labelled, positive, prepare, weights_like


def lovasz(
    logits: Tensor,
    target: Tensor,
    ignore_index: int = 255,
    class_weights: ClassWeights = None,
    *,
    per_image: bool = False,
) -> Tensor:
    """Mean over the classes present of the Lovász extension of 1 - IoU at the errors of softmax (eq. 11, 12).

    A pixel's error for class c is 1 - p_c where it is of class c, else p_c; void pixels are left out before
    anything is sorted. With errors of 0 and 1 alone it is 1 - IoU, so it weighs what the metric weighs. By
    default the whole batch is one set of pixels; `per_image` averages the loss of each image that is not
    all void. class_weights (C,) weigh the average over classes. Shapes, types and errors as in `cross_entropy`.
    """
    labelled = prepare(logits, target, ignore_index).in_full()
    if per_image:
        pairs = zip(labelled.logits.split(1), labelled.target.split(1), strict=True)
        each = [lovasz(*pair, IGNORED, class_weights) for pair in pairs]
        return torch.stack(each).sum() / positive(labelled.valid.flatten(1).any(dim=1).sum())
    return lovasz_of(labelled, class_weights)


def lovasz_of(labelled: Labelled, class_weights: ClassWeights) -> Tensor:
    """`lovasz` of what is prepared, in full precision, over the whole batch."""
    weight = weights_like(class_weights, labelled.logits)
    losses, counts = _LovaszByClass.apply(labelled.logits, labelled.target, labelled.valid)  # (C,) each
    share = (counts > 0).to(losses.dtype)
    if weight is not None:
        share = share * weight
    return (losses * share).sum() / positive(share.sum())


def jaccard_slopes(foreground: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """How much 1 - IoU grows with each next wrong pixel: the gradient of its Lovász extension (alg. 1).

    foreground: bool (P,), whether the pixel is of the class, the largest error first; all pixels of the class are
    among them. -> (P,), sums to 1. In closed form, not as the differences of neighbouring 1 - IoU: among millions of
    pixels float32 has no digit left for these.
    """
    passed = foreground.cumsum(0)  # int64
    rank = torch.arange(1, len(foreground) + 1, device=foreground.device)
    intersection = passed[-1] - passed
    union = (passed[-1] + rank - passed).to(dtype)
    # a pixel of the class leaves the intersection; any other joins the union
    return torch.where(foreground, 1 / union, intersection / (union * (union - 1)))


class _LovaszByClass(torch.autograd.Function):
    """Softmax -> for each class: its Lovász loss (0 where absent), number of its pixels.

    The extension is piecewise linear in the errors: its slopes, found while sorting, are the whole gradient.
    Beside the softmax, one map of slopes is kept for each class present.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        probability = logits.softmax(dim=1)  # (B, C, H, W)
        pixels = valid.flatten().nonzero()[:, 0]  # (P,)
        own = target.flatten()[pixels]
        counts = torch.bincount(own, minlength=logits.shape[1])
        losses = probability.new_zeros(logits.shape[1])
        classes = counts.nonzero()[:, 0].tolist()
        slopes = probability.new_zeros(len(classes), target.numel())  # (K, B H W)
        for row, c in zip(slopes, classes, strict=True):
            foreground = own == c
            p = probability[:, c].flatten()[pixels]
            error = torch.where(foreground, 1 - p, p)
            # past the last pixel of the class the intersection is empty and every slope 0: no need to sort these
            hard = (error >= error[foreground].min()).nonzero()[:, 0]
            error, order = error[hard].sort(descending=True)
            hard = hard[order]
            inside = foreground[hard]
            slope = jaccard_slopes(inside, error.dtype)
            losses[c] = (error * slope).sum()
            row[pixels[hard]] = torch.where(inside, -slope, slope)  # d loss / d p_c
        ctx.classes = classes
        ctx.save_for_backward(probability, slopes)
        ctx.mark_non_differentiable(counts)
        return losses, counts

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_losses: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        # With g = dL/dp: dL/dlogit = p (g - <g, p>), and g is 0 for classes that are absent.
        probability, slopes = ctx.saved_tensors
        batch, _, height, _ = probability.shape
        grads = rearrange(slopes * grad_losses[ctx.classes, None], "k (b h w) -> k b h w", b=batch, h=height)
        mean = torch.zeros_like(probability[:, 0])  # (B, H, W)
        for g, c in zip(grads, ctx.classes, strict=True):
            mean.addcmul_(g, probability[:, c])
        grad = -probability * mean[:, None]  # (B, C, H, W)
        for g, c in zip(grads, ctx.classes, strict=True):
            grad[:, c].addcmul_(g, probability[:, c])
        return grad, None, None
