"""Class weights that a run computes: logged, recorded, used, and the same when resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unetdiff.config.reading import from_yaml
from unetdiff.config.schema import RunConfig
from unetdiff.data.build import build_dataset
from unetdiff.errors import UserError
from unetdiff.segmentation.losses import cross_entropy
from unetdiff.training.signals import StopRequest
from unetdiff.training.trainer import Trainer, train

Tiny = Callable[..., RunConfig]
SHORT: dict[str, Any] = {"training__steps": 2, "training__validate_every": 2}


def weighed(tiny: Tiny, method: Any = "median_frequency", **more: Any) -> RunConfig:
    return tiny("segmentation", segmentation__class_weights=method, **SHORT, **more)


def by_hand(config: RunConfig) -> list[float]:
    masks = build_dataset(config.data, "train", True).masks.numpy()  # type: ignore[attr-defined]
    frequency = []
    for c in range(11):
        holding = masks[(masks == c).any(axis=(1, 2))]
        frequency.append((holding == c).mean() if len(holding) else np.nan)
    weights = np.minimum(np.nanmedian(frequency) / np.array(frequency), 10)
    return [float(w) for w in np.nan_to_num(weights)]


def test_a_run_computes_logs_and_records_its_weights(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    config = weighed(tiny)
    expected = by_hand(config)
    run = train(config)
    assert config.segmentation.class_weights == "median_frequency"  # the caller's config is left alone
    recorded = from_yaml(run / "config.yaml").segmentation.class_weights
    assert recorded == pytest.approx(expected, rel=1e-3)
    summary = json.loads((run / "summary.json").read_text())["class_weights"]
    assert summary["from"] == "median_frequency" and list(summary["by_class"].values()) == recorded
    assert list(summary["by_class"])[:2] == ["background", "zero"]
    logged = [line for line in capsys.readouterr().err.splitlines() if line.startswith("class weights")]
    assert logged == [
        f"class weights (median_frequency): {', '.join(f'{k} {v:g}' for k, v in summary['by_class'].items())}"
    ]


def test_the_loss_uses_them_and_a_run_goes_on_with_them(tiny: Tiny) -> None:
    run = train(weighed(tiny))
    recorded = from_yaml(run / "config.yaml").segmentation.class_weights
    trainer = Trainer(weighed(tiny, training__resume=True), None)
    trainer.close()
    torch.testing.assert_close(trainer.task.loss.class_weights, torch.tensor(recorded))  # type: ignore[union-attr]
    again = from_yaml(run / "config.yaml")  # with the numbers in place of the word
    again.training.resume = True
    Trainer(again, None).close()
    with pytest.raises(UserError, match=r"segmentation.class_weights=\[.*: must be \[.*, as in the run"):
        Trainer(weighed(tiny, "inverse_log", training__resume=True), None)


def test_given_weights_and_none(tiny: Tiny, tmp_path: Path) -> None:
    run = train(weighed(tiny, [1.0] * 10 + [2.0]))
    summary = json.loads((run / "summary.json").read_text())["class_weights"]
    assert summary["from"] == "config" and summary["by_class"]["nine"] == 2.0
    run = train(tiny("segmentation", "plain", **SHORT))
    assert json.loads((run / "summary.json").read_text())["class_weights"] is None


def test_a_wrong_number_of_weights_is_refused_before_anything_is_written(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must have 11 weights .got 2.. Give one per class"):
        train(weighed(tiny, [1.0, 2.0]))
    assert not list(tmp_path.iterdir())


def test_what_is_left_out_on_resume_is_noticed(tiny: Tiny) -> None:
    """A section, or a name of the losses, that the run had and the config has no more."""
    train(tiny("segmentation", **SHORT, segmentation__ohem={"threshold": 0.5}))
    without = tiny("segmentation", **SHORT, training__resume=True)
    with pytest.raises(UserError, match=r"segmentation.ohem.threshold=None: must be 0.5, as in the run"):
        Trainer(without, None)
    without.segmentation = from_yaml(Path(without.training.output_dir) / "config.yaml").segmentation
    del without.segmentation.losses["dice"]
    with pytest.raises(UserError, match=r"segmentation.losses.dice=None: must be 1.0, as in the run"):
        Trainer(without, None)


def test_weights_ease_to_one_over_the_first_share_of_a_run(tiny: Tiny) -> None:
    options = {"segmentation__losses": {"cross_entropy": 1.0}, "segmentation__class_weights_anneal_until": 0.5}
    trainer = Trainer(weighed(tiny, [0.5, *[3.0] * 10], **options), None)
    task: Any = trainer.task
    logits = torch.randn(1, 11, 4, 4, generator=torch.Generator().manual_seed(0))
    masks = torch.arange(16).remainder(11).view(1, 4, 4)
    for progress, weights in ((0.0, [0.5, *[3.0] * 10]), (0.25, [0.75, *[2.0] * 10]), (0.5, None), (0.9, None)):
        task.set_progress(progress)
        loss = task.losses(task.sums(logits, masks))["loss"]
        torch.testing.assert_close(loss, cross_entropy(logits, masks, 255, weights))
    trainer.run(StopRequest())
    trainer.close()
    assert task.progress == 0.5  # set before the second of two steps
