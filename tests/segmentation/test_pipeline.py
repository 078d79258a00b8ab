"""The pipeline: what it returns, what it saves, and what it refuses to load."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from unetdiff import SegmentationPipeline, UNet
from unetdiff.data.masks.classes import voc_colormap
from unetdiff.errors import UserError
from unetdiff.segmentation.config import InferenceConfig
from unetdiff.segmentation.inference import predict_logits
from unetdiff.segmentation.pipeline import saved_inference

CLASSES = ["background", "cat", "dog"]
PALETTE = [[0, 0, 0], [200, 30, 30], [30, 30, 200]]


def network(**heads) -> UNet:
    torch.manual_seed(0)
    heads = heads or {"segmentation": {"num_classes": 3}}
    return UNet(encoder={"name": "residual", "channels": [8, 8]}, residual={"norm_num_groups": 4}, heads=heads)


@pytest.fixture(scope="module")
def pipeline() -> SegmentationPipeline:
    return SegmentationPipeline(network(), CLASSES, PALETTE, size=(32, 32))


@pytest.fixture
def saved(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def photo(height: int = 40, width: int = 50, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def test_labels_a_image_at_its_own_size(pipeline):
    image = photo()
    output = pipeline(image, return_logits=True)
    expected = predict_logits(pipeline.unet, image, (32, 32))
    torch.testing.assert_close(output.logits, expected)
    assert output.mask.dtype == np.uint8
    assert np.array_equal(output.mask, expected.argmax(0).numpy())
    assert np.array_equal(np.asarray(output.palette_image), output.mask)
    assert output.palette_image.mode == "P" and output.palette_image.getpalette()[:9] == sum(PALETTE, [])
    assert output.overlay.mode == "RGB" and output.overlay.size == (50, 40)
    bare = output.mask == 0
    changed = (np.asarray(output.overlay) != image).any(axis=-1)
    assert bare.any() and not changed[bare].any()  # "background" stays bare
    assert changed[~bare].mean() > 0.9
    assert pipeline(image).logits is None


def test_lists_paths_and_sizes(pipeline, tmp_path):
    Image.fromarray(photo(36, 33, 1)).save(tmp_path / "image.png")
    inputs = [photo(), tmp_path / "image.png", Image.fromarray(photo(64, 32, 2))]
    outputs = pipeline(inputs, batch_size=2)
    assert [output.mask.shape for output in outputs] == [(40, 50), (36, 33), (64, 32)]
    for image, output in zip(inputs, outputs, strict=True):
        assert (pipeline(image).mask == output.mask).mean() > 0.999
    assert pipeline([]) == []


def test_round_trip(pipeline, saved):
    loaded = SegmentationPipeline.from_pretrained(saved)
    assert sorted(path.name for path in saved.iterdir()) == ["segmentation.json", "unet"]
    assert json.loads((saved / "segmentation.json").read_text()) == {
        "classes": CLASSES,
        "palette": PALETTE,
        "size": [32, 32],
        "ignore_index": 255,
        "inference": {
            "tile": None,
            "overlap": 0.25,
            "margin": 0,
            "flip": False,
            "scales": [1.0],
            "batch_size": 8,
            "image_range": None,
        },
        "input": {"timestep": 0, "noise_level": None},
    }
    assert (loaded.classes, loaded.size, loaded.ignore_index) == (CLASSES, (32, 32), 255)
    assert not loaded.unet.training
    actual, expected = pipeline(photo(), return_logits=True), loaded(photo(), return_logits=True)
    assert torch.equal(actual.logits, expected.logits) and np.array_equal(actual.mask, expected.mask)


def test_how_images_are_seen_is_saved_and_can_be_overridden(tmp_path):
    seen = InferenceConfig(tile=[16, 24], overlap=0.5, flip=True, scales=[0.5, 1.0], batch_size=3)
    SegmentationPipeline(network(), CLASSES, inference=seen).save_pretrained(tmp_path)
    loaded = SegmentationPipeline.from_pretrained(tmp_path)
    assert loaded.inference == seen == saved_inference(tmp_path)
    image = photo()
    output = loaded(image, return_logits=True)
    torch.testing.assert_close(output.logits, predict_logits(loaded.unet, image, options=seen))
    assert np.array_equal(output.mask, output.logits.argmax(0).numpy())
    assert np.array_equal(output.mask, loaded(image).mask)  # reduced to the mask band by band
    plain = loaded(image, return_logits=True, inference=InferenceConfig())
    torch.testing.assert_close(plain.logits, predict_logits(loaded.unet, image))
    assert not torch.allclose(plain.logits.softmax(0), output.logits.softmax(0), atol=1e-3)


def test_inference_options_that_are_not_saved_have_their_defaults(saved):
    path = saved / "segmentation.json"
    settings = json.loads(path.read_text())
    settings["inference"] = {}
    path.write_text(json.dumps(settings))
    assert SegmentationPipeline.from_pretrained(saved).inference == InferenceConfig()
    assert saved_inference(saved) == saved_inference(saved / "unet") == InferenceConfig()


def test_a_stream_takes_images_when_their_turn_comes(pipeline):
    taken = []

    def endless():
        while True:
            taken.append(len(taken))
            yield photo(32, 32, taken[-1])

    stream = pipeline.stream(endless(), batch_size=2)
    for number in range(5):
        assert np.array_equal(next(stream).mask, pipeline(photo(32, 32, number)).mask)
    assert len(taken) <= 6


def test_own_size_and_vocs_colours_by_default(tmp_path):
    pipeline = SegmentationPipeline(network(), CLASSES)
    pipeline.save_pretrained(tmp_path)
    loaded = SegmentationPipeline.from_pretrained(tmp_path)
    assert loaded.size is None and np.array_equal(loaded.palette, voc_colormap(3))
    assert loaded(photo(45, 33)).mask.shape == (45, 33)


def test_to_and_saving_beside_other_files(pipeline, saved):
    (saved / "model_index.json").write_text("{}")
    SegmentationPipeline.from_pretrained(saved).to(torch.bfloat16).save_pretrained(saved)
    loaded = SegmentationPipeline.from_pretrained(saved, torch_dtype=torch.bfloat16)
    assert loaded.unet.dtype == torch.bfloat16 and loaded.device.type == "cpu"
    assert loaded(photo(), return_logits=True).logits.dtype == torch.float32
    assert (saved / "model_index.json").exists()


def test_classes_palette_and_head_must_agree():
    with pytest.raises(UserError, match="one name per class .got 2 for 3"):
        SegmentationPipeline(network(), CLASSES[:2])
    with pytest.raises(UserError, match="one color per class .got 2 for 3"):
        SegmentationPipeline(network(), CLASSES, PALETTE[:2])
    with pytest.raises(UserError, match=r"size=\[0, 4\]: must be"):
        SegmentationPipeline(network(), CLASSES, PALETTE, size=[0, 4])
    with pytest.raises(UserError, match="must have a segmentation head"):
        SegmentationPipeline(network(diffusion={"out_channels": 3}), CLASSES)


def test_directories_that_are_no_segmenter_are_named(saved, tmp_path):
    with pytest.raises(UserError, match="nowhere: not found"):
        SegmentationPipeline.from_pretrained(tmp_path / "nowhere")
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(UserError, match=r"no segmentation.json found"):
        SegmentationPipeline.from_pretrained(run)
    saved.rename(run / "best")
    with pytest.raises(UserError, match="is a run directory. Give .*best"):
        SegmentationPipeline.from_pretrained(run)
    (run / "best" / "segmentation.json").unlink()
    (run / "best" / "model_index.json").write_text("{}")
    with pytest.raises(UserError, match="has no segmentation head"):
        SegmentationPipeline.from_pretrained(run / "best")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("size"), "keys must be classes"),
        (lambda s: s.pop("inference"), "keys must be classes"),
        (lambda s: s.update(colour=1), "keys must be .*colour"),
        (lambda s: s.update(classes="cat"), "classes must be a list of names"),
        (lambda s: s.update(palette=[[1, 2]] * 3), "palette must be a list"),
        (lambda s: s.update(palette=[[1, 2, 300]] * 3), "0..255"),
        (lambda s: s.update(size=[32]), "size must be"),
        (lambda s: s.update(ignore_index="void"), "ignore_index must be"),
        (lambda s: s.update(inference={"tiles": 3}), "keys of inference must be some of tile, .*tiles"),
        (lambda s: s["inference"].update(tile="big"), "inference has a value of the wrong type"),
        (lambda s: s["inference"].update(scales=1), "inference has a value of the wrong type"),
        (lambda s: s["inference"].update(overlap=1), "inference.overlap=1: must be in "),
        (lambda s: (s["classes"].append("cow"), s["palette"].append([1, 2, 3])), "does not match .*got 4 for 3"),
    ],
)
def test_foreign_settings_are_refused(saved, change, says):
    path = saved / "segmentation.json"
    settings = json.loads(path.read_text())
    change(settings)
    path.write_text(json.dumps(settings))
    with pytest.raises(UserError, match=says) as error:
        SegmentationPipeline.from_pretrained(saved)
    assert str(path) in str(error.value)


def test_truncated_files_are_refused_by_name(saved):
    weights = saved / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="diffusion_pytorch_model.safetensors"):
        SegmentationPipeline.from_pretrained(saved)
    weights.unlink()
    with pytest.raises(UserError, match="diffusion_pytorch_model.safetensors"):
        SegmentationPipeline.from_pretrained(saved)
    (saved / "segmentation.json").write_text('{"classes": [')
    with pytest.raises(UserError, match="segmentation.json: must be JSON"):
        SegmentationPipeline.from_pretrained(saved)


def test_a_longest_side_keeps_the_aspect_and_is_saved(tmp_path, monkeypatch):
    pipeline = SegmentationPipeline(network(), CLASSES, PALETTE, size=48)
    seen = []
    whole = UNet.segment
    monkeypatch.setattr(
        UNet, "segment", lambda unet, pixels, *args: (seen.append(pixels.shape[-2:]), whole(unet, pixels, *args))[1]
    )
    image = photo(60, 120)
    mask = pipeline(image).mask
    assert mask.shape == (60, 120) and seen == [(24, 48)]
    pipeline.save_pretrained(tmp_path)
    again = SegmentationPipeline.from_pretrained(tmp_path)
    assert again.size == 48
    np.testing.assert_array_equal(again(image).mask, mask)
    for wrong in (0, [3], [0, 4]):
        with pytest.raises(UserError, match="a longest side"):
            SegmentationPipeline(network(), CLASSES, PALETTE, size=wrong)
