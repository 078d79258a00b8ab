"""Instance scores of the ISBI 2012 challenge: are the objects kept apart? (the extra `instances`)

Arganda-Carreras et al. 2015, "Crowdsourcing the creation of image segmentation algorithms for connectomics", equations
2 and 5: the foreground-restricted Rand score and information score, after thinning of the border.

    V_rand = sum_ij p_ij^2 / (sum_k s_k^2 / 2 + sum_k t_k^2 / 2)        V_info = I(S; T) / (H(S) / 2 + H(T) / 2)

p_ij is the fraction of the pixels in object i of the prediction S and object j of the target T, s and t are its sums.
Only pixels in an object of the target count.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from unetdiff.data.transforms import IGNORE_INDEX, ignore_mask
from unetdiff.errors import UserError

THRESHOLDS = tuple(round(0.1 * i, 1) for i in range(1, 10))
"""Of the foreground's probability; the challenge reports the best score over thresholds."""


class InstanceScores:
    """V_rand and V_info, averaged over images, at the best of several thresholds.

    Objects are connected components (4 neighbors) of the foreground, all classes but one. Those of the prediction,
    where the foreground's probability is at least a threshold, grow into the predicted border by a watershed until they
    meet: a border of any width counts as one of none (the challenge thins it to a line).

    Args:
        background: the class between the objects.
        ignore_index: ignored in addition to 255.
        thresholds: of the probability.

    Raises:
        UserError: scikit-image is not installed.
    """

    def __init__(
        self, background: int = 0, ignore_index: int = IGNORE_INDEX, thresholds: tuple[float, ...] = THRESHOLDS
    ) -> None:
        if find_spec("skimage") is None:
            raise UserError("--instances: requires scikit-image. Run `pip install 'unetdiff[instances]'`.")
        self.background, self.ignore_index, self.thresholds = background, ignore_index, thresholds
        self._scores: list[list[tuple[float, float]]] = []  # by image and threshold

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Score an image: logits (C, H, W) and mask (H, W). Images without an object do not count."""
        from skimage.measure import label

        mask = target.cpu().numpy()
        valid = ~ignore_mask(mask, self.ignore_index)
        truth = label((mask != self.background) & valid, connectivity=1)
        if not truth.any():
            return
        foreground = 1 - logits.float().softmax(dim=0)[self.background].cpu().numpy()  # (H, W)
        self._scores.append([scores(truth, objects(foreground, threshold)) for threshold in self.thresholds])

    def compute(self) -> dict[str, Any]:
        """The scores, each at its best threshold, and that threshold; nan without an image."""
        if not self._scores:
            return dict.fromkeys(("v_rand", "v_rand_threshold", "v_info", "v_info_threshold"), float("nan"))
        means = np.array(self._scores).mean(axis=0)  # (thresholds, 2)
        best = means.argmax(axis=0)
        result: dict[str, Any] = {}
        for column, name in enumerate(("v_rand", "v_info")):
            result[name] = float(means[best[column], column])
            result[f"{name}_threshold"] = self.thresholds[best[column]]
        return result


def objects(foreground: NDArray[np.floating[Any]], threshold: float) -> NDArray[np.int_]:
    """The objects 1, 2, ... of a foreground's probability (H, W), grown until they meet; 0 if there is none."""
    from skimage.measure import label
    from skimage.segmentation import watershed

    seeds = label(foreground >= threshold, connectivity=1)
    grown: NDArray[np.int_] = watershed(-foreground, seeds) if seeds.any() else seeds
    return grown


def scores(truth: NDArray[np.int_], predicted: NDArray[np.int_]) -> tuple[float, float]:
    """(V_rand, V_info) of two labelings (H, W) over the pixels where the truth is not 0."""
    from scipy.stats import entropy
    from skimage.metrics import adapted_rand_error, contingency_table

    error, _, _ = adapted_rand_error(truth, predicted, ignore_labels=(0,))
    table = contingency_table(truth, predicted, ignore_labels=(0,), normalize=True).toarray()
    joint = entropy(table.ravel(), base=2)
    of_truth, of_predicted = (entropy(table.sum(axis=axis), base=2) for axis in (1, 0))
    total = of_truth + of_predicted
    information = 1.0 if total == 0 else 2 * (total - joint) / total  # one object in both
    return float(1 - error), float(information)
