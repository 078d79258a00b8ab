"""What the page shows of a segmented image is what the pipeline computes."""

from __future__ import annotations

import re

import numpy as np
import pytest

pytest.importorskip("gradio", reason="the page needs gradio")

import torch

from unetdiff.app import html, segmenting
from unetdiff.app.display import shown_size
from unetdiff.app.runs import AppRun
from unetdiff.app.segment_tab import example_sources
from unetdiff.data.transforms import to_model_range
from unetdiff.errors import UserError
from unetdiff.segmentation.segmenter import NOISE_SEED


def test_without_noise_it_is_the_pipeline(runs: dict[str, AppRun]) -> None:
    run = runs["joint"]
    assert run.segmentation is not None
    for source in example_sources(run)[:2]:
        result = segmenting.segment(run, source)
        assert np.array_equal(result.mask, run.segmentation(source.image).mask) and len(np.unique(result.mask)) > 1
        assert np.array_equal(result.seen, source.image.permute(1, 2, 0).numpy())
        image = segmenting.mask_file(result, run.segmentation)
        assert image.mode == "P" and np.array_equal(np.asarray(image), result.mask)


def test_noise_is_that_of_the_forward_process(runs: dict[str, AppRun]) -> None:
    run = runs["joint"]
    assert run.segmentation is not None and run.generation is not None
    source = example_sources(run)[0]
    result = segmenting.segment(run, source, noise=0.5)
    timestep = round(0.5 * 999)
    alpha_bar = run.generation.scheduler.alphas_cumprod[timestep]
    noise = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(NOISE_SEED))
    xt = alpha_bar.sqrt() * to_model_range(source.image) + (1 - alpha_bar).sqrt() * noise
    seen = ((xt + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0).numpy()
    assert np.abs(result.seen - seen).max() <= 1
    logits = run.segmentation.unet.segment(xt[None].to(run.segmentation.unet.dtype), timestep)
    assert (logits[0].argmax(0).numpy() == result.mask).mean() > 0.98  # rounding of another layout in memory
    assert result.noise == "50 % noise (timestep 500)"


def test_tiles_and_flips(runs: dict[str, AppRun]) -> None:
    run = runs["segmenter"]
    assert run.segmentation is not None
    source = example_sources(run)[0]
    options = segmenting.inference_options(run, 16, 0.5, True)
    assert (options.tile, options.overlap, options.flip) == ([16, 16], 0.5, True)
    expected = run.segmentation(source.image, inference=options).mask
    assert np.array_equal(segmenting.segment(run, source, options=options).mask, expected)
    assert segmenting.inference_options(run, None, 0.25, False).tile is None
    with pytest.raises(UserError, match=r"tile=100000: must be in \[0, 4096\]"):
        segmenting.inference_options(run, 100_000, 0.5, True)


def test_probabilities_at_the_pointer(runs: dict[str, AppRun]) -> None:
    run = runs["joint"]
    assert run.segmentation is not None
    source = example_sources(run)[0]
    result = segmenting.segment(run, source)
    height, width = shown_size(32, 32)
    text = segmenting.at_pointer(result, run.segmentation, 8.5 * width / 32, 20.5 * height / 32, (width, height))
    assert result.probabilities is not None and source.truth is not None
    best = int(result.mask[20, 8])
    truth = run.segmentation.classes[source.truth[20, 8]]
    assert f"Pixel (8, 20), ground truth {truth}" in text
    first = re.findall(r"<b>(.*?)</b>.*?<em>(.*?)</em>", text)[0]
    assert first == (run.segmentation.classes[best], html.percent(float(result.probabilities[best, 20, 8])))
    outside = segmenting.at_pointer(result, run.segmentation, -3, 10_000, (width, height))
    assert "Pixel (0, 31)" in outside


def test_large_images_keep_no_probabilities(runs: dict[str, AppRun], monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs["segmenter"]
    monkeypatch.setattr(segmenting, "MAX_PROBABILITIES", 11 * 32 * 32 - 1)
    result = segmenting.segment(run, example_sources(run)[0])
    assert result.probabilities is None and run.segmentation is not None
    text = segmenting.at_pointer(result, run.segmentation, 0, 0, (512, 512))
    assert run.segmentation.classes[result.mask[0, 0]] in text


def test_views(runs: dict[str, AppRun]) -> None:
    run = runs["joint"]
    assert run.segmentation is not None
    source = example_sources(run)[0]
    result = segmenting.segment(run, source)
    assert source.truth is not None
    palette = run.segmentation.palette
    mask = np.asarray(segmenting.render(result, run.segmentation, segmenting.MASK, 0.5))
    assert np.array_equal(mask[::16, ::16], palette[result.mask])  # 32 pixels enlarged 16 times
    truth = np.asarray(segmenting.render(result, run.segmentation, segmenting.TRUTH, 0.5))
    assert np.array_equal(truth[::16, ::16], palette[source.truth])
    clear = np.asarray(segmenting.render(result, run.segmentation, segmenting.OVERLAY, 0))
    assert np.array_equal(clear, np.asarray(segmenting.render(result, run.segmentation, segmenting.INPUT, 1)))
    uploaded = segmenting.segment(run, segmenting.Source(source.image, "x.png"))
    with pytest.raises(UserError, match="no ground truth"):
        segmenting.render(uploaded, run.segmentation, segmenting.ERRORS, 0.5)
    summary = segmenting.summary(result, run.segmentation)
    fractions = [float(number) for number in re.findall(r"<em>([\d.]+) %</em>", summary)]
    assert sum(fractions) == pytest.approx(100, abs=0.6) and fractions == sorted(fractions, reverse=True)
    assert f"pixel accuracy {html.percent((source.truth == result.mask).mean())}" in summary
