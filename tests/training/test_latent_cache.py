"""Latents encoded once: the same batches and weights as with encoding in each step, without decoding an image."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets as hf
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file

from unetdiff.config.schema import RunConfig
from unetdiff.config.validation.run import validate
from unetdiff.data import images
from unetdiff.data.base import collate
from unetdiff.data.cached_latents import CachedLatents
from unetdiff.data.masks import dataset as masked
from unetdiff.data.sampling import SampleKey
from unetdiff.diffusion import latent_cache
from unetdiff.errors import UserError
from unetdiff.training import checkpoints
from unetdiff.training.draws import whole_batch
from unetdiff.training.latents import LatentCaches
from unetdiff.training.run_data import RunData
from unetdiff.training.runtime import build_accelerator
from unetdiff.training.step import optimizer_step
from unetdiff.training.tasks.build import build_task
from unetdiff.training.tasks.diffusion import DiffusionTask
from unetdiff.training.trainer import Trainer, train

Tiny = Callable[..., RunConfig]
KEYS = [SampleKey(index, seed, True) for index in range(4) for seed in (11, 12)]


def noise_image(path: Path, seed: int, size: tuple[int, int] = (20, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per class, four training images and two for validation; a captioned folder of the same."""
    root = tmp_path_factory.mktemp("photographs")
    for number, name in enumerate(("train/a/0", "train/a/1", "train/b/2", "train/b/3", "val/a/4", "val/b/5")):
        noise_image(root / f"{name}.png", number)
    rows = [f'{{"file_name": "{split}/{n}.png", "text": "number {n}"}}\n' for split, n in (("a", 0), ("b", 2))]
    (root / "train" / "metadata.jsonl").write_text("".join(rows))
    return root


def folder_config(tiny: Tiny, root: Path, vae: Path, **changes: Any) -> RunConfig:
    return tiny(
        "diffusion",
        **{
            "data__name": "image_folder",
            "data__root": str(root),
            "data__size": [16, 16],
            "data__augment__flip": True,
            "latent__vae": str(vae),
            "latent__cache": "memory",
            "training__mixed_precision": "no",
            **changes,
        },
    )


def cached(config: RunConfig) -> tuple[DiffusionTask, RunData, CachedLatents]:
    accelerator = build_accelerator(config.training)
    data = RunData(config, accelerator)
    task = build_task(config, data.train, data.val)
    data.cache_latents(config, task, 100, accelerator)
    assert isinstance(task, DiffusionTask) and isinstance(data.loaded_train, CachedLatents)
    return task, data, data.loaded_train


@pytest.mark.parametrize("mode", ["memory", "disk"])
def test_a_batch_has_the_latents_of_its_images(
    tiny: Tiny, photographs: Path, vae: Path, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The posterior's samples too, of images and mirror images, and no image is decoded for them."""
    cache_dir = {"latent__cache_dir": str(tmp_path / "cache")} if mode == "disk" else {}
    config = folder_config(tiny, photographs, vae, latent__cache=mode, **cache_dir)
    task, data, latents = cached(config)
    expected = collate([data.train[key] for key in KEYS])
    draws = [whole_batch(3, len(KEYS), "cpu") for _ in range(2)]
    encoded = task.encode(expected, draws[0])
    assert len(torch.unique(encoded.flatten(1), dim=0)) == 8  # images, mirror images

    with monkeypatch.context() as patch:
        patch.setattr(images, "decode", lambda *_, **__: pytest.fail("decoded an image"))
        batch = collate([latents[key] for key in KEYS])
    assert "image" not in batch and batch["latents"].dtype == torch.float16 and batch["latents"].shape[1] == 8
    torch.testing.assert_close(task.encode(batch, draws[1]), encoded, atol=2e-3, rtol=2e-3)
    assert batch["name"] == expected["name"] and torch.equal(batch["label"], expected["label"])
    assert not data.val._cache  # type: ignore[attr-defined]  # what was decoded to be encoded is freed
    if mode == "disk":  # a second run reads what the first has written
        monkeypatch.setattr("unetdiff.training.latents.encode", lambda *_: pytest.fail("encoded an image again"))
        again = cached(config)[2]
        assert torch.equal(collate([again[key] for key in KEYS])["latents"], batch["latents"])


def test_the_key_is_the_content_of_image_and_autoencoder(
    tiny: Tiny, photographs: Path, vae: Path, tmp_path: Path
) -> None:
    """A changed image is encoded alone; another autoencoder or size has a folder of its own; damage is named."""
    root, cache = shutil.copytree(photographs, tmp_path / "copy"), tmp_path / "cache"
    config = folder_config(tiny, root, vae, latent__cache="disk", latent__cache_dir=str(cache))
    cached(config)
    entries = lambda: {file: file.stat().st_mtime_ns for file in cache.rglob("*.safetensors")}  # noqa: E731
    before = entries()
    assert len(before) == 2  # training images with mirror images, validation images without
    noise_image(root / "train" / "a" / "0.png", 99)
    (root / "train" / "a" / "1.png").rename(root / "train" / "a" / "renamed.png")
    latents = cached(config)[2]
    assert len(entries()) == 3 and before.items() < entries().items()
    assert latents.moments.hashes[0] not in before

    other = AutoencoderKL.from_pretrained(vae)
    torch.nn.init.normal_(other.quant_conv.weight)
    other.save_pretrained(tmp_path / "other")
    config.latent.vae = str(tmp_path / "other")
    cached(config)
    config.data.size = [12, 16]
    cached(config)
    assert len(list(cache.iterdir())) == 6
    for file in entries():
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="must be a complete safetensors file.* Delete the file"):
        cached(config)


@pytest.mark.parametrize("condition", ["none", "layout"])
def test_masks_and_classes_stay(
    tiny: Tiny, vae: Path, voc_layout: Callable[..., Path], condition: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = np.random.default_rng(0).integers(0, 2, (24, 32)).astype(np.uint8)
    root = voc_layout(["background", "cat"], {"train": {name: mask for name in "abcd"}, "val": {"e": mask}})
    config = folder_config(
        tiny, root, vae, data__name="voc_folder", diffusion__condition=condition, data__train_fraction=0.9
    )
    task, data, latents = cached(config)
    expected = collate([data.train[key] for key in KEYS])
    encoded = task.encode(expected)
    monkeypatch.setattr(masked, "decode", lambda *_, **__: pytest.fail("decoded an image"))
    batch = collate([latents[key] for key in KEYS])
    torch.testing.assert_close(task.encode(batch), encoded, atol=2e-3, rtol=2e-3)
    assert batch.keys() - {"latents"} == expected.keys() - {"image"}
    for name in batch.keys() & {"mask", "labels"}:
        assert torch.equal(batch[name], expected[name])


def test_images_resized_for_masks_have_entries_of_their_own(
    tiny: Tiny, vae: Path, voc_layout: Callable[..., Path], tmp_path: Path
) -> None:
    """Cut to their aspect ratio with their masks as conditions, stretched with a segmentation head."""
    mask = np.zeros((24, 32), np.uint8)
    root = voc_layout(["background", "cat"], {"train": {name: mask for name in "abcd"}, "val": {"e": mask}})
    cache = tmp_path / "cache"
    keys = {"data__name": "voc_folder", "latent__cache": "disk", "latent__cache_dir": str(cache)}
    config = folder_config(tiny, root, vae, **keys, diffusion__condition="none", data__augment__flip=False)
    for options, folders in (({}, 1), ({"condition": "layout"}, 2), ({"condition": "class", "max_classes": 2}, 2)):
        vars(config.diffusion).update(options)
        cached(config)
        assert len(list(cache.iterdir())) == folders
    config.task = "joint"
    accelerator = build_accelerator(config.training)
    data = RunData(config, accelerator)
    data.cache_latents(config, build_task(config, data.train, data.val), 100, accelerator)
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("mode", ["memory", "disk"])
@pytest.mark.parametrize("name", ["parquet", "captioned_folder"])
def test_latents_of_buckets(tiny: Tiny, vae: Path, text_encoder: Path, tmp_path: Path, name: str, mode: str) -> None:
    """Cached latents are those of each image at the size of its step; of a folder, of regularization images too. The
    sizes of a parquet table's images are read from the headers of its cells."""
    root, rows = tmp_path / "data", []
    for number, size in enumerate([(16, 16), (16, 40), (40, 16), (17, 16), (16, 39), (40, 17)] * 2):
        noise_image(root / f"{number}.png", number, size)
        rows.append({"file_name": f"{number}.png", "text": f"number {number}"})
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options: dict[str, Any] = {"data__name": name, "data__bucket_step": 8, "data__size": [32, 32]}
    if name == "parquet":
        cells = [{"bytes": (root / row["file_name"]).read_bytes(), "path": None} for row in rows]
        features = hf.Features({"img": hf.Image(), "text": hf.Value("string")})
        table = hf.Dataset.from_dict({"img": cells, "text": [row["text"] for row in rows]}, features=features)
        root, options["data__caption_column"] = tmp_path / "table.parquet", "text"
        table.to_parquet(str(root))
    else:
        for number in range(3):
            noise_image(tmp_path / "class" / f"{number}.png", 100 + number, (24, 24))
        options["data__regularization_root"] = str(tmp_path / "class")
        options["data__regularization_prompt"] = "a number"
    options |= {
        "diffusion__condition": "text",
        "diffusion__text__encoder": str(text_encoder),
        "diffusion__text__cache_dir": str(tmp_path / "captions"),
        "training__batch_size": 2,
        "data__augment__flip": False,
        "latent__cache": mode,
        "latent__cache_dir": str(tmp_path / "cache") if mode == "disk" else None,
    }
    config = folder_config(tiny, root, vae, **options)
    task, data, _ = cached(config)
    plain, accelerator = RunData(config, build_accelerator(config.training)), build_accelerator(config.training)
    batches = [source.batches(config.training, 0, 9, 9, accelerator) for source in (data, plain)]
    shapes = set()
    for batch, expected in zip(*batches, strict=True):
        assert batch["name"] == expected["name"] and "image" not in batch
        assert name == "parquet" or batch["regularization"].tolist() == [0, 1, 0, 1]
        shapes.add(tuple(expected["image"].shape[-2:]))
        torch.testing.assert_close(task.encode(batch), task.encode(expected), atol=2e-3, rtol=2e-3)
    assert len(shapes) == 3
    losses = task.batch_losses(batch, 0)
    assert losses["loss"].isfinite() and (name == "parquet" or losses["prior_loss"] > 0)


def test_buckets_are_of_whole_cells(tiny: Tiny, photographs: Path, vae: Path) -> None:
    config = folder_config(tiny, photographs, vae, data__bucket_step=9, data__size=[18, 18])
    data = RunData(config, build_accelerator(config.training))
    with pytest.raises(UserError, match="data.bucket_step=9: must be a multiple of 2, the autoencoder's factor"):
        build_task(config, data.train, data.val)


def test_captions_and_scenes(tiny: Tiny, photographs: Path, vae: Path) -> None:
    captioned = folder_config(
        tiny, photographs / "train", vae, data__name="captioned_folder", diffusion__condition="none"
    )
    captioned.data.regularization_root, captioned.data.regularization_prompt = str(photographs / "val" / "a"), "any"
    _, data, latents = cached(captioned)
    assert latents[KEYS[0]]["caption"] in ("number 0", "number 2")
    batch = next(data.batches(captioned.training, 0, 1, 1, build_accelerator(captioned.training)))
    assert batch["latents"].shape == (8, 8, 8, 8) and batch["regularization"].tolist() == [0, 1] * 4
    assert "image" not in batch and batch["caption"][1] == "any"
    scenes = tiny("diffusion", latent__vae=str(vae), latent__cache="memory", training__mixed_precision="no")
    task, data, latents = cached(scenes)
    batch, expected = (collate([part[key] for key in KEYS]) for part in (latents, data.train))
    torch.testing.assert_close(task.encode(batch), task.encode(expected), atol=2e-3, rtol=2e-3)


def test_trained_resumed_and_validated(
    tiny: Tiny, photographs: Path, vae: Path, cut_and_resumed: Callable[[RunConfig], dict[str, torch.Tensor]]
) -> None:
    """The run is that which encodes in each step, up to rounding; resumed it is the same to the bit."""
    steps = {"training__steps": 4, "training__validate_every": 4}
    weights = cut_and_resumed(folder_config(tiny, photographs, vae, **steps))
    plain = folder_config(tiny, photographs, vae, latent__cache="none", directory="plain", **steps)
    run = train(plain)
    newest = checkpoints.newest(run)
    assert newest is not None
    for name, value in load_file(newest / checkpoints.MODEL).items():
        torch.testing.assert_close(weights[name], value, atol=5e-3, rtol=5e-2, msg=name)


@pytest.mark.parametrize("task", ["segmentation", "joint"])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_segmentation_head_sees_the_same_latents(tiny: Tiny, vae: Path, task: str, parts: int) -> None:
    """A step with cached latents has the loss of one that encodes; in micro-batches too."""
    losses = {}
    for mode in ("none", "memory"):
        config = tiny(
            task, directory=mode, latent__vae=str(vae), latent__cache=mode, training__mixed_precision="no",
            training__gradient_accumulation_steps=parts, training__steps=1, data__augment__flip=True,
            training__log_every=1, diffusion__condition="none",
        )  # fmt: skip
        trainer = Trainer(config, None)
        batches = trainer.data.batches(config.training, 0, 1, 1, trainer.accelerator)
        step = trainer.model, trainer.prepared_optimizer, batches, 0, config.training, trainer.accelerator
        losses[mode] = optimizer_step(*step, trainer.layers)[0]
        assert isinstance(trainer.data.loaded_train, CachedLatents) == (mode == "memory")
        assert trainer.data.loaded_val is trainer.data.val
        trainer.close()
    for name, value in losses["none"].items():
        torch.testing.assert_close(losses["memory"][name], value, atol=2e-3, rtol=2e-3, msg=name)


def test_auto(tiny: Tiny, photographs: Path, vae: Path) -> None:
    """In memory where it pays: 4 images and their mirror images twice are 16, 4 steps of 4."""
    for steps, changes, is_cached in (
        (4, {}, True),
        (3, {}, False),
        (2, {"data__augment__flip": False}, True),
        (9, {"data__augment__color": 0.5}, False),
        (9, {"diffusion__condition": "image"}, False),
    ):
        config = folder_config(tiny, photographs, vae, latent__cache="auto", training__steps=steps, **changes)
        trainer = Trainer(config, None)
        trainer.close()
        assert isinstance(trainer.data.loaded_train, CachedLatents) == is_cached == (trainer.latents is not None)
    assert trainer.data.loaded_val is trainer.data.val


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__augment__crop": [8, 8]}, "latent.cache=memory: must be auto or none with data.augment.crop, which"),
        ({"data__augment__random_crop": True}, "must be auto or none with data.augment.random_crop"),
        ({"data__augment__scale": [0.5, 2.0]}, "must be auto or none with data.augment.scale"),
        ({"data__augment__color": 0.2}, "must be auto or none with data.augment.color"),
        ({"diffusion__condition": "image"}, "latent.cache=memory: .* with diffusion.condition=image"),
        ({"latent__vae": None}, "latent.cache=memory: must be auto or none without latent.vae"),
        (
            {"latent__cache_dir": "x"},
            "latent.cache_dir=x: must be null with latent.cache=memory. Use latent.cache=disk",
        ),
    ],
)
def test_what_cannot_be_cached_is_refused(
    tiny: Tiny, photographs: Path, vae: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        validate(folder_config(tiny, photographs, vae, **changes))


def test_latents_beyond_float16_are_refused(
    tiny: Tiny, photographs: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = folder_config(tiny, photographs, vae)
    accelerator = build_accelerator(config.training)
    data = RunData(config, accelerator)
    task = build_task(config, data.train, data.val)
    task.codec.vae.register_to_config(scaling_factor=1e6)
    with pytest.raises(UserError, match="0.png: its latents must be within ±65504"):
        LatentCaches(config, task, data.train, data.val, 9, accelerator)


def test_entries_lie_in_blocks() -> None:
    """Small tensors of their own, between an autoencoder's freed buffers, took 0.4 MB of memory an image."""
    blocks = latent_cache.Blocks()
    entries = [torch.full(shape, float(i)) for i in range(300) for shape in ((2, 4), (1, 4))]
    kept = [blocks.keep(entry) for entry in entries]
    assert all(torch.equal(a, b) for a, b in zip(kept, entries, strict=True))
    assert len({tensor.untyped_storage().data_ptr() for tensor in kept}) == 2 * math.ceil(300 / latent_cache.BLOCK)
