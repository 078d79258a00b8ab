"""Reference features are computed once, and again for other images, another network or a damaged cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from unetdiff.data.base import ImageDataset
from unetdiff.errors import UserError
from unetdiff.evaluation.features import BATCH, FeatureExtractor
from unetdiff.evaluation.reference import load_reference

InMemory, Noisy = Callable[..., ImageDataset], Callable[..., Tensor]


class Sums(nn.Module):
    """The mean of each channel; counts the images it sees."""

    def __init__(self, by: float = 1.0) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.tensor(by))
        self.seen = 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return images.float().mean(dim=(2, 3)) * self.by


@pytest.fixture
def network() -> FeatureExtractor:
    return FeatureExtractor("sums", Sums())


def test_features_in_the_order_of_the_dataset(in_memory: InMemory, noisy: Noisy, network: FeatureExtractor) -> None:
    images = noisy(BATCH + 5, 0)
    features = load_reference(in_memory(images), "noise train", network)
    assert torch.allclose(features.features, images.float().mean(dim=(2, 3)))
    assert features.gaussian.n == BATCH + 5 and features.gaussian is features.gaussian


def test_cache_depends_on_images_and_network(
    in_memory: InMemory, noisy: Noisy, network: FeatureExtractor, tmp_path: Path
) -> None:
    cache, images = tmp_path / "deep" / "train-sums", noisy(9, 0)

    def seen(images: ImageDataset, extractor: FeatureExtractor = network) -> int:
        before = extractor.network.seen
        features = load_reference(images, "noise train", extractor, cache).features
        assert torch.equal(features, load_reference(images, "noise train", extractor).features)
        return extractor.network.seen - before - len(images)  # what the cached call computed

    assert seen(in_memory(images)) == 9
    assert seen(in_memory(images)) == 0
    changed = images.clone()
    changed[4, 1, 2, 3] += 1  # one value of one image
    assert seen(in_memory(changed)) == 9
    assert seen(in_memory(changed, title="renamed")) == 9
    assert seen(in_memory(changed[:8], title="renamed")) == 8
    assert seen(in_memory(changed[:8], title="renamed"), FeatureExtractor("sums", Sums(2.0))) == 8
    facts = json.loads(cache.with_name("train-sums.json").read_text())
    assert (facts["network"], facts["images"], facts["shape"]) == ("sums", "noise train", [8, 3])


@pytest.mark.parametrize("damage", ["cut", "flipped", "swapped", "no json", "foreign json"])
def test_damaged_cache_is_recomputed(
    in_memory: InMemory, noisy: Noisy, network: FeatureExtractor, tmp_path: Path, damage: str
) -> None:
    images, cache = in_memory(noisy(6, 0)), tmp_path / "kept"
    true = load_reference(images, "noise train", network, cache).features
    tensors, about = tmp_path / "kept.safetensors", tmp_path / "kept.json"
    content = tensors.read_bytes()
    if damage == "cut":
        tensors.write_bytes(content[:-8])
    elif damage == "flipped":
        tensors.write_bytes(content[:-1] + bytes([content[-1] ^ 64]))
    elif damage == "swapped":  # the other file was not yet written when the process died
        json_before = about.read_text()
        load_reference(in_memory(noisy(6, 1)), "noise train", network, cache)
        about.write_text(json_before)
    else:
        about.write_text("{" if damage == "no json" else "[1]")
    assert torch.equal(load_reference(images, "noise train", network, cache).features, true)
    seen = network.network.seen
    assert torch.equal(load_reference(images, "noise train", network, cache).features, true)
    assert network.network.seen == seen  # whole again
    assert sorted(file.name for file in tmp_path.iterdir()) == ["kept.json", "kept.safetensors"]


def test_errors(in_memory: InMemory, noisy: Noisy, network: FeatureExtractor) -> None:
    with pytest.raises(UserError, match="noise train: requires at least one real image"):
        load_reference(in_memory(noisy(0, 0)), "noise train", network)
    uneven = in_memory([noisy(1, 0, 8)[0], noisy(1, 0, 9)[0]])
    with pytest.raises(
        UserError, match=r"data.size=null: must be \[height, width\], because image sizes differ .first at memory/0."
    ):
        load_reference(uneven, "noise train", network)
