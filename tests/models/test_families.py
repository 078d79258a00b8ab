"""Tests that every encoder must pass with every head and condition: one class per encoder inherits them."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from unetdiff.errors import UserError
from unetdiff.models.unet import UNet

CLASSES, CONTEXT, SIZE, ODD = 5, 12, (64, 64), (37, 45)
HEADS = {
    "segmentation": {"segmentation": {"num_classes": CLASSES}},
    "diffusion": {"diffusion": {"out_channels": 3}},
    "both": {"segmentation": {"num_classes": CLASSES}, "diffusion": {"out_channels": 3}},
}
CONDITIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "conditioned": {
        "timestep": True,
        "cross_attention_dim": CONTEXT,
        "attention_head_dim": 8,
        "pooled_context": True,
    },
}
IMPORTED: dict[str, dict[str, Any]] = {"plain": {}, "conditioned": {"num_class_embeds": 4}}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for name, kinds in (("kind", "kinds"), ("costly_kind", "costly_kinds")):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, getattr(metafunc.cls, kinds))


class FamilyTester:
    """Subclasses name the encoder (and how small the rest can be)."""

    encoder: ClassVar[dict[str, Any]]
    decoder: ClassVar[dict[str, Any]] = {"channels": [16, 16, 8, 8, 8]}
    kinds: ClassVar[list[str]] = [f"{head}-{condition}" for head in HEADS for condition in CONDITIONS]
    """Heads and conditions."""
    costly_kinds: ClassVar[list[str]] = ["segmentation-plain", "both-conditioned"]
    """Those of the tests that take long: with nothing, and with everything."""

    @pytest.fixture
    def unet(self, kind: str) -> UNet:
        return self.build_kind(kind)

    def build_kind(self, kind: str) -> UNet:
        heads, condition = kind.split("-")
        torch.manual_seed(0)
        return self.build(heads, condition)

    def build(self, heads: str, condition: str, **encoder: Any) -> UNet:
        return UNet(
            encoder={**self.encoder, **encoder},
            decoder=self.decoder,
            residual={"norm_num_groups": 4, "layers_per_block": 1},
            conditioning=CONDITIONS[condition],
            heads=HEADS[heads],
            imported=IMPORTED[condition],
        )

    def run(self, unet: UNet, size: tuple[int, int] = SIZE, batch: int = 2) -> list[Tensor]:
        """The output of every head, with every condition the model can be given."""
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(batch, 3, *size, generator=generator)
        conditioning = unet.config["conditioning"]
        timestep = torch.arange(10, 10 + batch) if conditioning["timestep"] else None
        context = torch.randn(batch, 3, CONTEXT, generator=generator) if conditioning["cross_attention_dim"] else None
        labels = torch.arange(batch) if unet.config["imported"]["num_class_embeds"] else None
        return [unet(x, timestep, context, labels, head=head).sample for head in unet.heads]  # type: ignore[arg-type]

    def channels(self, unet: UNet) -> list[int]:
        return [CLASSES if head == "segmentation" else 3 for head in unet.heads]

    def test_shapes_and_backward(self, unet: UNet) -> None:
        _leave_zero(unet)
        unet.train()
        outputs = self.run(unet)
        assert [tuple(o.shape) for o in outputs] == [(2, c, *SIZE) for c in self.channels(unet)]
        sum(o.square().mean() for o in outputs).backward()  # type: ignore[union-attr]
        silent = [n for n, p in unet.named_parameters() if p.grad is None]
        assert silent == []
        assert all(p.grad.isfinite().all() for p in unet.parameters())  # type: ignore[union-attr]
        assert unet.encoder.freezable_modules()[0].parameters().__next__().grad.abs().sum() > 0  # type: ignore[union-attr]

    @pytest.mark.parametrize("condition", CONDITIONS)
    def test_both_heads_in_one_pass_equal_two(self, condition: str) -> None:
        torch.manual_seed(0)
        unet = self.build("both", condition)
        _leave_zero(unet)
        unet.train().to(torch.float64)
        for module in unet.modules():  # nothing random: some trunks drop whole blocks
            module.training = module.training and "Stochastic" not in type(module).__name__
        clean, noisy = torch.randn(2, 3, *ODD, dtype=torch.float64), torch.randn(3, 3, *ODD, dtype=torch.float64)
        timestep = torch.tensor([3, 500, 999])
        dim = unet.config["conditioning"]["cross_attention_dim"]
        context = torch.randn(3, 2, CONTEXT, dtype=torch.float64) if dim else None
        with torch.no_grad():
            logits, output = unet.both(clean, noisy, timestep, context)
            torch.testing.assert_close(logits, unet.segment(clean))
            torch.testing.assert_close(output, unet(noisy, timestep, context).sample)

    def test_any_size(self, unet: UNet) -> None:
        unet.eval()
        for size in (ODD, (32, 33), (50, 96)):
            with torch.inference_mode():
                outputs = self.run(unet, size, batch=1)
            assert [tuple(o.shape) for o in outputs] == [(1, c, *size) for c in self.channels(unet)]

    def test_save_and_load(self, unet: UNet, tmp_path) -> None:
        _leave_zero(unet)
        unet.eval().save_pretrained(tmp_path)
        again = UNet.from_pretrained(tmp_path)
        assert not again.training
        assert _dict(again) == _dict(unet)
        with torch.inference_mode():
            for actual, reference in zip(self.run(unet), self.run(again), strict=True):
                assert torch.equal(actual, reference)

    def test_gradient_checkpointing_equals_plain(self, costly_kind: str) -> None:
        unet = self.build_kind(costly_kind)
        _leave_zero(unet)
        state = {k: v.clone() for k, v in unet.state_dict().items()}
        gradients, buffers = [], []
        for recompute in (False, True):
            unet.load_state_dict(state)
            unet.zero_grad()
            unet.gradient_checkpointing = recompute
            unet.train()
            torch.manual_seed(3)  # some trunks drop whole blocks at random (stochastic depth)
            sum(o.square().mean() for o in self.run(unet)).backward()  # type: ignore[union-attr]
            gradients.append([p.grad.clone() for p in unet.parameters()])  # type: ignore[union-attr]
            buffers.append([b.clone() for b in unet.buffers()])
        for plain, recomputed in zip(*gradients, strict=True):
            torch.testing.assert_close(recomputed, plain, rtol=1e-4, atol=1e-6)
        for plain, recomputed in zip(*buffers, strict=True):
            assert torch.equal(plain, recomputed)

    def test_bf16_autocast_and_channels_last(self, unet: UNet) -> None:
        unet.eval().to(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            outputs = self.run(unet)
        assert all(o.isfinite().all() for o in outputs)

    def test_export(self, costly_kind: str) -> None:
        unet = self.build_kind(costly_kind)
        _leave_zero(unet)
        unet.eval()
        x = torch.randn(2, 3, *SIZE)
        conditioning = unet.config["conditioning"]
        timestep = torch.tensor([3, 700]) if conditioning["timestep"] else None
        context = torch.randn(2, 3, CONTEXT) if conditioning["cross_attention_dim"] else None
        arguments = (x, timestep, context, None, False, next(iter(unet.heads)))
        with torch.no_grad():
            exported = torch.export.export(unet, arguments, strict=False).module()
            torch.testing.assert_close(exported(*arguments)[0], unet(*arguments)[0], rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("condition", CONDITIONS)
    def test_added_head_keeps_weights_and_logits(self, condition: str) -> None:
        torch.manual_seed(0)
        unet = self.build("segmentation", condition)
        self.run(unet.train())  # move the BatchNorm statistics
        unet.eval()
        before, x = {k: v.clone() for k, v in unet.state_dict().items()}, torch.randn(2, 3, *ODD)
        with torch.inference_mode():
            logits = unet.segment(x)
            unet.add_head("diffusion", out_channels=4)
            after = unet.state_dict()
            assert all(torch.equal(after[k], v) for k, v in before.items())
            torch.testing.assert_close(unet.segment(x), logits, rtol=1e-5, atol=1e-5)  # kernels may differ by memory
            assert unet(x, 7).sample.shape == (2, 4, *ODD)
        with pytest.raises(UserError, match="has a diffusion head already"):
            unet.add_head("diffusion", out_channels=4)

    def test_features_are_named(self) -> None:
        unet = self.build("segmentation", "plain").eval()
        with torch.inference_mode():
            maps = unet.features(torch.randn(1, 3, *SIZE))
        assert maps["last"].shape[-2:] == SIZE
        assert any(name.startswith("encoder.") for name in maps)
        assert any(name.startswith("decoder.") for name in maps)


def _leave_zero(unet: UNet) -> None:
    """Move every zero-initialised tensor, so that each path matters."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in unet.parameters():
            if not parameter.any():
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))


def _dict(unet: UNet) -> dict[str, Any]:
    return {k: v for k, v in unet.config.items() if not k.startswith("_")}


class TestClassic(FamilyTester):
    encoder: ClassVar = {"name": "classic", "channels": [8, 12, 16]}
    decoder: ClassVar = {}


class TestClassicBilinearNoNorm(TestClassic):
    encoder: ClassVar = {"name": "classic", "channels": [8, 12, 16], "norm": "none"}
    decoder: ClassVar = {"norm": "none", "upsample": "bilinear"}


class TestResidual(FamilyTester):
    encoder: ClassVar = {"name": "residual", "channels": [8, 16, 16]}
    decoder: ClassVar = {}


class TestResidualADM(TestResidual):
    """ADM's choices: resampling inside residual blocks, scale and shift by the timestep."""

    def build(self, heads: str, condition: str, **encoder: Any) -> UNet:
        return UNet(
            encoder={**self.encoder, **encoder},
            residual={
                "norm_num_groups": 4,
                "time_scale_shift": "scale_shift",
            },
            conditioning=CONDITIONS[condition],
            heads=HEADS[heads],
            imported={"resample": "resnet", "linear_projection": True, **IMPORTED[condition]},
        )


class TestResidualPatches(TestResidual):
    """Squares of 2 x 2 pixels as channels."""

    def build(self, heads: str, condition: str, **encoder: Any) -> UNet:
        return UNet(
            patch_size=2,
            encoder={**self.encoder, **encoder},
            residual={"norm_num_groups": 4, "layers_per_block": 1},
            conditioning=CONDITIONS[condition],
            heads=HEADS[heads],
            imported=IMPORTED[condition],
        )

    def test_features_are_named(self) -> None:
        unet = self.build("segmentation", "plain").eval()
        with torch.inference_mode():
            assert unet.features(torch.randn(1, 3, 36, 44))["last"].shape[-2:] == (18, 22)


class PretrainedTester(FamilyTester):
    """A trained BatchNorm, and frozen ones with every condition; what stands between them is tested on resnet18."""

    kinds: ClassVar = FamilyTester.costly_kinds
    costly_kinds: ClassVar = ["both-conditioned"]


class DeeperTester(PretrainedTester):
    """More of the same blocks as a shallower encoder, which is tested in full."""

    kinds: ClassVar = ["both-conditioned"]
    costly_kinds: ClassVar = []


class TestResNet18(PretrainedTester):
    encoder: ClassVar = {"name": "resnet18"}
    kinds: ClassVar = FamilyTester.kinds
    costly_kinds: ClassVar = FamilyTester.costly_kinds


class TestResNet34(DeeperTester):
    encoder: ClassVar = {"name": "resnet34"}


class TestResNet50(PretrainedTester):
    encoder: ClassVar = {"name": "resnet50"}


class TestResNet101(DeeperTester):
    encoder: ClassVar = {"name": "resnet101"}


class TestMobileNetV2(PretrainedTester):
    encoder: ClassVar = {"name": "mobilenet_v2"}


class TestMobileNetV3(PretrainedTester):
    encoder: ClassVar = {"name": "mobilenet_v3_large"}


class TestEfficientNet(PretrainedTester):
    encoder: ClassVar = {"name": "efficientnet_b0"}


class TestConvNeXt(PretrainedTester):
    encoder: ClassVar = {"name": "convnext_tiny"}
