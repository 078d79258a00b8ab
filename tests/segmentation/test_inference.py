"""From images of any size to logits of that size, with the real network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import v2

from unetdiff import UNet
from unetdiff.data.decoding import decode
from unetdiff.data.transforms import to_model_range
from unetdiff.errors import UserError
from unetdiff.segmentation.config import InferenceConfig
from unetdiff.segmentation.inference import (
    argmax_at,
    eval_mode,
    load_image,
    logits_by_size,
    predict_batch,
    predict_logits,
    predict_masks,
    resize_logits,
    segment_whole,
)


@pytest.fixture(scope="module")
def unet() -> UNet:
    torch.manual_seed(0)
    return UNet(encoder={"name": "classic", "channels": [4, 8]}, heads={"segmentation": {"num_classes": 3}}).eval()


def photo(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_is_the_network_on_pixels_in_its_range(unet):
    image = photo(33, 40)
    with torch.no_grad():
        expected = unet.segment(image[None] / 127.5 - 1)[0]
    logits = predict_logits(unet, image)
    assert logits.shape == (3, 33, 40) and logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected)


def test_resized_images_answer_at_their_own_size(unet):
    image = photo(50, 70)
    small = v2.functional.resize(image, [32, 48], antialias=True)
    with torch.no_grad():
        logits = unet.segment(small[None] / 127.5 - 1)
    expected = F.interpolate(logits, (50, 70), mode="bilinear", align_corners=False)
    torch.testing.assert_close(predict_logits(unet, image, size=(32, 48)), expected[0])


def test_argmax_comes_after_the_logits_are_resized():
    logits = torch.tensor([[0.0, 1.0], [3.0, 0.0]]).view(1, 2, 1, 2)  # surely class 1, then class 0
    masks = resize_logits(logits, (1, 8)).argmax(1)[0, 0].tolist()
    assert masks == [1, 1, 1, 1, 1, 0, 0, 0]  # the border is where the logits meet, not at the middle


def test_a_batch_of_many_sizes_keeps_its_order(unet):
    images = [photo(32, 40, 0), photo(36, 32, 1), photo(32, 40, 2), photo(32, 40, 3), photo(36, 32, 4)]
    for size in (None, [32, 32]):
        alone = [predict_logits(unet, image, size) for image in images]
        for actual, expected in zip(predict_batch(unet, images, size, batch_size=2), alone, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    masks = predict_masks(unet, torch.stack([images[0], images[2], images[3]]))
    assert [mask.dtype for mask in masks] == [np.uint8] * 3
    assert np.array_equal(masks[1], predict_logits(unet, images[2]).argmax(0).numpy())


def test_tiles_and_views_come_back_at_the_images_own_size(unet):
    images = [photo(32, 40, 0), photo(36, 90, 1), photo(20, 24, 2)]
    options = InferenceConfig(tile=[32, 32], flip=True, scales=[1.0, 2.0], batch_size=5)
    for size in (None, [48, 48]):
        logits = dict(logits_by_size(unet, images, size, options=options))
        assert list(logits) == [0, 1, 2] and [tuple(logits[i].shape[-2:]) for i in logits] == [
            (32, 40),
            (36, 90),
            (20, 24),
        ]
        masks = predict_masks(unet, images, size, options=options)
        for index, mask in enumerate(masks):
            assert np.array_equal(mask, logits[index].argmax(0).numpy())
            alone = predict_logits(unet, images[index], size, options=options)
            torch.testing.assert_close(alone, logits[index], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(33, 21), (100, 7), (5, 9), (11, 13)])
def test_a_mask_in_bands_is_the_argmax_of_the_resized_logits(size, monkeypatch):
    logits = torch.randn(3, 11, 13, generator=torch.Generator().manual_seed(0))
    whole = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
    monkeypatch.setattr("unetdiff.segmentation.inference.MAX_RESIZED_LOGITS", 3 * size[1] * 4)  # four rows
    mask = argmax_at(logits, size)
    assert mask.dtype == torch.uint8
    assert torch.equal(mask.long(), whole.argmax(0))


def test_every_kind_of_image_is_the_same_image(unet, tmp_path):
    image = photo(32, 36)
    array = image.permute(1, 2, 0).numpy()
    Image.fromarray(array).save(tmp_path / "image.png")
    file = tmp_path / "image.png"
    kinds = [image, array, Image.fromarray(array), file, str(file), file.read_bytes()]
    for kind in kinds:
        assert torch.equal(load_image(kind), image)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_keeps_its_shades(tmp_path, suffix):
    values = np.array([[0, 256, 1000], [30000, 65279, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"deep.{suffix}")
    for kind in (tmp_path / f"deep.{suffix}", Image.fromarray(values)):
        assert load_image(kind)[0].tolist() == [[0, 1, 3], [117, 254, 255]]
    assert decode(tmp_path / f"deep.{suffix}")[2].tolist() == [[0, 1, 3], [117, 254, 255]]


def test_numbers_without_a_range_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tif")
    for read in (load_image, decode):
        with pytest.raises(UserError, match="float.tif: .*float32 have no fixed range: .*save it with 8 or 16 bits"):
            read(tmp_path / "float.tif")


def test_files_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    Image.new("RGB", (40, 32)).save(tmp_path / "side.jpg", exif=exif)
    assert load_image(tmp_path / "side.jpg").shape == (3, 40, 32)


def test_unreadable_files_are_named(tmp_path):
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:900])
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match="nowhere.png: no such file"):
        load_image(tmp_path / "nowhere.png")
    for name in ("half.jpg", "text.png"):
        with pytest.raises(UserError, match=f"{name}: (must be an image|cannot be decoded)"):
            load_image(tmp_path / name)
    with pytest.raises(UserError, match="^<8 bytes>: must be an image"):
        load_image(b"no image")


def test_an_image_too_large_for_pils_guard_is_named(tmp_path, monkeypatch):
    Image.new("RGB", (40, 40)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match="large.png: must have at most 134,217,728 pixels .*Resize it, or crop it"):
        load_image(tmp_path / "large.png")


def test_modes_are_as_they_were_afterwards():
    module = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Sequential(torch.nn.BatchNorm2d(3))).train()
    module[1][0].eval()  # frozen statistics
    with pytest.raises(RuntimeError, match="stop"):
        with eval_mode(module, "cpu", None):
            assert not any(part.training for part in module.modules())
            assert torch.is_inference_mode_enabled()
            raise RuntimeError("stop")
    assert [part.training for part in module.modules()] == [True, True, True, False]


def test_predicts_the_same_whatever_the_mode_before(unet):
    image = photo(32, 32)
    expected = predict_logits(unet, image)
    state = {name: value.clone() for name, value in unet.state_dict().items()}
    unet.train()
    try:
        assert torch.equal(predict_logits(unet, image), expected)
        assert unet.training
    finally:
        unet.eval()
    assert all(torch.equal(value, state[name]) for name, value in unet.state_dict().items())


def test_autocast_gives_float32_logits_close_to_full_precision(unet):
    image = photo(32, 32)
    full, half = predict_logits(unet, image), predict_logits(unet, image, autocast=torch.bfloat16)
    assert half.dtype == torch.float32
    assert not torch.equal(full, half)
    torch.testing.assert_close(half, full, rtol=0.1, atol=0.05)


def unpadded(channels: list[int], padding: str) -> UNet:
    torch.manual_seed(0)
    return UNet(
        encoder={"name": "classic", "channels": channels, "padding": padding, "norm": "none"},
        decoder={"norm": "none"},
        heads={"segmentation": {"num_classes": 2}},
    ).eval()


@pytest.mark.parametrize("channels", [[2, 4], [2, 4, 4], [2, 2, 2, 2, 4]])
@pytest.mark.parametrize("size", [(32, 57), (45, 200)])
def test_an_unpadded_network_answers_for_every_pixel(channels, size):
    logits = predict_logits(unpadded(channels, "valid"), photo(*size))
    assert logits.shape == (2, *size) and logits.isfinite().all()


@pytest.mark.parametrize(("channels", "size"), [([2, 4], 80), ([2, 4], 81), ([2, 4, 4], 151), ([2, 2, 2, 4], 258)])
def test_an_unpadded_network_answers_in_the_right_place(channels, size):
    # Far from the border it is the padded network on the same pixels, up to where the pooling's grid begins.
    valid, same = unpadded(channels, "valid"), unpadded(channels, "same")
    same.load_state_dict(valid.state_dict())
    stride, middle = 2 ** (len(channels) - 1), slice(size // 2 - 4, size // 2 + 4)
    pixels = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        actual = segment_whole(valid, pixels)[..., middle, middle]
        apart = []
        for k in range(stride):
            end = -(size + k) % stride  # no remainder in any pooling
            moved = same.segment(F.pad(pixels, (k, end, k, end)))[..., k:, k:]
            apart.append((moved[..., middle, middle] - actual).abs().max().item())
    assert min(apart) < 1e-6 < 1e-3 * actual.std()
    assert sorted(apart)[1] > 1e-4  # and only on that grid


def test_a_size_that_cannot_be_is_refused(unet):
    with pytest.raises(UserError, match="size"):
        predict_logits(unet, photo(32, 32), size=(0, 32))


@pytest.mark.parametrize("options", [{}, {"tile": [36, 40]}, {"tile": [36, 40], "margin": 52}, {"margin": 24}])
def test_tiles_of_an_unpadded_network_see_the_image_around_them(options):
    """The overlap-tile strategy of 2015: a tile has the logits of the whole image, whose border is mirrored.

    Tiles begin at multiples of 4, the stride of the network's max-pooling.
    """
    torch.manual_seed(0)
    encoder = {"name": "classic", "channels": [4, 6, 8], "padding": "valid", "norm": "none"}
    unet = UNet(encoder=encoder, heads={"segmentation": {"num_classes": 3}}).eval()
    image = photo(72, 80)
    whole = segment_whole(unet, to_model_range(image)[None])[0].detach()
    logits = predict_logits(unet, image, options=InferenceConfig(overlap=0.0, **options))
    torch.testing.assert_close(logits, whole, atol=1e-5, rtol=1e-4)
