"""Masks to tokens and channels: which class where, void and "nothing" apart, and what a person may give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from unetdiff.diffusion.conditioning.layouts import LayoutConditioner
from unetdiff.diffusion.conditioning.load import load_conditioner
from unetdiff.errors import UserError

COLOURS = [[0, 0, 0], [255, 0, 0], [0, 255, 0]]


def make(**settings) -> LayoutConditioner:
    torch.manual_seed(0)
    return LayoutConditioner(3, 6, **{"grid": 2, "channels": 4, "palette": COLOURS, **settings})


def halves() -> torch.Tensor:
    """Class 1 on the left, class 2 on the right, (1, 4, 4)."""
    return torch.tensor([1, 1, 2, 2]).repeat(4, 1)[None]


def test_tokens_tell_the_shares_of_each_cell() -> None:
    conditioner = make()
    tokens = conditioner(halves(), (4, 4)).tokens - conditioner.places
    assert tokens.shape == (1, 4, 6)
    for cell, label in ((0, 1), (1, 2), (2, 1), (3, 2)):
        torch.testing.assert_close(tokens[0, cell], conditioner.shares.weight[:, label])
    mixed = halves()
    mixed[0, 0, 0] = 2  # a quarter of the first cell
    tokens = conditioner(mixed, (4, 4)).tokens - conditioner.places
    weight = conditioner.shares.weight
    torch.testing.assert_close(tokens[0, 0], 0.75 * weight[:, 1] + 0.25 * weight[:, 2])


def test_channels_are_a_colour_for_each_class_at_the_images_size() -> None:
    conditioner = make()
    channels = conditioner(halves(), (8, 8)).channels
    assert channels.shape == (1, 4, 8, 8)
    assert torch.equal(channels[0, :, 5, 3], conditioner.colours.weight[1])
    assert torch.equal(channels[0, :, 5, 4], conditioner.colours.weight[2])


def test_beside_latents_a_cell_has_the_mean_colour_of_its_pixels() -> None:
    conditioner, mask = make(), halves()
    mask[0, 1, 1] = 0  # one pixel of the first cell's four
    channels, colours = conditioner(mask, (2, 2)).channels, conditioner.colours.weight
    assert channels.shape == (1, 4, 2, 2)
    torch.testing.assert_close(channels[0, :, 0, 0], 0.75 * colours[1] + 0.25 * colours[0])
    torch.testing.assert_close(channels[0, :, 1, 1], colours[2])
    channels.sum().backward()
    assert conditioner.colours.weight.grad[0].abs().sum() > 0


def test_void_and_nothing_are_said_differently() -> None:
    conditioner = make()
    void, nothing = torch.full((1, 4, 4), 255), conditioner.null_condition(1, (4, 4))
    assert torch.equal(conditioner(void, (4, 4)).channels[0, :, 0, 0], conditioner.colours.weight[3])
    assert torch.equal(conditioner(nothing, (4, 4)).channels[0, :, 0, 0], conditioner.colours.weight[4])
    assert not torch.equal(conditioner(void, (4, 4)).tokens, conditioner(nothing, (4, 4)).tokens)


def test_drop_takes_whole_masks() -> None:
    conditioner = make()
    dropped = conditioner.drop(halves().repeat(300, 1, 1), 0.5, torch.Generator().manual_seed(0))
    null = (dropped == conditioner.null_index).flatten(1)
    assert (null.all(1) | ~null.any(1)).all() and 0.4 < null.all(1).float().mean() < 0.6
    assert torch.equal(dropped[~null.all(1)][0], halves()[0])


def test_channels_alone_and_tokens_alone() -> None:
    assert make(grid=0)(halves(), (4, 4)).tokens is None
    assert make(channels=0)(halves(), (4, 4)).channels is None
    assert LayoutConditioner(3, None)(halves(), (4, 4)).tokens is None
    with pytest.raises(UserError, match="channels=0: must be at least 1 without tokens"):
        LayoutConditioner(3, None, channels=0)


def test_encode_takes_arrays_images_and_tensors_of_any_size() -> None:
    conditioner = make()
    array = halves()[0].numpy().astype(np.uint8)
    image = Image.fromarray(array).resize((8, 8), Image.Resampling.NEAREST)
    palette = Image.fromarray(array).convert("P")
    palette.putdata(array.flatten().tolist())
    for given in (array, image, palette, halves(), [array, image]):
        masks = conditioner.encode(given, (4, 4))
        assert torch.equal(masks[-1], halves()[0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.full((4, 4), 7), r"values in 0\.\.2.* \(got 7\)"),
        (np.full((4, 4), -1), r"values in 0\.\.2.* \(got -1\)"),
        (Image.new("RGB", (4, 4)), r"got mode RGB\). Convert it to indices"),
    ],
)
def test_encode_refuses(given, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make().encode(given, (4, 4))


def test_shown_in_the_colours_of_the_classes() -> None:
    shown = make().visualize(torch.tensor([[[0, 1], [2, 255]]]))
    assert (shown[0, :, 0, 1] * 255).tolist() == [255, 0, 0]
    assert (shown[0, :, 1, 0] * 255).tolist() == [0, 255, 0]
    assert (shown[0, :, 1, 1] * 255).round().tolist() == [128, 128, 128]
    assert make(palette=None).visualize(halves()) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    expected = make()(halves(), (4, 4))
    context = make().to(dtype)(halves(), (4, 4))
    for found, exact in ((context.tokens, expected.tokens), (context.channels, expected.channels)):
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("damage", ["config.json", "cut", "gone"])
def test_damage_is_named(tmp_path, damage: str) -> None:
    make().save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    if damage == "config.json":
        (tmp_path / damage).write_text("{")
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:100])
    else:
        weights.unlink()
    with pytest.raises(UserError, match=str(tmp_path)):
        load_conditioner(tmp_path)


def test_save_and_load(tmp_path) -> None:
    conditioner = make(labels=["a", "b", "c"])
    conditioner.save_pretrained(tmp_path)
    loaded = load_conditioner(tmp_path)
    assert isinstance(loaded, LayoutConditioner) and loaded.labels == ["a", "b", "c"]
    assert torch.equal(loaded(halves(), (4, 4)).tokens, conditioner(halves(), (4, 4)).tokens)
