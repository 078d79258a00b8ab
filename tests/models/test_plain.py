"""The network is plain PyTorch: hooks change no number, and higher derivatives and function transforms work.

Those need the math backend of torch's attention: its fused kernels have first derivatives only.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from unetdiff.models.unet import UNet

BOTH = {"segmentation": {"num_classes": 3}, "diffusion": {"out_channels": 3}}
ENCODERS: dict[str, dict[str, Any]] = {
    "residual": {
        "encoder": {"channels": [4, 8]},
        "residual": {"norm_num_groups": 2, "layers_per_block": 1},
        "conditioning": {"cross_attention_dim": 4, "attention_head_dim": 4},
    },
    "classic": {"encoder": {"name": "classic", "channels": [2, 4]}},
    "resnet18": {"encoder": {"name": "resnet18", "norm": "group"}, "decoder": {"channels": [4] * 5}},
}


@pytest.fixture(params=ENCODERS)
def unet(request: pytest.FixtureRequest) -> UNet:
    """A tiny float64 network without zero parameters."""
    torch.manual_seed(0)
    unet = UNet(**ENCODERS[request.param], heads=BOTH).double().eval()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return unet


def pixels(unet: UNet) -> Tensor:
    side = 32 if unet.config["encoder"]["name"] == "resnet18" else 4
    return torch.randn(1, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def outputs(unet: UNet, x: Tensor) -> list[Tensor]:
    dim = unet.config["conditioning"]["cross_attention_dim"]
    context = torch.ones(len(x), 2, dim, dtype=torch.float64) if dim else None
    return [unet(x, 7, context, return_dict=False, head=head)[0] for head in unet.heads]  # type: ignore[arg-type]


def test_hooks_on_every_module_change_no_number(unet: UNet) -> None:
    x = pixels(unet)
    expected = outputs(unet, x)
    for module in unet.modules():
        module.register_forward_hook(lambda *_: None)
        module.register_forward_pre_hook(lambda *_: None)
    assert all(torch.equal(a, b) for a, b in zip(outputs(unet, x), expected, strict=True))


def test_double_backward(unet: UNet) -> None:
    """The directional second derivative by double backward is that of forward over reverse mode."""
    x = pixels(unet).requires_grad_()
    direction = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def loss(x: Tensor) -> Tensor:
        return torch.stack([output.square().sum() for output in outputs(unet, x)]).sum()

    gradient = torch.autograd.grad(loss(x), x, create_graph=True)[0]
    second = torch.autograd.grad((gradient * direction).sum(), x)[0]
    _, expected = torch.func.jvp(torch.func.grad(loss), (x.detach(),), (direction,))
    torch.testing.assert_close(second, expected)


def test_function_transforms(unet: UNet) -> None:
    """Per-sample gradients by vmap of grad are those of a loop; jvp is the gradient along a direction."""
    parameters = {name: parameter.detach() for name, parameter in unet.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        arguments = (x[None], 7)
        out = torch.func.functional_call(unet, parameters, arguments, {"return_dict": False})[0]
        return out.square().sum()

    images = torch.cat([pixels(unet), pixels(unet).flip(-1)])
    by_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, images)
    for index, image in enumerate(images):
        for name, gradient in torch.func.grad(loss)(parameters, image).items():
            torch.testing.assert_close(by_sample[name][index], gradient)
    direction = torch.ones_like(images[0])
    _, along = torch.func.jvp(lambda x: loss(parameters, x), (images[0],), (direction,))
    x = images[0].clone().requires_grad_()
    gradient = torch.autograd.grad(loss(parameters, x), x)[0]
    torch.testing.assert_close(along, (gradient * direction).sum())
