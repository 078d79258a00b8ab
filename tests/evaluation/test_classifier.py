"""The independent classifier: it learns real images, tells right samples from wrong, and its cache is never stale."""

from __future__ import annotations

import json

import pytest
import torch
from einops import repeat
from sklearn.datasets import load_digits

from unetdiff.errors import UserError
from unetdiff.evaluation import classifier as judging
from unetdiff.evaluation.classifier import Judge, Recipe, train_judge

QUICK = Recipe(steps=40, batch=32, lr=5e-3, shift=1)


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
def judge() -> Judge:
    return train_judge(Blobs(200, 0), 4, recipe=QUICK)


def test_it_learns_and_judges(judge: Judge) -> None:
    held_out = Blobs(100, 1)
    assert judge.accuracy(held_out) > 0.95
    labels = torch.tensor(held_out.labels)
    assert judge.consistency(held_out.images, labels) == judge.accuracy(held_out)
    assert judge.consistency(held_out.images, (labels + 1) % 4) < 0.05


def test_consistency_per_class(judge: Judge) -> None:
    held_out = Blobs(100, 1)
    images, labels = held_out.images, judge.predict(held_out.images)
    asked = torch.where(labels == 1, torch.tensor(2), labels)  # class 1 for 2: 2 is half wrong, 1 is not asked
    per_class = judge.consistency_per_class(images, asked)
    assert per_class[0] == per_class[3] == 1.0 and per_class[1] is None
    assert per_class[2] == pytest.approx((labels == 2).sum().item() / (asked == 2).sum().item())


class Digits:
    """scikit-learn's real digits, enlarged to 16 pixels; the last fifth is held out."""

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


def test_it_reads_handwriting_that_it_has_not_seen() -> None:
    judge = train_judge(Digits(False), 10, recipe=Recipe(steps=120, batch=64, shift=1))
    assert judge.accuracy(Digits(True)) >= 0.9


def test_same_seed_same_judge_and_no_global_randomness(judge: Judge) -> None:
    state = torch.random.get_rng_state()
    again = train_judge(Blobs(200, 0), 4, recipe=QUICK)
    assert torch.equal(torch.random.get_rng_state(), state)
    probe = Blobs(8, 5).images
    assert torch.allclose(again.logits(probe), judge.logits(probe), atol=1e-4)


def test_cache_is_used_for_the_same_images_only(tmp_path, monkeypatch) -> None:
    trained = []
    train = judging._train
    monkeypatch.setattr(judging, "_train", lambda *arguments: trained.append(1) or train(*arguments))
    path = tmp_path / "cache" / "judge"
    recipe = Recipe(steps=2, batch=16)
    probe = Blobs(8, 5).images
    first = train_judge(Blobs(40, 0), 4, path, recipe)
    second = train_judge(Blobs(40, 0), 4, path, recipe)
    assert len(trained) == 1 and torch.equal(first.logits(probe), second.logits(probe))
    train_judge(Blobs(40, 1), 4, path, recipe)  # other images
    assert len(trained) == 2
    train_judge(Blobs(40, 1), 5, path, recipe)  # another number of classes
    assert len(trained) == 3
    train_judge(Blobs(40, 1), 5, path, Recipe(steps=3, batch=16))  # another recipe
    assert len(trained) == 4
    weights = path.with_suffix(".safetensors")
    weights.write_bytes(weights.read_bytes()[:100])  # damaged
    train_judge(Blobs(40, 1), 5, path, Recipe(steps=3, batch=16))
    assert len(trained) == 5
    assert set(json.loads(path.with_suffix(".json").read_text())) == {"fingerprint", "num_classes", "sha256"}


def test_a_kill_between_weights_and_fingerprint_leaves_no_judge(tmp_path, monkeypatch) -> None:
    path, recipe = tmp_path / "judge", Recipe(steps=2, batch=16)
    first = train_judge(Blobs(40, 0), 4, path, recipe)
    about = path.with_suffix(".json").read_text()

    def killed(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(judging.Path, "write_text", killed)
        train_judge(Blobs(40, 1), 4, path, recipe)
    assert path.with_suffix(".json").read_text() == about  # of the first judge, beside the weights of the second
    assert Judge.load(path, first.fingerprint) is None
    again = train_judge(Blobs(40, 0), 4, path, recipe)
    probe = Blobs(8, 5).images
    assert torch.allclose(again.logits(probe), first.logits(probe), atol=1e-4)
    assert Judge.load(path, first.fingerprint) is not None


def test_large_and_odd_images_are_judged_small() -> None:
    images = torch.zeros(2, 3, 200, 130, dtype=torch.uint8)
    assert judging._judged_size(images).shape == (2, 3, 64, 42)
    assert judging._judged_size(images[..., :32, :30]).shape == (2, 3, 32, 30)


def test_shifts_move_the_image_and_repeat_its_border() -> None:
    image = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4).expand(64, 3, 4, 4).contiguous()
    shifted = judging._shifted(image, 1, torch.Generator().manual_seed(0))
    assert shifted.dtype == torch.uint8 and shifted.shape == image.shape
    seen = {tuple(s[0].flatten().tolist()) for s in shifted}
    assert len(seen) == 9 and tuple(image[0, 0].flatten().tolist()) in seen
    down = image[0, 0][[0, 0, 1, 2]]
    assert tuple(down.flatten().tolist()) in seen


def test_refusals() -> None:
    with pytest.raises(UserError, match="label 3 is not one of 0 to 2"):
        train_judge(Blobs(8, 0), 3, recipe=QUICK)
    with pytest.raises(UserError, match="no images"):
        train_judge(Blobs(0, 0), 3, recipe=QUICK)
