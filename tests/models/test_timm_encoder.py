"""timm's networks as encoders, and RGB filters for other channels, against timm and segmentation_models_pytorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from unetdiff import UNet
from unetdiff.errors import UserError
from unetdiff.export.files import to_onnx
from unetdiff.kernels.accelerate import accelerate_inference_
from unetdiff.models.blocks import FrozenBatchNorm2d
from unetdiff.models.encoders import IMAGENET_MEAN, IMAGENET_STD
from unetdiff.models.param_groups import parameters_by_level
from unetdiff.models.pretrained import adapt_filters, replace_stem

SEGMENTATION: dict[str, Any] = {"segmentation": {"num_classes": 3}}
NAMES = ["convnext_atto", "mobilenetv3_small_050", "resnet10t"]


def pixels(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("name", NAMES)
def test_maps_are_those_of_timm(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = timm.create_model(name)
    for module in whole.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
    save_file(whole.state_dict(), file := tmp_path / "weights.safetensors")
    theirs = timm.create_model(name, features_only=True)
    names = {key.replace("_", "."): value for key, value in whole.state_dict().items()}
    theirs.load_state_dict({key: names[key.replace("_", ".")] for key in theirs.state_dict()})
    unet = UNet(encoder={"name": f"timm/{name}", "weights": str(file)}, heads=SEGMENTATION).eval()
    image = pixels(2, 3, 64, 96)
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    expected = theirs.eval()((image / 2 + 0.5 - mean) / std)
    features = unet.features(image)
    maps = [value for key, value in features.items() if key.startswith("encoder.")]
    assert len(maps) == len(expected)
    for ours, other in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, other, atol=1e-4, rtol=1e-4)
    assert unet.segment(pixels(1, 3, 45, 67)).shape == (1, 3, 45, 67)
    unet.save_pretrained(tmp_path / "unet")
    again = UNet.from_pretrained(tmp_path / "unet").eval()
    torch.testing.assert_close(again.segment(image), unet.segment(image))


@pytest.mark.parametrize("name", NAMES)
def test_faster_inference_gives_the_same(name: str) -> None:
    torch.manual_seed(0)
    unet = UNet(in_channels=2, encoder={"name": f"timm/{name}"}, heads=SEGMENTATION)
    unet.segment(pixels(4, 2, 64, 64))  # running statistics
    image = pixels(2, 2, 70, 96)
    expected = unet.eval().segment(image).detach()
    torch.testing.assert_close(accelerate_inference_(unet).segment(image), expected, atol=1e-4, rtol=1e-3)


def test_a_channels_last_network_of_windows() -> None:
    unet = UNet(encoder={"name": "timm/swin_s3_tiny_224"}, heads=SEGMENTATION).eval()
    assert [level for level, _ in unet.encoder.skips] == [2, 3, 4]
    assert unet.segment(pixels(1, 3, 70, 96)).shape == (1, 3, 70, 96)


def test_both_heads_and_conditioning() -> None:
    heads = {**SEGMENTATION, "diffusion": {}}
    unet = UNet(encoder={"name": "timm/resnet10t"}, conditioning={"cross_attention_dim": 8}, heads=heads)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in unet.modules())
    logits, noise = unet.both(pixels(1, 3, 64, 64), pixels(2, 3, 64, 64), torch.tensor([3, 7]), torch.randn(2, 4, 8))
    (logits.sum() + noise.square().sum()).backward()
    assert logits.shape == (1, 3, 64, 64) and noise.shape == (2, 3, 64, 64)
    names = {name for group in parameters_by_level(unet).values() for name in group}
    assert names == {name for name, _ in unet.named_parameters() if not name.startswith("heads.")}
    segmenter = UNet(encoder={"name": "timm/mobilenetv3_small_050"}, heads=SEGMENTATION).eval()
    before = segmenter.segment(pixels(1, 3, 64, 64))
    segmenter.add_head("diffusion")
    assert any(isinstance(module, FrozenBatchNorm2d) for module in segmenter.encoder.modules())
    torch.testing.assert_close(segmenter.segment(pixels(1, 3, 64, 64)), before)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/convnext_ato", "Did you mean timm/convnext_atto?"),
        ("timm/vit_tiny_patch16_224", "strides 4, 8, 16 and 32"),
        ("resnet10t", "one of classic, residual, .*, timm/NAME"),
    ],
)
def test_refusals(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        UNet(encoder={"name": name}, heads=SEGMENTATION)


def test_refusals_of_weights(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="must be a file of timm/resnet10t with timm's names"):
        UNet(encoder={"name": "timm/resnet10t", "weights": str(tmp_path / "x.safetensors")}, heads=SEGMENTATION)
    with pytest.raises(UserError, match="model.encoder.weights=imagenet: must be downloaded by timm"):
        UNet(encoder={"name": "timm/resnet10t", "weights": "imagenet"}, heads=SEGMENTATION)
    unet = UNet(encoder={"name": "timm/resnet10t"}, heads=SEGMENTATION)
    with pytest.raises(UserError, match="training.frozen_levels=1: must be 0"):
        unet.freeze_encoder(False, levels=1)


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_filters_for_other_channels(channels: int) -> None:
    weight = torch.randn(5, 3, 3, 3)
    ours = adapt_filters(weight, channels)
    torch.testing.assert_close(ours, timm.models.adapt_input_conv(channels, weight.clone()))
    theirs = nn.Sequential(nn.Conv2d(3, 5, 3))
    theirs[0].weight.data.copy_(weight)
    smp.encoders._utils.patch_first_conv(theirs, channels)
    torch.testing.assert_close(ours, theirs[0].weight)


def test_a_gray_image_gives_what_it_gave_as_rgb() -> None:
    torch.manual_seed(0)
    rgb, gray = (nn.Sequential(nn.Conv2d(3, 5, 3)) for _ in range(2))
    gray.load_state_dict(rgb.state_dict())
    replace_stem(gray, 1, 0, pretrained=True)
    image = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(gray(image), rgb(image.expand(-1, 3, -1, -1)), atol=1e-5, rtol=1e-5)
    replace_stem(rgb, 3, 2, pretrained=True)
    more = torch.cat([image.expand(-1, 3, -1, -1), torch.randn(2, 2, 8, 8)], dim=1)
    torch.testing.assert_close(rgb(more), gray(image), atol=1e-5, rtol=1e-5)


def test_onnx_takes_any_size(tmp_path: Path) -> None:
    unet = UNet(in_channels=2, encoder={"name": "timm/resnet10t"}, heads=SEGMENTATION).eval()
    exported = to_onnx(unet, tmp_path / "net.onnx", preprocess=True)  # compares at sizes that are no multiples of 32
    assert exported.inputs == {"pixels": ["batch", "height", "width", 2]} and len(exported.checked) > 1
