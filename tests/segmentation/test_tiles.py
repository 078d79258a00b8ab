"""Tiles and views, against the whole image: where the two must agree, and where the seams are."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unetdiff.errors import UserError
from unetdiff.segmentation import tiles
from unetdiff.segmentation.config import InferenceConfig
from unetdiff.segmentation.tiles import blend_weights, split_into_tiles, tile_starts, tiled_logits


def pixels(height: int, width: int, count: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def pixelwise(x: Tensor) -> Tensor:
    """Logits that depend on nothing but the pixel."""
    return torch.stack([3 * x[:, 0], x[:, 1] * x[:, 2], x.sum(1).sin(), 1 - x[:, 0]], dim=1)


@pytest.fixture(scope="module")
def convolution() -> nn.Module:
    """Looks five pixels around: 11 x 11."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 5, padding=2), nn.Tanh(), nn.Conv2d(6, 6, 5, padding=2), nn.Tanh()]
    return nn.Sequential(*layers, nn.Conv2d(6, 4, 3, padding=1)).eval().requires_grad_(False)


def segment_batch(forward, pixels: Tensor, config: InferenceConfig) -> Tensor:
    """Logits (B, C, H, W) of pixels (B, 3, H, W): the bands of each image put together."""
    parts = [[] for _ in pixels]
    for index, band in tiled_logits(forward, pixels, config):
        parts[index].append(band)
    return torch.stack([torch.cat(part, dim=1) for part in parts])


@pytest.mark.parametrize(("length", "tile", "overlap"), [(100, 32, 0.25), (101, 32, 0.5), (33, 32, 0.0), (999, 7, 0.9)])
def test_tiles_lie_within_the_image_and_share_what_was_asked(length: int, tile: int, overlap: float) -> None:
    starts = tile_starts(length, tile, overlap)
    assert starts[0] == 0 and starts[-1] + tile == length
    for start, following in itertools.pairwise(starts):
        assert start < following and start + tile - following >= int(overlap * tile)


def test_tiles_are_no_more_than_needed() -> None:
    assert tile_starts(100, 100, 0.5) == [0] and tile_starts(40, 100, 0.5) == [0]
    assert tile_starts(96, 32, 0.0) == [0, 32, 64]
    assert tile_starts(80, 32, 0.5) == [0, 16, 32, 48]
    assert tile_starts(90, 10, 0.1) == [0, 9, 18, 27, 36, 44, 53, 62, 71, 80]  # 81 needs nine, 90 one more


def test_seam_weights_sum_to_one() -> None:
    for length, tile, overlap in itertools.product((5, 16, 33, 100), (1, 2, 3, 10, 32), (0, 0.1, 0.25, 0.5, 0.75, 0.9)):
        starts = tile_starts(length, tile, overlap)
        weights = blend_weights(starts, tile)
        total = torch.zeros(max(length, tile))
        for start, row in zip(starts, weights, strict=True):
            total[start : start + tile] += row
        torch.testing.assert_close(total, torch.ones_like(total))
        assert weights.min() >= 0


def test_seam_weights_by_hand() -> None:
    # 16 pixels shared: four nothing, eight on a raised cosine at (k + 1/2)/8 of its way, four everything
    first, second = blend_weights([0, 48], 64)
    rise = torch.sin(torch.pi / 2 * (torch.arange(8) + 0.5) / 8) ** 2
    expected = torch.cat([torch.zeros(4), rise, torch.ones(4 + 48)])
    torch.testing.assert_close(second, expected)
    torch.testing.assert_close(first, expected.flip(0))  # the image's own border is no seam


@pytest.mark.parametrize("size", [(37, 53), (64, 31), (9, 100), (20, 20)])
@pytest.mark.parametrize(("tile", "overlap"), [([16, 16], 0.25), ([24, 17], 0.8), ([16, 40], 0.0), ([64, 128], 0.5)])
def test_a_pixelwise_function_is_the_same_in_tiles(size, tile, overlap) -> None:
    x = pixels(*size, count=2)
    config = InferenceConfig(tile=tile, overlap=overlap, batch_size=3)
    torch.testing.assert_close(segment_batch(pixelwise, x, config), pixelwise(x), rtol=1e-5, atol=1e-5)


def test_what_looks_less_far_than_a_quarter_of_the_overlap_is_the_same_in_tiles(convolution: nn.Module) -> None:
    x = pixels(80, 61)
    whole = convolution(x)
    same = segment_batch(convolution, x, InferenceConfig(tile=[40, 40], overlap=0.5))  # 20 / 4 = 5 pixels
    torch.testing.assert_close(same, whole, rtol=1e-5, atol=1e-5)
    hard = segment_batch(convolution, x, InferenceConfig(tile=[40, 61], overlap=0.0))
    apart = (hard - whole).abs().amax(dim=(0, 1, 3))  # (rows,)
    assert apart[35:45].max() > 0.02  # without overlap the seam shows, between rows 39 and 40,
    assert max(apart[:35].max(), apart[45:].max()) < 1e-5  # as far as the network looks


def test_smaller_images_are_mirrored_below_and_to_the_right() -> None:
    input_size: list[Tensor] = []

    def record(x: Tensor) -> Tensor:
        input_size.append(x)
        return pixelwise(x)

    x = pixels(3, 7)
    segment_batch(record, x, InferenceConfig(tile=[8, 10]))
    assert input_size[0].shape == (1, 3, 8, 10)
    expected = F.pad(F.pad(x, (0, 3, 0, 2), mode="reflect"), (0, 0, 0, 3), mode="reflect")
    assert torch.equal(input_size[0][..., :5, :], expected[..., :5, :])
    assert torch.equal(input_size[0][0, :, :, 0], x[0, :, [0, 1, 2, 1, 0, 1, 2, 1], 0])  # more than once where needed


def test_flips_are_averaged_as_probabilities(convolution: nn.Module) -> None:
    x = pixels(21, 30)
    config = InferenceConfig(flip=True)
    actual = segment_batch(convolution, x, config)
    straight, mirrored = convolution(x).softmax(1), convolution(x.flip(-1)).flip(-1).softmax(1)
    torch.testing.assert_close(actual, ((straight + mirrored) / 2).log(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(segment_batch(convolution, x.flip(-1), config), actual.flip(-1), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(convolution(x.flip(-1)), convolution(x).flip(-1), atol=1e-2)  # not so without it


def test_scales_are_averaged_as_probabilities(convolution: nn.Module) -> None:
    x = pixels(20, 31)
    expected = convolution(x).softmax(1) / 2
    small = F.interpolate(x, (10, 16), mode="bilinear", antialias=True, align_corners=False)
    expected += F.interpolate(convolution(small), (20, 31), mode="bilinear", align_corners=False).softmax(1) / 2
    actual = segment_batch(convolution, x, InferenceConfig(scales=[1.0, 0.5]))
    torch.testing.assert_close(actual.exp(), expected, rtol=1e-4, atol=1e-5)


def test_one_scale_of_one_is_plain(convolution: nn.Module) -> None:
    x = pixels(20, 31, count=3)
    assert torch.equal(segment_batch(convolution, x, InferenceConfig(scales=[1.0])), convolution(x))
    parts = dict(tiled_logits(convolution, x, InferenceConfig(batch_size=3)))  # the general way, too
    assert torch.equal(torch.stack([parts[i] for i in range(3)]), convolution(x))


def test_every_view_of_tiles_has_the_tiles_size_and_covers_the_image() -> None:
    config = InferenceConfig(tile=[32, 32], overlap=0.25, flip=True, scales=[0.5, 1.0, 2.0])
    found = split_into_tiles((100, 120), config)
    assert {tile.input_size for tile in found} == {(32, 32)}
    assert {tile.shape for tile in found} == {(64, 64), (32, 32), (16, 16)}
    assert [tile.top for tile in found] == sorted(tile.top for tile in found)
    total = torch.zeros(100, 120)
    for tile in found:
        total[tile.top : tile.top + tile.shape[0], tile.left : tile.left + tile.shape[1]] += torch.outer(
            tile.rows, tile.columns
        )
    torch.testing.assert_close(total, torch.ones_like(total))


def test_all_views_in_tiles_agree_with_the_whole_image_where_it_is_smooth() -> None:
    x = F.interpolate(pixels(3, 4), (90, 120), mode="bicubic", align_corners=True)
    options = {"flip": True, "scales": [0.5, 1.0, 1.5]}
    actual = segment_batch(pixelwise, x, InferenceConfig(tile=[32, 48], **options))
    torch.testing.assert_close(actual, pixelwise(x).log_softmax(1), rtol=0.05, atol=0.05)


def test_probabilities_of_nothing_have_finite_logarithms() -> None:
    def sure(x: Tensor) -> Tensor:
        return torch.stack([x[:, 0] * 0 + 1000, x[:, 0] * 0], dim=1)

    logits = segment_batch(sure, pixels(4, 4), InferenceConfig(flip=True))
    assert logits.isfinite().all() and (logits.argmax(1) == 0).all()


def test_pieces_of_several_images_and_views_share_batches() -> None:
    batches: list[int] = []

    def count(x: Tensor) -> Tensor:
        batches.append(len(x))
        return pixelwise(x)

    images = [pixels(32, 64, seed=i)[0] for i in range(3)]  # three tiles each, twice
    config = InferenceConfig(tile=[32, 32], overlap=0.25, flip=True, batch_size=4)
    results: dict[int, Tensor] = dict(tiled_logits(count, images, config))
    assert batches == [4, 4, 4, 4, 2]
    for index, image in enumerate(images):
        torch.testing.assert_close(results[index], pixelwise(image[None])[0].log_softmax(0), rtol=1e-4, atol=1e-5)


def test_images_of_many_sizes_do_not_wait_for_ever() -> None:
    taken: list[int] = []

    def images():
        for index in range(20):
            taken.append(index)
            yield pixels(4 + index, 5)[0]

    first = next(tiled_logits(pixelwise, images(), InferenceConfig(batch_size=2)))
    assert first[0] == 0 and len(taken) == tiles.MAX_WAITING_BATCHES * 2


def test_a_large_image_is_given_out_from_the_top_while_it_is_worked_on() -> None:
    image = pixels(400, 40)[0]
    config = InferenceConfig(tile=[32, 32], overlap=0.25, batch_size=2, scales=[1.0, 0.5])
    heights = []
    for _, band in tiled_logits(pixelwise, [image], config):
        assert band.shape[0] == 4 and band.shape[2] == 40
        assert band.untyped_storage().size() <= 4 * 40 * 4 * 3 * 64  # three of the largest tile's height
        heights.append(band.shape[1])
    assert len(heights) > 10 and sum(heights) == 400


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tile": [0, 32]}, r"^tile=\[0, 32\]: must be \[height, width\]"),
        ({"tile": [32]}, "tile"),
        ({"overlap": 1.0}, r"^overlap=1.0: must be in \[0, 0.9\]"),
        ({"overlap": -0.1}, "overlap"),
        ({"scales": []}, r"^scales=\[\]: must be a list of 1 to 32 factors"),
        ({"scales": [1.0] * 33}, "^scales='33 values': must be a list of 1 to 32 factors"),
        ({"scales": [1.0, 0.0]}, "scales"),
        ({"batch_size": 0}, r"^batch_size=0: must be in \[1, 4096\]"),
    ],
)
def test_options_that_cannot_be_are_refused(options, says) -> None:
    with pytest.raises(UserError, match=says):
        next(tiled_logits(pixelwise, pixels(8, 8), InferenceConfig(**options)))


@pytest.mark.parametrize(("tile", "margin"), [(None, 5), ([20, 24], 5), ([20, 24], 7)])
def test_a_margin_of_the_receptive_field_gives_the_logits_of_the_mirrored_image(
    convolution: nn.Module, tile: list[int] | None, margin: int
) -> None:
    """Overlap-tile strategy: no logit depends on where a tile ends, and none on zero padding."""
    x = pixels(33, 47, 2)
    expected = convolution(F.pad(x, [margin] * 4, mode="reflect"))[..., margin:-margin, margin:-margin]
    for flip in (False, True):
        config = InferenceConfig(tile=tile, overlap=0.0, margin=margin, flip=flip)
        logits = segment_batch(convolution, x, config)
        if flip:
            mirrored = convolution(F.pad(x.flip(-1), [margin] * 4, mode="reflect"))[..., margin:-margin, margin:-margin]
            both = (expected.softmax(1) + mirrored.flip(-1).softmax(1)) / 2
            torch.testing.assert_close(logits.softmax(1), both, atol=1e-5, rtol=1e-4)
        else:
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
