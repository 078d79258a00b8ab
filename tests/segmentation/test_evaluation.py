"""Evaluation of a segmentation model on images of several sizes, against counts over all pixels at once."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex

from unetdiff import UNet
from unetdiff.data.base import ImageDataset, empty_palette
from unetdiff.data.masks.classes import voc_colormap
from unetdiff.errors import UserError
from unetdiff.segmentation.evaluation import evaluate_segmenter, network_logits
from unetdiff.segmentation.inference import predict_masks

CLASSES = ["ground", "cat", "dog", "never"]
SIZES = [(24, 32), (20, 20), (32, 24), (24, 32), (16, 40), (24, 32)]
ALL_VOID = 3


class Few(ImageDataset):
    """Blocky masks, some pixels ignored, all of one image; an image's first channel is its index."""

    classes, palette, labels = CLASSES, voc_colormap(4), []

    def __len__(self) -> int:
        return len(SIZES)

    def sample_name(self, index: int) -> str:
        return f"few/{index}"

    def __getitem__(self, key: Any) -> dict[str, Any]:
        index = self.sample_index(key)
        height, width = SIZES[index]
        generator = torch.Generator().manual_seed(index)
        coarse = torch.randint(3, (height // 4, width // 4), generator=generator, dtype=torch.uint8)
        mask = coarse.repeat_interleave(4, 0).repeat_interleave(4, 1)
        mask[:2] = 255
        if index == ALL_VOID:
            mask[:] = 255
        return {"image": torch.full((3, height, width), index, dtype=torch.uint8), "mask": mask, "name": f"few/{index}"}


def half_size_logits(images: list[Tensor]) -> list[Tensor]:
    """Noisy logits at half the size; image i is the worse the greater i is."""
    found = []
    for image in images:
        index = int(image[0, 0, 0])
        truth = Few()[index]["mask"].long()[::2, ::2].clamp(max=3)
        noise = torch.randn(4, *truth.shape, generator=torch.Generator().manual_seed(100 + index))
        noise[3] = -9
        found.append(F.one_hot(truth, 4).permute(2, 0, 1).float() * (3 - index / 2) + noise)
    return found


def counted() -> tuple[list[Tensor], list[Tensor]]:
    """Predictions and truths: the logits resized to the mask first, then the argmax."""
    truths = [item["mask"] for item in Few()]
    logits = half_size_logits([item["image"] for item in Few()])
    resized = [F.interpolate(one[None], t.shape, mode="bilinear")[0] for one, t in zip(logits, truths, strict=True)]
    return [one.argmax(dim=0) for one in resized], truths


def iou_of(pred: Tensor, truth: Tensor) -> Tensor:
    return MulticlassJaccardIndex(4, average="none", ignore_index=255)(pred[None], truth[None].long())


def test_figures_are_those_of_the_whole_set():
    result = evaluate_segmenter(half_size_logits, Few(), batch_size=4)
    metrics = result.metrics()
    guesses, truths = counted()
    pred, truth = (torch.cat([one.flatten() for one in many]) for many in (guesses, truths))
    macro = MulticlassJaccardIndex(4, average="macro", ignore_index=255)
    assert metrics["mean_iou"] == pytest.approx(macro(pred, truth.long()).item(), abs=1e-6)
    assert metrics["pixel_accuracy"] == pytest.approx((pred == truth)[truth != 255].double().mean().item())
    assert metrics["images"] == 6
    fractions = [(truth == label).sum().item() / (truth != 255).sum().item() for label in range(4)]
    assert list(metrics["pixel_fraction_per_class"]) == CLASSES
    assert list(metrics["pixel_fraction_per_class"].values()) == pytest.approx(fractions)
    assert list(metrics["images_per_class"].values()) == [sum(bool((t == c).any()) for t in truths) for c in range(4)]
    assert math.isnan(metrics["iou_per_class"]["never"]) and math.isnan(metrics["boundary_iou_per_class"]["never"])
    assert metrics["boundary_pixels"] == [1, 1] and sum(metrics["reliability"]["count"]) == (truth != 255).sum()


@pytest.mark.parametrize("worst", [0, 2, 3, 20])
def test_the_worst_images_are_kept_in_order(worst):
    result = evaluate_segmenter(half_size_logits, Few(), worst=worst, batch_size=2)
    guesses, truths = counted()
    scores = {}
    for index, (pred, truth) in enumerate(zip(guesses, truths, strict=True)):
        if index != ALL_VOID:
            present = torch.isin(torch.arange(4), truth)
            scores[index] = iou_of(pred, truth)[present].mean().item()
    expected = sorted(scores, key=scores.__getitem__)[:worst]
    assert [one.index for one in result.worst] == expected
    for one in result.worst:
        assert one.score == pytest.approx(scores[one.index], abs=1e-6) and one.name == f"few/{one.index}"
        pred, truth = guesses[one.index], truths[one.index]
        np.testing.assert_array_equal(one.prediction, pred.numpy())
        assert one.prediction.dtype == np.uint8
        assert one.pixel_accuracy == pytest.approx((pred == truth)[truth != 255].double().mean().item())
        iou = iou_of(pred, truth)
        assert all(value == pytest.approx(iou[label].item(), abs=1e-6) for label, value in one.iou.items())


def test_a_stray_pixel_of_another_class_does_not_make_a_image_the_worst():
    class Two(Few):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, key: Any) -> dict[str, Any]:
            item = super().__getitem__(key)
            mask = torch.zeros_like(item["mask"])
            if item["name"] == "few/1":
                mask[:10, :10] = 1
            return item | {"mask": mask}

    def logits(images: list[Tensor]) -> list[Tensor]:
        found = []
        for image in images:
            index = int(image[0, 0, 0])
            mask = Two()[index]["mask"].long()
            if index == 0:
                mask[0, 0] = 2  # one pixel of a class that is not there
            else:
                mask[:2, :10] = 0  # twenty of a class that is
            found.append(F.one_hot(mask, 4).permute(2, 0, 1).float())
        return found

    result = evaluate_segmenter(logits, Two())
    assert [one.index for one in result.worst] == [1, 0]
    assert result.worst[0].score == pytest.approx((80 / 100 + 300 / 320) / 2)
    assert result.worst[1].score == pytest.approx(767 / 768) and result.worst[1].iou == {0: 767 / 768, 2: 0.0}


def test_the_table_as_csv(tmp_path: Path):
    result = evaluate_segmenter(half_size_logits, Few())
    result.write_table(tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == CLASSES and [row["index"] for row in rows] == ["0", "1", "2", "3"]
    metrics = result.metrics()
    assert float(rows[1]["iou"]) == metrics["iou_per_class"]["cat"]
    assert float(rows[2]["boundary_iou"]) == metrics["boundary_iou_per_class"]["dog"]
    assert rows[3]["iou"] == rows[3]["accuracy"] == "" and rows[3]["images"] == "0"


@pytest.mark.parametrize("size", [None, [16, 16]])
def test_the_network_is_asked_at_its_own_size(size):
    torch.manual_seed(0)
    unet = UNet(
        encoder={"channels": [8, 8]}, residual={"norm_num_groups": 4}, heads={"segmentation": {"num_classes": 4}}
    )
    result = evaluate_segmenter(network_logits(unet, size), Few(), batch_size=4)
    masks = predict_masks(unet, [item["image"] for item in Few()], size)
    assert len(result.worst) == 5
    for one in result.worst:
        np.testing.assert_array_equal(one.prediction, masks[one.index])


def test_a_set_without_masks_is_refused():
    class Bare(Few):
        classes, palette = [], empty_palette()

    with pytest.raises(UserError, match="needs a dataset with masks"):
        evaluate_segmenter(half_size_logits, Bare())
