"""`data.regularization_root`: batches of pairs, their loss, and the same run however a step is cut."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from unetdiff.config.reading import load
from unetdiff.config.schema import RunConfig
from unetdiff.config.validation.run import validate
from unetdiff.data.build import build_dataset
from unetdiff.data.check import check
from unetdiff.data.config import DataConfig
from unetdiff.data.regularization import REGULARIZATION, PairedDataset, PairedSampler
from unetdiff.data.sampling import StepSampler
from unetdiff.diffusion.config import DiffusionConfig
from unetdiff.diffusion.objectives import build_scheduler, sample_timesteps_of_kinds
from unetdiff.diffusion.processes.load import process_of
from unetdiff.errors import UserError
from unetdiff.training import checkpoints
from unetdiff.training.logger import read_lines
from unetdiff.training.trainer import train

Tiny = Callable[..., RunConfig]


def _images(folder: Path, count: int, caption: str | None = None) -> Path:
    folder.mkdir()
    random = np.random.default_rng(count)
    names = [f"{number}.png" for number in range(count)]
    for name in names:
        Image.fromarray(random.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / name)
    if caption is not None:
        rows = [json.dumps({"file_name": name, "text": f"{caption} {number % 2}"}) for number, name in enumerate(names)]
        (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    root, others = _images(tmp_path / "mine", 6, "a red three"), _images(tmp_path / "class", 5)
    return {
        "name": "captioned_folder",
        "root": str(root),
        "size": [16, 16],
        "regularization_root": str(others),
        "regularization_prompt": "a blue three",
    }


def test_pairs_of_both_datasets(data: dict[str, Any]) -> None:
    train = build_dataset(DataConfig(**data), "train", False)
    others = train.regularization
    assert others is not None and len(others) == 5 and others.caption(4) == "a blue three"
    assert build_dataset(DataConfig(**data), "val", False).regularization is None
    pairs = PairedDataset(train, others)

    def batches(**cut: int) -> list[list[Any]]:
        return list(PairedSampler(StepSampler(len(train), 4, seed=2, stop=5, **cut), others))

    whole = batches()
    assert len(whole) == len(PairedSampler(StepSampler(len(train), 4, seed=2, stop=5), others)) == 5
    for keys in whole:
        items = [pairs[key] for key in keys]
        assert [item[REGULARIZATION] for item in items] == [0, 1] * 4
        assert {item["caption"] for item in items[1::2]} == {"a blue three"}
    uses = Counter(key.index for keys in whole for key in keys[1::2])
    assert set(uses) == set(range(len(train), len(pairs))) and set(uses.values()) == {4}  # 20 draws of 5 images
    parts = [batches(rank=rank, world_size=2, accumulation_steps=2) for rank in (0, 1)]
    for step, keys in enumerate(whole):
        assert [key for rank in parts for part in rank[2 * step : 2 * step + 2] for key in part] == keys
    assert batches(start=3) == whole[3:]


def test_regularization_images_have_the_size_of_their_steps_bucket(data: dict[str, Any], tmp_path: Path) -> None:
    """Every image is used as often in each bucket; ranks and parts have the whole's."""
    for number, size in enumerate([(16, 16), (40, 16), (16, 40)] * 3):
        Image.new("RGB", size, (number, 0, 0)).save(Path(data["root"]) / f"{number}.png")
    names = [{"file_name": f"{number}.png", "text": "a red three"} for number in range(9)]
    (Path(data["root"]) / "metadata.jsonl").write_text("\n".join(map(json.dumps, names)))
    train = build_dataset(DataConfig(**data | {"size": [32, 32], "bucket_step": 8}), "train", False)
    others = train.regularization
    assert others is not None and train.buckets is not None
    used = np.unique(train.buckets.of_image)
    assert len(used) > 1 and len(others) == 5 * len(used)
    pairs = PairedDataset(train, others)

    def batches(**cut: int) -> list[list[Any]]:
        return list(PairedSampler(StepSampler(len(train), 4, 2, stop=30, buckets=train.buckets, **cut), others))

    whole, uses = batches(), Counter()
    for keys in whole:
        items = [pairs[key] for key in keys]
        assert {item["image"].shape for item in items} == {items[0]["image"].shape}
        assert [item[REGULARIZATION] for item in items] == [0, 1] * 4
        uses.update(item["name"] for item in items[1::2])
    assert len(uses) == 5 and set(uses.values()) == {24}
    parts = [batches(rank=rank, world_size=2, accumulation_steps=2) for rank in (0, 1)]
    for step, keys in enumerate(whole):
        assert [key for rank in parts for part in rank[2 * step : 2 * step + 2] for key in part] == keys
    hashes = {others.image_hash(index) for index in range(len(others))}
    assert len(hashes) == len(others)  # cached latents of several sizes


def test_timesteps_are_stratified_for_both_kinds() -> None:
    process = process_of(build_scheduler(DiffusionConfig()))
    timesteps = sample_timesteps_of_kinds(process, 2, 8, torch.Generator().manual_seed(0))
    for kind in (timesteps[0::2], timesteps[1::2]):
        assert (kind // 250).tolist() == [0, 1, 2, 3]


def test_a_run_is_the_same_however_its_steps_are_cut(tiny: Tiny, data: dict[str, Any], text_encoder: Path) -> None:
    settings = {f"data__{key}": value for key, value in data.items()} | {
        "diffusion__condition": "text",
        "diffusion__text__encoder": str(text_encoder),
        "diffusion__prior_weight": 0.5,
        "model__residual__dropout": 0.0,
        "training__steps": 2,
        "training__log_every": 1,
        "training__mixed_precision": "no",
    }
    weights = []
    for parts in (1, 2):
        config = tiny("diffusion", f"run{parts}", training__gradient_accumulation_steps=parts, **settings)
        config.diffusion.text.cache_dir = str(Path(config.training.output_dir).parent / "captions")
        run = train(config)
        weights.append(load_file(checkpoints.newest(run) / checkpoints.MODEL))  # type: ignore[operator]
        lines = [line for line in read_lines(run / "metrics.jsonl") if line["kind"] == "train"]
        assert len(lines) == 2
        for line in lines:
            assert line["loss"] == pytest.approx(line["instance_loss"] + 0.5 * line["prior_loss"], rel=1e-5)
            assert line["instance_loss"] != line["prior_loss"] > 0
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=2e-5, rtol=0)


def test_captions_come_from_a_file_or_a_prompt(data: dict[str, Any], tmp_path: Path) -> None:
    with_file = _images(tmp_path / "captioned", 3, "a three")
    config = DataConfig(**data | {"regularization_root": str(with_file), "regularization_prompt": None})
    others = build_dataset(config, "train", False).regularization
    assert others is not None and [others.caption(i) for i in range(3)] == ["a three 0", "a three 1", "a three 0"]
    config.regularization_prompt = "a dog"
    with pytest.raises(UserError, match=r"data.regularization_prompt='a dog': must be null with .*metadata.jsonl"):
        build_dataset(config, "train", False)
    with pytest.raises(UserError, match=r"data.regularization_prompt=null: must be set with data.regularization_root"):
        build_dataset(DataConfig(**data | {"regularization_prompt": None}), "train", False)
    assert not check(config := DataConfig(**data), progress=False)
    damaged = Path(data["regularization_root"]) / "3.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    assert [issue.file for issue in check(config, progress=False)] == [str(damaged)]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images found"):
        build_dataset(DataConfig(**data | {"regularization_root": str(tmp_path / "empty")}), "train", False)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data.regularization_root": "x"}, "data.regularization_root=x: must be null without task=diffusion, data"),
        ({"data.regularization_prompt": "x"}, "data.regularization_prompt=x: must be null without data.regulariz"),
        (
            {"diffusion.prior_weight": 2},
            "diffusion.prior_weight=2.0: must be left out without data.regularization_root",
        ),
    ],
)
def test_refused(overrides: dict[str, Any], message: str) -> None:
    base = {"training.steps": 5, "model.conditioning.cross_attention_dim": 8}
    with pytest.raises(UserError) as caught:
        validate(load(None, base | overrides, "diffusion"))
    assert str(caught.value).startswith(message)
