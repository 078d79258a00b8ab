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
    ChannelStats,
    LinearProbe,
    ProbeInput,
    ProbeTraining,
    evaluate_probes,
    feature_stats,
    groups_by_size,
    train_probes,
)
from unetdiff.experiments.run_inputs import labeled_images
from unetdiff.reports.runs import read_run
from unetdiff.segmentation.metrics import ConfusionMatrix

INDICES = [0, 3, 5, 8, 11, 20]


@pytest.fixture
def denoiser(make_run) -> tuple[Features, ImageDataset, ImageDataset]:
    run = read_run(make_run("run"))
    train, val = (labeled_images(run, run, split) for split in ("train", "val"))
    return open_features(run, val, [None, 200], 0, "cpu"), train, val


def stored_maps(
    features: Features, images: ImageDataset, probe_input: ProbeInput, indices: list[int]
) -> tuple[list[Tensor], Tensor]:
    """Maps of all selected images, and their masks."""
    (group,) = groups_by_size(images, indices, range(len(indices)))
    maps = features(group.images, group.names, probe_input.level)
    return [maps[block] for block in probe_input.blocks], torch.stack(group.masks).long()


def test_scale_of_a_stream_is_that_of_all():
    maps = [torch.randn(n, 3, 2, 2, generator=torch.Generator().manual_seed(n)) * 5 + 100 for n in (1, 4, 2)]
    scale = ChannelStats()
    for part in maps:
        scale.update(part)
    every = rearrange(torch.cat(maps).double(), "b c h w -> (b h w) c")
    assert torch.allclose(scale.mean, every.mean(0)) and torch.allclose(scale.std, every.std(0, correction=0))


def test_bytes_are_counted_from_the_shapes(denoiser):
    features, train, _ = denoiser
    stats = feature_stats(features, train, INDICES, 4)
    maps = [m for level in features.noise_levels for m in features(train[0]["image"][None], ["x"], level).values()]
    assert stats.map_bytes == 4 * len(INDICES) * sum(m.numel() for m in maps)
    assert stats.upsampled_bytes == 4 * len(INDICES) * sum(m.shape[1] for m in maps) * 32 * 32
    assert len(stats.channels) == len(maps)


def test_convolving_first_is_enlarging_first():
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, c, s, s, generator=generator) for c, s in ((3, 4), (5, 8))]
    scales = []
    for block in maps:
        scales.append(ChannelStats())
        scales[-1].update(block)
    probe = LinearProbe(scales, 6)
    with torch.no_grad():
        for parameter in probe.parameters():
            parameter.normal_(generator=generator)
    enlarged = [
        F.interpolate((b - s.mean[:, None, None].float()) / s.std[:, None, None].float(), (9, 7), mode="bilinear")
        for b, s in zip(maps, scales, strict=True)
    ]
    convolution = nn.Conv2d(8, 6, 1)
    with torch.no_grad():
        convolution.weight.copy_(torch.cat(list(probe.weights), dim=1)[:, :, None, None])
        convolution.bias.copy_(probe.bias)  # type: ignore[union-attr]
    assert torch.allclose(probe(maps, (9, 7)), convolution(torch.cat(enlarged, dim=1)), atol=1e-4)
    assert probe.parameter_count == sum(p.numel() for p in convolution.parameters())


def test_probe_is_the_logistic_regression_of_scikit_learn(denoiser, monkeypatch):
    features, train, _ = denoiser
    compute, kept = features._maps, {}  # the steps see the same three images, in six orders

    def maps_once(images, names, level):
        key = (tuple(names), level)
        if key not in kept:
            kept[key] = compute(images, names, level)
        return kept[key]

    monkeypatch.setattr(features, "_maps", maps_once)
    spec, indices = ProbeInput(200, ("decoder 32x32 #2",)), INDICES[:3]
    stats = feature_stats(features, train, indices, 3)
    training = ProbeTraining(steps=250, batch_size=3, lr=0.5)
    probe = train_probes(features, train, indices, [spec], stats, 11, training)[spec]
    maps, masks = stored_maps(features, train, spec, indices)
    x = StandardScaler().fit_transform(rearrange(maps[0], "b c h w -> (b h w) c").numpy().astype(np.float64))
    y = masks.flatten().numpy()
    classes = sorted(set(y.tolist()))
    reference = LogisticRegression(C=1e4, max_iter=400).fit(x, y)
    best = log_loss(y, reference.predict_proba(x), labels=classes)
    with torch.no_grad():
        logits = rearrange(probe(maps, (32, 32)), "b c h w -> (b h w) c")
    loss = float(F.cross_entropy(logits, masks.flatten()))
    assert loss == pytest.approx(best, abs=5e-3)
    accuracy = float((logits.argmax(1).numpy() == y).mean())
    assert accuracy == pytest.approx(reference.score(x, y), abs=5e-3)
    assert loss < 0.95 * log_loss(y, np.tile(np.bincount(y)[classes] / len(y), (len(y), 1)), labels=classes)


def test_stream_is_what_stored_features_give(denoiser):
    features, train, _ = denoiser
    specs = [ProbeInput(None, ("mid_block 16x16",)), ProbeInput(200, ("encoder 32x32", "decoder 16x16 #1"))]
    stats = feature_stats(features, train, INDICES, 2)
    training = ProbeTraining(steps=8, batch_size=4, lr=0.05, weight_decay=0.1, seed=3)
    streamed = train_probes(features, train, INDICES, specs, stats, 11, training)
    for spec in specs:  # each alone, on features that were computed once and kept
        maps, masks = stored_maps(features, train, spec, INDICES)
        probe = LinearProbe([stats.channels[spec.level, block] for block in spec.blocks], 11)
        optimizer = torch.optim.AdamW(probe.parameters(), lr=0.05, weight_decay=0.1)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
        for keys in StepSampler(len(INDICES), 4, 3, stop=8):
            rows = [key.index for key in keys]
            optimizer.zero_grad()
            F.cross_entropy(probe([m[rows] for m in maps], (32, 32)), masks[rows]).backward()
            optimizer.step()
            rate.step()
        for own, reference in zip(streamed[spec].parameters(), probe.parameters(), strict=True):
            assert own.abs().sum() > 0 and torch.allclose(own, reference, atol=2e-4)


def test_evaluated_at_the_masks_own_size_in_halves(make_run, voc_layout):
    random = np.random.default_rng(0)
    masks = {f"p{i}": random.integers(0, 3, (40 + i, 50), dtype=np.uint8) for i in range(4)}
    masks["p0"][:5] = 255
    root = voc_layout(["background", "a", "b"], {"train": masks, "val": masks})
    options = {"data.name": "voc_folder", "data.root": str(root), "data.size": [32, 32], "diffusion.condition": "none"}
    run = read_run(make_run("run", "diffusion", **options))
    val = labeled_images(run, run, "val")
    features = open_features(run, val, [50], 0, "cpu")
    spec = ProbeInput(50, ("encoder 32x32",))
    stats = feature_stats(features, val, range(4), 3)
    probes = train_probes(features, val, range(4), [spec], stats, 3, ProbeTraining(steps=3, batch_size=3))
    halves = evaluate_probes(features, val, range(4), probes, 3, 3)[spec]
    expected = [ConfusionMatrix(3), ConfusionMatrix(3)]
    for index in range(4):
        item = val[index]
        maps = features(item["image"][None], [item["name"]], 50)["encoder 32x32"]
        expected[index % 2].update(probes[spec]([maps], tuple(item["mask"].shape)).argmax(dim=1)[0], item["mask"])
    assert [half.matrix.tolist() for half in halves] == [half.matrix.tolist() for half in expected]
    counted = sum(int((torch.from_numpy(mask) != 255).sum()) for mask in masks.values())
    assert sum(int(half.matrix.sum()) for half in halves) == counted
