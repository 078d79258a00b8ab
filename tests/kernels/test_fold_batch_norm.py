"""BatchNorm folded into convolutions, and networks that only answer, against themselves before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from unetdiff.errors import UserError
from unetdiff.export.files import to_onnx
from unetdiff.kernels.accelerate import accelerate_inference_
from unetdiff.kernels.fold_batch_norm import fold_batch_norm
from unetdiff.kernels.packing import can_pack
from unetdiff.models.unet import UNet

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SEGMENTATION = {"segmentation": {"num_classes": 5}}
ENCODERS = {
    "resnet18": {"encoder": {"name": "resnet18"}, "heads": SEGMENTATION},
    "mobilenet_v2, conditioned": {
        "encoder": {"name": "mobilenet_v2", "norm": "frozen"},
        "decoder": {"norm": "frozen"},
        "heads": {**SEGMENTATION, "diffusion": {"out_channels": 3}},
        "conditioning": {"cross_attention_dim": 8},
    },
    "classic, unpadded": {
        "encoder": {"name": "classic", "channels": [4, 4, 4, 4, 4], "norm": "batch", "padding": "valid"},
        "decoder": {"norm": "batch"},
        "heads": SEGMENTATION,
    },
    "classic, unpadded, six levels": {
        "encoder": {"name": "classic", "channels": [4, 4, 4, 4, 4, 4], "norm": "batch", "padding": "valid"},
        "decoder": {"norm": "batch"},
        "heads": SEGMENTATION,
    },
    "residual": {
        "encoder": {"channels": [8, 16]},
        "residual": {"norm_num_groups": 4, "layers_per_block": 1},
        "heads": {"diffusion": {"out_channels": 3}},
    },
}


class Norms(nn.Module):
    """A norm after a convolution, one after another norm, and one after an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.second, self.third = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        for norm in (self.first, self.second, self.third):
            for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
                nn.init.uniform_(tensor, 0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(self.second(self.first(self.conv(x))).relu())


def test_only_what_follows_a_convolution_is_folded() -> None:
    network = Norms().eval()
    expected = network(X)
    assert fold_batch_norm(network, lambda: network(X)) == 1
    assert isinstance(network.first, nn.Identity) and isinstance(network.second, nn.BatchNorm2d)
    torch.testing.assert_close(network(X), expected)


def lively(unet: UNet) -> UNet:
    """With norms that do something, and nothing left at zero."""
    generator = torch.Generator().manual_seed(1)
    for module in unet.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return unet.eval()


def answer(unet: UNet, side: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    images = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(2)).to(dtype)
    head = next(iter(unet.heads))
    with torch.no_grad():
        return unet(images, return_dict=False, head=head)[0]


@pytest.mark.parametrize("name", list(ENCODERS))
def test_a_network_optimized_for_inference_answers_the_same(name: str) -> None:
    torch.manual_seed(0)
    unet = lively(UNet(**ENCODERS[name]))
    side = {"classic, unpadded": 188, "classic, unpadded, six levels": 380}.get(name, 48)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in unet.modules())
    expected = answer(unet, side)
    assert accelerate_inference_(unet) is unet and not unet.training
    torch.testing.assert_close(answer(unet, side), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    left = sum(isinstance(module, nn.BatchNorm2d) for module in unet.modules())
    assert left == 0 and (norms > 0) == (name != "residual")
    assert not any(parameter.requires_grad for parameter in unet.parameters())
    accelerate_inference_(unet, torch.bfloat16)  # once more, and lower
    rough = answer(unet, side, torch.bfloat16)
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - expected).abs().mean() < 0.05 * expected.abs().mean() + 1e-3


@pytest.mark.parametrize("name", ["resnet18", "classic"])
def test_a_head_with_decoder_levels_of_its_own_is_folded_and_packed_whole(name: str) -> None:
    torch.manual_seed(0)
    segmentation = {"num_classes": 3, "own_decoder_levels": 1}
    encoder = {"name": name, "norm": "frozen"} | ({"channels": [4, 8, 8]} if name == "classic" else {})
    unet = UNet(encoder=encoder, decoder={"norm": "frozen"}, heads={"segmentation": segmentation, "diffusion": {}})
    unet = lively(unet)
    images = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def answers() -> list[torch.Tensor]:
        return [unet(images, return_dict=False, head=head)[0] for head in ("segmentation", "diffusion") for _ in "123"]

    expected = answers()
    accelerate_inference_(unet)
    own = unet.heads["segmentation"].own_decoder
    for kind in (nn.BatchNorm2d, *([nn.Conv2d] if can_pack(torch.float32) else [])):
        for part in (own, unet.encoder, unet.decoder):
            assert not any(type(module) is kind for module in part.modules())
    for one, other in zip(answers(), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


@pytest.mark.parametrize(("levels", "patch_size"), [(8, 1), (6, 4)])
def test_a_deep_network_is_folded_by_a_image_that_it_takes(levels: int, patch_size: int) -> None:
    torch.manual_seed(0)
    encoder = {"name": "classic", "channels": [4] * levels, "norm": "batch"}
    unet = lively(UNet(encoder=encoder, decoder={"norm": "batch"}, patch_size=patch_size, heads=SEGMENTATION))
    expected = answer(unet, 256)
    accelerate_inference_(unet)
    torch.testing.assert_close(answer(unet, 256), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_a_network_in_double_precision_is_not_packed() -> None:
    torch.manual_seed(0)
    unet = lively(UNet(**ENCODERS["resnet18"])).double()
    expected = answer(unet, 48, torch.float64)
    accelerate_inference_(unet)
    for _ in range(2):
        torch.testing.assert_close(answer(unet, 48, torch.float64), expected, rtol=1e-5, atol=1e-5)


def test_a_network_in_half_precision_is_folded_in_float32() -> None:
    torch.manual_seed(0)
    dtype = torch.bfloat16
    unet = lively(UNet(**ENCODERS["resnet18"])).to(dtype)
    expected = answer(unet, 48, dtype).float()
    accelerate_inference_(unet)
    assert unet.dtype == dtype and not any(isinstance(module, nn.BatchNorm2d) for module in unet.modules())
    assert (answer(unet, 48, dtype).float() - expected).abs().mean() < 0.05 * expected.abs().mean()


def test_what_was_optimized_is_neither_saved_nor_grown(tmp_path: Path) -> None:
    unet = accelerate_inference_(UNet(**ENCODERS["residual"]))
    for what in (
        lambda: unet.save_pretrained(tmp_path),
        lambda: unet.to_diffusers(tmp_path),
        lambda: unet.add_head("segmentation", num_classes=3),
        lambda: to_onnx(unet, tmp_path / "net.onnx"),
    ):
        with pytest.raises(UserError, match="was optimized for inference"):
            what()
    assert not list(tmp_path.iterdir())
