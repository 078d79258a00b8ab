"""The independent classifier: accuracy on real images, class consistency, and a cache that is never stale."""

from __future__ import annotations

import json

import pytest
import torch
from einops import repeat
from sklearn.datasets import load_digits

from unetdiff.errors import UserError
from unetdiff.evaluation import classifier as module
from unetdiff.evaluation.classifier import Classifier, ClassifierConfig, train_classifier

QUICK = ClassifierConfig(steps=40, batch_size=32, lr=5e-3, max_shift=1)


class Blobs:
    """Noise images with a bright square whose corner is the class."""

    def __init__(self, count: int, seed: int, classes: int = 4) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randint(0, 120, (count, 3, 16, 16), generator=generator).to(torch.uint8)
        self.labels = (torch.arange(count) % classes).tolist()
        for image, label in zip(self.images, self.labels, strict=True):
            if label == 0:
                image[:, 2:8] = 250
            elif label == 1:
                image[:, :, 5:11] = 250
            elif label == 2:
                image[0] = 200
            else:
                image[1] = 200

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int) -> dict:
        return {"image": self.images[key], "label": self.labels[key], "name": str(key)}


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return train_classifier(Blobs(200, 0), 4, config=QUICK)


def test_accuracy_and_class_consistency(classifier: Classifier) -> None:
    held_out = Blobs(100, 1)
    assert classifier.accuracy(held_out) > 0.95
    labels = torch.tensor(held_out.labels)
    assert classifier.class_consistency(held_out.images, labels) == classifier.accuracy(held_out)
    assert classifier.class_consistency(held_out.images, (labels + 1) % 4) < 0.05


def test_class_consistency_per_class(classifier: Classifier) -> None:
    held_out = Blobs(100, 1)
    images, labels = held_out.images, classifier.predict(held_out.images)
    targets = torch.where(labels == 1, torch.tensor(2), labels)  # half of class 2 is wrong, class 1 is absent
    per_class = classifier.class_consistency_per_class(images, targets)
    assert per_class[0] == per_class[3] == 1.0 and per_class[1] is None
    assert per_class[2] == pytest.approx((labels == 2).sum().item() / (targets == 2).sum().item())


class Digits:
    """scikit-learn's real digits, enlarged to 16 pixels; the last fifth is in_memory out."""

    def __init__(self, held_out: bool) -> None:
        bunch = load_digits()
        cut = len(bunch.images) * 4 // 5
        part = slice(cut, None) if held_out else slice(0, cut)
        images = (torch.from_numpy(bunch.images[part]) * 15).to(torch.uint8)
        self.images = repeat(images, "n h w -> n c (h two) (w also)", c=3, two=2, also=2)
        self.labels = bunch.target[part].tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int) -> dict:
        return {"image": self.images[key], "label": self.labels[key], "name": str(key)}


def test_accuracy_on_held_out_digits() -> None:
    classifier = train_classifier(Digits(False), 10, config=ClassifierConfig(steps=120, batch_size=64, max_shift=1))
    assert classifier.accuracy(Digits(True)) >= 0.9


def test_training_is_seeded_and_keeps_the_global_generator(classifier: Classifier) -> None:
    state = torch.random.get_rng_state()
    again = train_classifier(Blobs(200, 0), 4, config=QUICK)
    assert torch.equal(torch.random.get_rng_state(), state)
    probe = Blobs(8, 5).images
    assert torch.allclose(again.logits(probe), classifier.logits(probe), atol=1e-4)


def test_cache_depends_on_images_classes_and_config(tmp_path, monkeypatch) -> None:
    trained = []
    train = module._train
    monkeypatch.setattr(module, "_train", lambda *arguments: trained.append(1) or train(*arguments))
    path = tmp_path / "cache" / "classifier"
    config = ClassifierConfig(steps=2, batch_size=16)
    probe = Blobs(8, 5).images
    first = train_classifier(Blobs(40, 0), 4, path, config)
    second = train_classifier(Blobs(40, 0), 4, path, config)
    assert len(trained) == 1 and torch.equal(first.logits(probe), second.logits(probe))
    train_classifier(Blobs(40, 1), 4, path, config)  # other images
    assert len(trained) == 2
    train_classifier(Blobs(40, 1), 5, path, config)  # another number of classes
    assert len(trained) == 3
    train_classifier(Blobs(40, 1), 5, path, ClassifierConfig(steps=3, batch_size=16))  # other settings
    assert len(trained) == 4
    weights = path.with_suffix(".safetensors")
    weights.write_bytes(weights.read_bytes()[:100])  # damaged
    train_classifier(Blobs(40, 1), 5, path, ClassifierConfig(steps=3, batch_size=16))
    assert len(trained) == 5
    assert set(json.loads(path.with_suffix(".json").read_text())) == {"fingerprint", "num_classes", "sha256"}


def test_interrupted_save_invalidates_the_cache(tmp_path, monkeypatch) -> None:
    path, config = tmp_path / "classifier", ClassifierConfig(steps=2, batch_size=16)
    first = train_classifier(Blobs(40, 0), 4, path, config)
    about = path.with_suffix(".json").read_text()

    def killed(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(module.Path, "write_text", killed)
        train_classifier(Blobs(40, 1), 4, path, config)
    assert path.with_suffix(".json").read_text() == about  # of the first classifier, with the weights of the second
    assert Classifier.load(path, first.fingerprint) is None
    again = train_classifier(Blobs(40, 0), 4, path, config)
    probe = Blobs(8, 5).images
    assert torch.allclose(again.logits(probe), first.logits(probe), atol=1e-4)
    assert Classifier.load(path, first.fingerprint) is not None


def test_large_images_are_resized() -> None:
    images = torch.zeros(2, 3, 200, 130, dtype=torch.uint8)
    assert module._limit_size(images).shape == (2, 3, 64, 42)
    assert module._limit_size(images[..., :32, :30]).shape == (2, 3, 32, 30)


def test_random_shift_replicates_the_border() -> None:
    image = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4).expand(64, 3, 4, 4).contiguous()
    shifted = module._random_shift(image, 1, torch.Generator().manual_seed(0))
    assert shifted.dtype == torch.uint8 and shifted.shape == image.shape
    seen = {tuple(s[0].flatten().tolist()) for s in shifted}
    assert len(seen) == 9 and tuple(image[0, 0].flatten().tolist()) in seen
    down = image[0, 0][[0, 0, 1, 2]]
    assert tuple(down.flatten().tolist()) in seen


def test_errors() -> None:
    with pytest.raises(UserError, match="label=3: must be in 0 to 2"):
        train_classifier(Blobs(8, 0), 3, config=QUICK)
    with pytest.raises(UserError, match="has no images"):
        train_classifier(Blobs(0, 0), 3, config=QUICK)
