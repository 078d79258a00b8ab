"""Linear probes, held against scikit-learn and against the same features kept in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from einops import rearrange
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from unetdiff.data.base import ImageDataset
from unetdiff.data.sampling import StepSampler
from unetdiff.experiments.features import Features, open_features
from unetdiff.experiments.linear_probes import (
    LinearProbe,
    Recipe,
    Scale,
    Spec,
    groups,
    judge_probes,
    look_through,
    train_probes,
)
from unetdiff.experiments.run_inputs import labelled
from unetdiff.reports.runs import read_run
from unetdiff.segmentation.metrics import ConfusionMatrix

CHOSEN = [0, 3, 5, 8, 11, 20]


@pytest.fixture
def denoiser(make_run) -> tuple[Features, ImageDataset, ImageDataset]:
    run = read_run(make_run("run"))
    train, val = (labelled(run, run, split) for split in ("train", "val"))
    return open_features(run, val, [None, 200], 0, "cpu"), train, val


def max_classes(features: Features, images: ImageDataset, spec: Spec, chosen: list[int]) -> tuple[list[Tensor], Tensor]:
    """Maps of all chosen images, and their masks, kept."""
    (group,) = groups(images, chosen, range(len(chosen)))
    maps = features(group.images, group.names, spec.moment)
    return [maps[block] for block in spec.blocks], torch.stack(group.masks).long()


def test_scale_of_a_stream_is_that_of_all():
    maps = [torch.randn(n, 3, 2, 2, generator=torch.Generator().manual_seed(n)) * 5 + 100 for n in (1, 4, 2)]
    scale = Scale()
    for part in maps:
        scale.update(part)
    every = rearrange(torch.cat(maps).double(), "b c h w -> (b h w) c")
    assert torch.allclose(scale.mean, every.mean(0)) and torch.allclose(scale.deviation, every.std(0, correction=0))


def test_bytes_are_counted_from_the_shapes(denoiser):
    features, train, _ = denoiser
    seen = look_through(features, train, CHOSEN, 4)
    maps = [m for moment in features.moments for m in features(train[0]["image"][None], ["x"], moment).values()]
    assert seen.as_maps == 4 * len(CHOSEN) * sum(m.numel() for m in maps)
    assert seen.at_masks == 4 * len(CHOSEN) * sum(m.shape[1] for m in maps) * 32 * 32
    assert len(seen.scales) == len(maps)


def test_convolving_first_is_enlarging_first():
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, c, s, s, generator=generator) for c, s in ((3, 4), (5, 8))]
    scales = []
    for block in maps:
        scales.append(Scale())
        scales[-1].update(block)
    probe = LinearProbe(scales, 6)
    with torch.no_grad():
        for parameter in probe.parameters():
            parameter.normal_(generator=generator)
    enlarged = [
        F.interpolate((b - s.mean[:, None, None].float()) / s.deviation[:, None, None].float(), (9, 7), mode="bilinear")
        for b, s in zip(maps, scales, strict=True)
    ]
    convolution = nn.Conv2d(8, 6, 1)
    with torch.no_grad():
        convolution.weight.copy_(torch.cat(list(probe.weights), dim=1)[:, :, None, None])
        convolution.bias.copy_(probe.bias)  # type: ignore[union-attr]
    assert torch.allclose(probe(maps, (9, 7)), convolution(torch.cat(enlarged, dim=1)), atol=1e-4)
    assert probe.parameter_count == sum(p.numel() for p in convolution.parameters())


def test_probe_is_the_logistic_regression_of_scikit_learn(denoiser):
    features, train, _ = denoiser
    spec, chosen = Spec(200, ("decoder 32x32 #2",)), CHOSEN[:3]
    seen = look_through(features, train, chosen, 3)
    recipe = Recipe(steps=250, batch_size=3, lr=0.5)
    probe = train_probes(features, train, chosen, [spec], seen.scales, 11, recipe)[spec]
    maps, masks = max_classes(features, train, spec, chosen)
    x = StandardScaler().fit_transform(rearrange(maps[0], "b c h w -> (b h w) c").numpy().astype(np.float64))
    y = masks.flatten().numpy()
    classes = sorted(set(y.tolist()))
    judge = LogisticRegression(C=1e4, max_iter=400).fit(x, y)
    best = log_loss(y, judge.predict_proba(x), labels=classes)
    with torch.no_grad():
        logits = rearrange(probe(maps, (32, 32)), "b c h w -> (b h w) c")
    loss = float(F.cross_entropy(logits, masks.flatten()))
    assert loss == pytest.approx(best, abs=5e-3)
    accuracy = float((logits.argmax(1).numpy() == y).mean())
    assert accuracy == pytest.approx(judge.score(x, y), abs=5e-3)
    assert loss < 0.95 * log_loss(y, np.tile(np.bincount(y)[classes] / len(y), (len(y), 1)), labels=classes)


def test_stream_is_what_stored_features_give(denoiser):
    features, train, _ = denoiser
    specs = [Spec(None, ("middle 16x16",)), Spec(200, ("encoder 32x32", "decoder 16x16 #1"))]
    seen = look_through(features, train, CHOSEN, 2)
    recipe = Recipe(steps=8, batch_size=4, lr=0.05, weight_decay=0.1, seed=3)
    streamed = train_probes(features, train, CHOSEN, specs, seen.scales, 11, recipe)
    for spec in specs:  # each alone, on features that were computed once and kept
        maps, masks = max_classes(features, train, spec, CHOSEN)
        probe = LinearProbe([seen.scales[spec.moment, block] for block in spec.blocks], 11)
        optimizer = torch.optim.AdamW(probe.parameters(), lr=0.05, weight_decay=0.1)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
        for keys in StepSampler(len(CHOSEN), 4, 3, stop=8):
            rows = [key.index for key in keys]
            optimizer.zero_grad()
            F.cross_entropy(probe([m[rows] for m in maps], (32, 32)), masks[rows]).backward()
            optimizer.step()
            rate.step()
        for ours, theirs in zip(streamed[spec].parameters(), probe.parameters(), strict=True):
            assert ours.abs().sum() > 0 and torch.allclose(ours, theirs, atol=2e-4)


def test_judged_at_the_masks_own_size_in_halves(make_run, voc_layout):
    random = np.random.default_rng(0)
    masks = {f"p{i}": random.integers(0, 3, (40 + i, 50), dtype=np.uint8) for i in range(4)}
    masks["p0"][:5] = 255
    root = voc_layout(["background", "a", "b"], {"train": masks, "val": masks})
    options = {"data.name": "voc_folder", "data.root": str(root), "data.size": [32, 32], "diffusion.condition": "none"}
    run = read_run(make_run("run", "diffusion", **options))
    val = labelled(run, run, "val")
    features = open_features(run, val, [50], 0, "cpu")
    spec = Spec(50, ("encoder 32x32",))
    seen = look_through(features, val, range(4), 3)
    probes = train_probes(features, val, range(4), [spec], seen.scales, 3, Recipe(steps=3, batch_size=3))
    halves = judge_probes(features, val, range(4), probes, 3, 3)[spec]
    wanted = [ConfusionMatrix(3), ConfusionMatrix(3)]
    for index in range(4):
        item = val[index]
        maps = features(item["image"][None], [item["name"]], 50)["encoder 32x32"]
        wanted[index % 2].update(probes[spec]([maps], tuple(item["mask"].shape)).argmax(dim=1)[0], item["mask"])
    assert [half.matrix.tolist() for half in halves] == [half.matrix.tolist() for half in wanted]
    counted = sum(int((torch.from_numpy(mask) != 255).sum()) for mask in masks.values())
    assert sum(int(half.matrix.sum()) for half in halves) == counted
