"""smp's own networks, loaded: the same image gives the same logits, and what is not the same network is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from unetdiff.errors import UserError
from unetdiff.export.convert.smp import PRETRAINED_ENCODERS
from unetdiff.models.unet import UNet

smp = pytest.importorskip("segmentation_models_pytorch")  # in the dev extra: here it is always there

MEAN, STD = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]
SMALL = {"encoder_weights": None, "decoder_channels": (16, 12, 10, 8, 6), "classes": 4}


def trained(encoder: str = "resnet18", **options: Any) -> nn.Module:
    """An smp.Unet whose norms have seen images, in eval mode."""
    torch.manual_seed(0)
    model = smp.Unet(encoder, **{**SMALL, **options})
    channels = options.get("in_channels", 3)
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(2, channels, 64, 64))
        for parameter in model.parameters():  # no norm is the identity, and no bias nothing
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    """With smp's defaults, for tests that leave it as it is."""
    return trained()


def image(size: tuple[int, int] = (64, 96)) -> Tensor:
    """uint8 (2, 3, H, W)."""
    return torch.randint(0, 256, (2, 3, *size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def logits(model: nn.Module, unet: UNet, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Of a uint8 image, as each library is given it."""
    with torch.inference_mode():
        return unet.segment(pixels / 127.5 - 1), model((pixels / 255 - MEAN) / STD)


def same(actual: Tensor, reference: Tensor) -> None:
    """Equal in float32: random networks enlarge the rounding of each library's normalisation."""
    torch.testing.assert_close(actual, reference, rtol=0, atol=1e-4 * max(1.0, float(reference.std())))


@pytest.mark.parametrize("encoder", PRETRAINED_ENCODERS)
def test_the_same_image_gives_the_same_logits(encoder: str) -> None:
    model = trained(encoder, decoder_channels=(256, 128, 64, 32, 16))
    unet = UNet.from_smp(model)
    assert not unet.training and unet.config["encoder"]["name"] == encoder
    assert sum(p.numel() for p in unet.parameters()) == sum(p.numel() for p in model.parameters())
    same(*logits(model, unet, image()))
    exact = UNet.from_smp(model, statistics="none").to(torch.float64)  # without ImageNet's rounded constants
    model.to(torch.float64)
    for size in ((64, 96), (37, 45)):
        pixels = image(size).to(torch.float64)
        with torch.inference_mode():
            actual, reference = exact.segment(pixels / 127.5 - 1), model(pixels / 255)
        assert reference.std() > 0.05
        torch.testing.assert_close(actual, reference, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {"decoder_interpolation": "bilinear"},
        {"decoder_use_norm": False},
        {"decoder_use_norm": {"type": "batchnorm"}},
        {"activation": "identity", "classes": 1},
    ],
)
def test_options_in_common(options: dict[str, Any]) -> None:
    model = trained(**options)
    same(*logits(model, UNet.from_smp(model), image()))


def test_more_input_channels_stay_as_they_are_given() -> None:
    model, pixels, more = trained(in_channels=5), image(), torch.randn(2, 2, 64, 96)
    unet = UNet.from_smp(model)
    with torch.inference_mode():
        actual = unet.segment(torch.cat([pixels / 127.5 - 1, more], dim=1))
        reference = model(torch.cat([(pixels / 255 - MEAN) / STD, more], dim=1))
    same(actual, reference)


def test_pixels_without_imagenets_statistics(plain: nn.Module) -> None:
    unet = UNet.from_smp(plain, statistics="none")
    with torch.inference_mode():
        actual, reference = unet.segment(image() / 127.5 - 1), plain(image() / 255)
    same(actual, reference)


def test_a_binary_model_gets_a_background(plain: nn.Module) -> None:
    model = trained(classes=1)
    actual, reference = logits(model, UNet.from_smp(model, background=True), image())
    assert actual.shape[1] == 2
    same(actual.softmax(dim=1)[:, 1:], reference.sigmoid())
    sure = reference.abs() > 1e-3
    assert torch.equal((actual.argmax(dim=1, keepdim=True) == 1)[sure], (reference > 0)[sure])
    with pytest.raises(UserError, match="background=true: must be false for the model, which has 4 classes"):
        UNet.from_smp(plain, background=True)


def test_from_wherever_the_model_comes(tmp_path: Path) -> None:
    model = trained(decoder_interpolation="bilinear")
    model.save_pretrained(tmp_path / "saved")
    state = model.state_dict()
    save_file({f"model.{name}": tensor for name, tensor in state.items()}, tmp_path / "wrapped.safetensors")
    expected, reference = logits(model, UNet.from_smp(model), image())
    same(expected, reference)
    for source, options in (
        (tmp_path / "saved", {}),
        (str(tmp_path / "wrapped.safetensors"), {"upsample": "bilinear"}),
        ({f"module.{name}": tensor for name, tensor in state.items()}, {"upsample": "bilinear"}),
    ):
        assert torch.equal(logits(model, UNet.from_smp(source, **options), image())[0], expected)
    assert not torch.allclose(logits(model, UNet.from_smp(state), image())[0], expected, atol=1e-3)  # nearest


def test_goes_on_as_any_unet(plain: nn.Module, tmp_path: Path) -> None:
    unet = UNet.from_smp(plain)
    unet.save_pretrained(tmp_path)
    again = UNet.from_pretrained(tmp_path)
    actual, reference = logits(plain, again, image())
    assert torch.equal(actual, logits(plain, unet, image())[0])
    again.add_head("diffusion", out_channels=3)
    actual, reference = logits(plain, again, image())
    same(actual, reference)
    again.train().segment(image() / 127.5 - 1).square().mean().backward()
    assert all(p.grad is not None for name, p in again.named_parameters() if name.startswith("encoder.model"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"decoder_attention_type": "scse"}, "decoder_attention_type=scse: must be null. Train with"),
        ({"encoder_depth": 4, "decoder_channels": (16, 12, 10, 8)}, "encoder_depth=4: must be 5"),
        ({"aux_params": {"classes": 3}}, "aux_params=.*: must be null"),
        ({"decoder_interpolation": "bicubic"}, "decoder_interpolation=bicubic: must be nearest or bilinear"),
        ({"decoder_use_norm": {"type": "batchnorm", "eps": 0.1}}, "decoder_use_norm=.*eps: 0.1.*: must be true"),
        ({"encoder_name": "efficientnet-b0"}, "encoder_name=efficientnet-b0: must be resnet18 or"),
    ],
)
def test_what_has_no_equal_is_refused_by_name(options: dict[str, Any], says: str) -> None:
    model = smp.Unet(**{"encoder_name": "resnet18", **SMALL, **options})
    with pytest.raises(UserError, match=says):
        UNet.from_smp(model)
    if not {"decoder_interpolation", "decoder_use_norm"} & options.keys():  # the tensors alone tell
        with pytest.raises(UserError, match="must be"):
            UNet.from_smp(model.state_dict())


@pytest.mark.parametrize("activation", ["sigmoid", nn.Sigmoid])
def test_an_activation_is_refused_and_has_no_tensors(activation: Any) -> None:
    model = trained(activation=activation)
    with pytest.raises(UserError, match="(?i)activation=sigmoid: must be null"):
        UNet.from_smp(model)
    actual, reference = logits(model, UNet.from_smp(model.state_dict()), image())
    same(actual.sigmoid(), reference)


def test_other_decoders_are_refused_by_name(plain: nn.Module, tmp_path: Path) -> None:
    model = smp.FPN("resnet18", encoder_weights=None)
    model.save_pretrained(tmp_path)
    for source, says in (
        (model, "model_class=FPN: must be Unet"),
        (tmp_path, "model_class=FPN: must be Unet"),
        (model.state_dict(), "must be an smp.Unet"),
        (plain.encoder, "model_class=ResNetEncoder: must be Unet"),
        (plain.encoder.state_dict(), "must be an smp.Unet"),
    ):
        with pytest.raises(UserError, match=says):
            UNet.from_smp(source)


def test_norms_without_statistics_and_foreign_tensors_are_refused(plain: nn.Module) -> None:
    state = plain.state_dict()
    inplace = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    with pytest.raises(UserError, match="decoder_use_norm=.*not BatchNorm.*: must be true"):
        UNet.from_smp(inplace)
    with pytest.raises(UserError, match="the state dict does not fit this model: 1 unexpected: decoder.center"):
        UNet.from_smp({**state, "decoder.center": torch.zeros(1)})


def test_pickles_are_refused_with_the_way_to_convert_them(plain: nn.Module, tmp_path: Path) -> None:
    torch.save(plain.state_dict(), tmp_path / "best.pth")
    with pytest.raises(UserError, match=r"best.pth: .*got a pickle.*torch.load\('best.pth'.*'best.safetensors'"):
        UNet.from_smp(tmp_path / "best.pth")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "best.pth").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="model.safetensors: no such file or directory. pytorch_model.bin is a pickle"):
        UNet.from_smp(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        UNet.from_smp(tmp_path / "nowhere.safetensors")
