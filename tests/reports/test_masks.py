"""Every run is shown on the same images, with the masks that its network really gives."""

from __future__ import annotations

import numpy as np
import torch

from unetdiff.data.transforms import resize_image, to_model_range
from unetdiff.models.unet import UNet
from unetdiff.reports.dataset_groups import choose, group_by_dataset, open_dataset
from unetdiff.reports.masks import mask_blocks, predictions
from unetdiff.reports.runs import read_run, read_runs
from unetdiff.segmentation.inference import resize_logits


def test_predictions_are_the_networks(make_run):
    run = read_run(make_run(task="joint"))
    dataset = open_dataset(run)
    items = [dataset[0], dataset[1]]
    masks = predictions(run, items, dataset.classes)
    unet = UNet.from_pretrained(run.model / "unet").eval()
    with torch.no_grad():
        expected = unet.segment(to_model_range(torch.stack([item["image"] for item in items]))).argmax(dim=1)
    assert np.array_equal(np.stack(masks), expected.numpy())


def test_rows_and_accuracy(make_run):
    runs = read_runs(
        [
            make_run("alone", task="segmentation"),
            make_run("noise", task="diffusion"),
            make_run("both", task="joint", seed=5),
        ]
    )
    blocks, problems = mask_blocks(runs, count=4, seed=2)
    assert problems == [] and len(blocks) == 1
    block = blocks[0]
    assert block.runs == [0, 2] and len(block.rows) == 4
    assert all(len(row.predictions) == 2 for row in block.rows)
    dataset = open_dataset(runs[0])
    item = dataset[choose(dataset, 4, 2)[0]]
    assert block.rows[0].name == item["name"]
    truth = np.asarray(item["mask"])
    for run, right in zip((runs[0], runs[2]), block.rows[0].pixel_accuracy, strict=True):
        assert right == (predictions(run, [item], dataset.classes)[0] == truth).mean()


def test_a_run_of_another_size_changes_nothing(make_run):
    """Nor does the order: every network has the images as the set has them, and resizes them itself."""
    paths = [make_run("small", task="segmentation", size=[16, 16]), make_run("large", task="segmentation", seed=5)]

    def shown(runs) -> dict:
        (block,), _ = mask_blocks(read_runs(runs), count=2)
        return {
            (row.name, runs[index].name): (row.image, row.predictions[index], row.pixel_accuracy[index])
            for row in block.rows
            for index in range(len(runs))
        }

    together = shown(paths)
    assert together == shown(paths[::-1]) == shown(paths[:1]) | shown(paths[1:])
    # the small one saw the images at its size, and its masks are as large as the images
    run = read_run(paths[0])
    item = open_dataset(run, own_size=True)[0]
    small = resize_image(item["image"], (16, 16))
    with torch.no_grad():
        logits = UNet.from_pretrained(run.model / "unet").eval().segment(to_model_range(small[None]))
    expected = resize_logits(logits, (32, 32))[0].argmax(dim=0)
    assert np.array_equal(predictions(run, [item], open_dataset(run).classes)[0], expected.numpy())


def test_what_is_void_to_a_run_is_counted_nowhere(make_run):
    (run,) = read_runs([make_run(task="segmentation")])
    run.config["segmentation"] = {"ignore_index": 0}
    row = mask_blocks([run], count=1)[0][0].rows[0]
    dataset = open_dataset(run)
    item = dataset[choose(dataset, 1, 0)[0]]
    truth = np.asarray(item["mask"])
    seen = truth != 0
    assert row.pixel_accuracy == [(predictions(run, [item], dataset.classes)[0] == truth)[seen].mean()]


def test_another_set_is_another_block(make_run):
    runs = read_runs([make_run("a", digits=1), make_run("b", digits=2), make_run("c", digits=1)])
    assert [[run.name for run in group] for group in group_by_dataset(runs)] == [["a", "c"], ["b"]]
    blocks, _ = mask_blocks(runs, count=2)
    assert [block.runs for block in blocks] == [[0, 2], [1]]


def test_chosen_images_have_different_labels(make_run):
    dataset = open_dataset(read_run(make_run(task="segmentation", weights=False)))
    chosen = choose(dataset, 6, seed=0)
    assert len({dataset[index]["label"] for index in chosen}) == 6
    assert chosen == choose(dataset, 6, seed=0) != choose(dataset, 6, seed=1)
    assert sorted(choose(dataset, 1000, seed=0)) == list(range(len(dataset)))


class Several:
    """A set whose images have no one class, as VOC with masks."""

    labels = ["background", "cat"]

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict:
        return {"labels": (1,)}


def test_images_without_a_class_of_their_own_are_chosen_by_the_seed_alone():
    chosen = choose(Several(), 3, seed=0)  # type: ignore[arg-type]
    assert len(set(chosen)) == 3 and chosen == choose(Several(), 5, seed=0)[:3]  # type: ignore[arg-type]
