"""The network against its published geometries, and bad files."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from unetdiff.errors import UserError
from unetdiff.models.pretrained import load_pretrained_encoder
from unetdiff.models.unet import UNet

SEGMENTATION = {"segmentation": {"num_classes": 5}}
HEADS_BOTH = {**SEGMENTATION, "diffusion": {"out_channels": 3}}
TINY = {"encoder": {"channels": [8, 16]}, "residual": {"norm_num_groups": 4, "layers_per_block": 1}}


def test_reference_geometry_has_the_published_size_and_cost() -> None:
    unet = UNet(
        encoder={"name": "resnet50"},
        decoder={
            "channels": [512, 256, 128, 64, 64],
            "norm": "none",
            "upsample": "bilinear",
            "align_corners": True,
        },
        heads={"segmentation": {"num_classes": 21}},
    ).eval()
    assert sum(p.numel() for p in unet.parameters()) / 1e6 == pytest.approx(43.93, abs=0.005)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        unet.segment(torch.zeros(1, 3, 256, 256))
    assert counter.get_total_flops() / 2e9 == pytest.approx(22.94, abs=0.005)


def test_2015_network_maps_572_to_388_with_its_31_million_parameters() -> None:
    unet = UNet(
        in_channels=1,
        encoder={"name": "classic", "padding": "valid", "norm": "none"},
        decoder={"norm": "none"},
        heads={"segmentation": {"num_classes": 2}},
    ).eval()
    widths = [1, 64, 128, 256, 512, 1024]
    down = sum(9 * a * b + b + 9 * b * b + b for a, b in zip(widths, widths[1:], strict=False))
    up = sum(4 * 2 * c * c + c + 9 * 2 * c * c + c + 9 * c * c + c for c in widths[1:-1])
    assert sum(p.numel() for p in unet.parameters()) == down + up + 64 * 2 + 2
    with torch.inference_mode():
        assert unet.segment(torch.zeros(1, 1, 572, 572)).shape == (1, 2, 388, 388)


def test_valid_logits_are_the_center_of_the_image() -> None:
    """A pixel's logits come from its own surroundings: shifting the image by the pooling stride shifts the logits."""
    torch.manual_seed(0)
    unet = UNet(encoder={"name": "classic", "padding": "valid", "channels": [4, 4, 4]}, heads=SEGMENTATION).eval()
    x = torch.randn(1, 3, 96, 96)
    with torch.inference_mode():
        here, there = unet.segment(x[..., :92]), unet.segment(x[..., 4:])
    torch.testing.assert_close(here[..., 4:], there[..., :-4])


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "convnext_tiny", "classic"])
def test_conditioning_changes_nothing_at_initialisation(name: str) -> None:
    channels = {"channels": [8, 16, 16]} if name == "classic" else {}
    conditioning, imported = {"timestep": True, "cross_attention_dim": 16}, {"num_class_embeds": 3}
    plain = UNet(encoder={"name": name, **channels}, heads=SEGMENTATION).eval()
    conditioned = UNet(
        encoder={"name": name, **channels}, conditioning=conditioning, heads=SEGMENTATION, imported=imported
    ).eval()
    missing, unexpected = conditioned.load_state_dict(plain.state_dict(), strict=False)
    assert missing and not unexpected
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        logits = conditioned.segment(x, torch.tensor([1, 900]), torch.randn(2, 4, 16), torch.tensor([0, 2]))
        torch.testing.assert_close(logits, plain.segment(x), rtol=0, atol=0)


def test_a_pretrained_encoder_has_torchvisions_feature_maps(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = torchvision.models.resnet50().eval()
    file = tmp_path / "resnet50.safetensors"
    save_file(reference.state_dict(), file)
    with pytest.warns(UserWarning, match="resnet50.safetensors: ignoring the classifier's tensors fc.bias, fc.weight"):
        unet = UNet(encoder={"name": "resnet50", "weights": str(file)}, heads=SEGMENTATION).eval()
    pixels = torch.rand(1, 3, 64, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    h = reference.relu(reference.bn1(reference.conv1((pixels - mean[:, None, None]) / std[:, None, None])))
    maps = [h]
    h = reference.maxpool(h)
    for layer in (reference.layer1, reference.layer2, reference.layer3, reference.layer4):
        h = layer(h)
        maps.append(h)
    with torch.inference_mode():
        maps_ = unet.features(pixels * 2 - 1)
    for level, expected in enumerate(maps, start=1):
        torch.testing.assert_close(maps_[f"encoder.{level}"], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("levels", "mid_block", "blocks"),
    [
        ([1], None, (2, 1)),
        ([0], None, (2, 0)),
        ([0], "attention", (2, 1)),
        ([1], "resnet", (1, 0)),
        ([1], "none", (0, 0)),
    ],
)
def test_the_mid_block_attends_if_the_deepest_level_does_or_as_configured(
    levels: list[int], mid_block: str | None, blocks: tuple[int, int]
) -> None:
    conditioning = {"attention_levels": levels, "attention_head_dim": 8}
    residual = {**TINY["residual"], "mid_block": mid_block}
    unet = UNet(encoder=TINY["encoder"], residual=residual, conditioning=conditioning, heads=SEGMENTATION).eval()
    assert (len(unet.mid_block.resnets), len(unet.mid_block.attentions)) == blocks
    with torch.no_grad():
        assert unet.segment(torch.randn(1, 3, 9, 11)).shape == (1, 5, 9, 11)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "convnext_tiny"])
def test_torchvisions_tensors_are_loaded_by_name(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    file, whole = tmp_path / "encoder.safetensors", torchvision.models.get_model(name).state_dict()
    save_file(whole, file)
    with pytest.warns(UserWarning, match="ignoring the classifier's tensors"):
        encoder = load_pretrained_encoder(name, str(file)).state_dict()
    assert whole.keys() - encoder.keys() == {key for key in whole if key.split(".")[0] in ("fc", "classifier")}
    assert all(torch.equal(tensor, whole[key]) for key, tensor in encoder.items())
    save_file(encoder, file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the encoder alone: nothing is ignored
        load_pretrained_encoder(name, str(file))


def test_frozen_encoder_keeps_weights_and_statistics_through_train() -> None:
    torch.manual_seed(0)
    unet = UNet(encoder={"name": "resnet18"}, decoder={"channels": [8] * 5}, heads=SEGMENTATION)
    unet.freeze_encoder()
    before = {k: v.clone() for k, v in unet.encoder.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], lr=0.1)
    unet.train()
    unet.segment(torch.randn(2, 3, 64, 64)).square().mean().backward()
    optimizer.step()
    assert all(torch.equal(v, before[k]) for k, v in unet.encoder.state_dict().items())
    unet.freeze_encoder(False)
    unet.train()
    unet.segment(torch.randn(2, 3, 64, 64))
    assert any(not torch.equal(v, before[k]) for k, v in unet.encoder.state_dict().items())


@pytest.mark.parametrize("encoder", [{"name": "resnet18"}, {"name": "classic", "channels": [8, 12, 16]}])
def test_frozen_levels_stay_as_they_are_and_the_rest_learns(encoder: dict) -> None:
    torch.manual_seed(0)
    unet = UNet(encoder={**encoder, "norm": "batch"}, heads=SEGMENTATION)
    unet.freeze_encoder(False, levels=1)
    rest = [parameter for parameter in unet.encoder_parameters() if parameter.requires_grad]
    frozen = {k: v.clone() for m in unet.encoder.level_modules(1) for k, v in m.state_dict(keep_vars=True).items()}
    assert frozen and rest and all(not v.requires_grad for v in frozen.values() if v.is_floating_point())
    unet.train()
    unet.segment(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in rest)
    after = {k: v for m in unet.encoder.level_modules(1) for k, v in m.state_dict().items()}
    assert all(torch.equal(v, after[k]) for k, v in frozen.items())


def test_a_decoder_that_stops_early_enlarges_its_logits() -> None:
    torch.manual_seed(0)
    unet = UNet(encoder={"name": "resnet18"}, decoder={"channels": [16, 12, 8]}, heads=SEGMENTATION).eval()
    with torch.inference_mode():
        x = torch.randn(1, 3, 66, 45)
        assert unet.features(x)["last"].shape == (1, 8, 17, 12)  # a quarter, rounded up
        logits = unet.segment(x)
        small = unet.heads["segmentation"](unet.features(x)["last"])
        expected = torch.nn.functional.interpolate(small, size=(66, 45), mode="bilinear", align_corners=False)
    torch.testing.assert_close(logits, expected)
    for heads, error in ((HEADS_BOTH, "must be 5 values"), (SEGMENTATION, "1 to 5 values")):
        with pytest.raises(UserError, match=error):
            UNet(
                encoder={"name": "resnet18"},
                decoder={"channels": [8] * (6 if heads is SEGMENTATION else 3)},
                heads=heads,
            )


def test_patches_and_a_decoder_that_stops_early_have_logits_of_the_images_size() -> None:
    torch.manual_seed(0)
    encoder = {"name": "classic", "channels": [8, 12, 16]}
    unet = UNet(encoder=encoder, patch_size=2, decoder={"channels": [12]}, heads=SEGMENTATION).eval()
    x = torch.randn(1, 3, 33, 46)
    with torch.inference_mode():
        logits = unet.segment(x)
        small = torch.nn.functional.pixel_shuffle(unet.heads["segmentation"](unet.features(x)["last"]), 2)
        expected = torch.nn.functional.interpolate(small, size=(34, 46), mode="bilinear", align_corners=False)
    assert small.shape == (1, 5, 16, 22)
    torch.testing.assert_close(logits, expected[..., :33, :])


def test_without_a_head_named_the_only_one_answers_or_the_diffusion_head() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 16, 16)
    with torch.inference_mode():
        for heads, head in (
            (SEGMENTATION, "segmentation"),
            (HEADS_BOTH, "diffusion"),
            ({"diffusion": {}}, "diffusion"),
        ):
            unet = UNet(**TINY, heads=heads).eval()
            assert torch.equal(unet(x).sample, unet(x, head=head).sample)


@pytest.mark.parametrize("encoder", [TINY, {"encoder": {"name": "classic", "channels": [8, 12, 16]}}])
def test_a_frozen_encoder_keeps_its_added_conditioning_trainable(encoder: dict) -> None:
    conditioning = {"cross_attention_dim": 8, "attention_levels": [0, 1]}
    residual = "residual" in encoder  # whose attention cannot be added afterwards
    unet = UNet(**encoder, conditioning=conditioning if residual else {}, heads=SEGMENTATION)
    unet.freeze_encoder()
    unet.add_head("diffusion", out_channels=3, **({} if residual else {"cross_attention_dim": 8}))
    for frozen, levels in ((True, 0), (False, 1)):
        unet.freeze_encoder(frozen, levels)
        names = {name for name, p in unet.named_parameters() if not p.requires_grad}
        conditions = ("time_emb_proj", ".time.", "attn2")
        assert names and not any(part in name for name in names for part in conditions)
        assert all(name.startswith("encoder.") for name in names)
    learning = {id(p) for p in unet.encoder_parameters()}
    added = [name for name, p in unet.encoder.named_parameters() if id(p) not in learning]
    assert any("time" in name for name in added) and any("attn2" in name for name in added)


def test_none_is_timestep_zero_and_no_condition_is_one_zero_token() -> None:
    torch.manual_seed(0)
    unet = UNet(**TINY, conditioning={"timestep": True, "cross_attention_dim": 8}, heads=SEGMENTATION).eval()
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x = torch.randn(1, 3, 16, 16)
    with torch.inference_mode():
        explicit = unet.segment(x, 0, torch.zeros(1, 1, 8))
        assert torch.equal(unet.segment(x), explicit)
        assert not torch.equal(unet.segment(x, 500), explicit)


class TestRefusals:
    @pytest.mark.parametrize(
        ("config", "says"),
        [
            ({"heads": {}}, "heads: must have segmentation, diffusion or both"),
            (
                {"encoder": {"name": "resnet51"}, "heads": SEGMENTATION},
                "encoder.name=resnet51: .* mean resnet50",
            ),
            (
                {"encoder": {"familly": "resnet50"}, "heads": SEGMENTATION},
                "encoder.familly: unknown key. The keys are channels, ",
            ),
            (
                {"encoder": {"wieghts": None}, "heads": SEGMENTATION},
                "encoder.wieghts: unknown key. Did you mean encoder.weights",
            ),
            (
                {"encoder": {"norm": "layer", "name": "classic"}, "heads": SEGMENTATION},
                "encoder.norm=layer: must be one of none, batch",
            ),
            (
                {"encoder": {"weights": "imagenet"}, "heads": SEGMENTATION},
                "encoder.weights=imagenet: must be null",
            ),
            (
                {"encoder": {"name": "classic", "norm": "batch"}, "heads": {"diffusion": {}}},
                "frozen or group",
            ),
            (
                {"encoder": {"name": "classic", "padding": "valid"}, "heads": {"diffusion": {}}},
                "encoder.padding=valid: must be same with a diffusion head",
            ),
            (
                {"encoder": {"name": "resnet18", "weights": "nowhere"}, "heads": SEGMENTATION},
                "nowhere: no such file",
            ),
            (
                {"conditioning": {"attention_levels": [9]}, "heads": SEGMENTATION},
                r"attention_levels=\[9\]: must be levels in \[0, 3\]",
            ),
            (
                {"conditioning": {"timestep": False}, "heads": {"diffusion": {}}},
                "timestep=false: must be true",
            ),
            (
                {"imported": {"class_embed_type": "timestep", "num_class_embeds": 3}, "heads": {"diffusion": {}}},
                "imported.class_embed_type=timestep: must be null .*num_class_embeds",
            ),
            ({**TINY, "sample_size": [8], "heads": SEGMENTATION}, r"sample_size=\[8\]: must be \[height, width\]"),
            (
                {"imported": {"attention_heads": [4, 4]}, "heads": SEGMENTATION},
                r"imported.attention_heads=\[4, 4\]: must be 4 numbers of at least 1",
            ),
            (
                {"imported": {"transformer_depth": [1, 0, 1, 1]}, "heads": SEGMENTATION},
                r"imported.transformer_depth=.*: must be in \[1, 64\]",
            ),
            (
                {"encoder": {"name": "classic"}, "imported": {"attention_heads": [4] * 5}, "heads": SEGMENTATION},
                "imported.attention_heads=.*: must be one number with encoder.name=classic",
            ),
            (
                {"imported": {"attention_heads": [1, 1, 1, 3]}, "heads": SEGMENTATION},
                "imported.attention_heads=.*: must be divisors .*level 3: 3",
            ),
            (
                {"imported": {"mid_block_attention_groups": 3}, "heads": SEGMENTATION},
                "mid_block_attention_groups=3: must be a divisor of the mid block's 512 channels",
            ),
            (
                {
                    "imported": {"mid_block_attention_groups": 4},
                    "residual": {"mid_block": "resnet"},
                    "heads": SEGMENTATION,
                },
                "mid_block_attention_groups=4: must be null without self-attention in the mid block",
            ),
        ],
    )
    def test_impossible_configs(self, config: dict, says: str) -> None:
        with pytest.raises(UserError, match=says):
            UNet(**config)

    @pytest.mark.parametrize(
        "pixels", [torch.full((1, 3, 8, 8), 40, dtype=torch.uint8), torch.full((1, 3, 8, 8), 40.0)]
    )
    def test_images_of_0_to_255(self, pixels: torch.Tensor) -> None:
        unet = UNet(**TINY, heads=SEGMENTATION)
        with pytest.raises(UserError, match=r"pixels: must be .*\[-1, 1\] .got .*Give pixels / 127.5 - 1"):
            unet.segment(pixels)
        unet.segment(pixels.float() / 127.5 - 1)
        unet.segment(6 * torch.randn(1, 3, 8, 8))  # noised images are not in [-1, 1] either

    def test_missing_head(self) -> None:
        with pytest.raises(UserError, match="head=diffusion: must be one of this UNet's heads"):
            UNet(**TINY, heads=SEGMENTATION)(torch.zeros(1, 3, 16, 16), head="diffusion")

    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        UNet(**TINY, heads=SEGMENTATION).save_pretrained(tmp_path)
        return tmp_path

    def test_tensors_that_do_not_fit_are_named(self, directory: Path) -> None:
        file = directory / "diffusion_pytorch_model.safetensors"
        state = load_file(file)
        state["encoder.foreign"] = torch.zeros(1)
        state["encoder.conv_in.weight"] = torch.zeros(3, 3, 3, 3)
        del state["mid_block.resnets.0.norm1.bias"]
        save_file(state, file)
        with pytest.raises(UserError) as error:
            UNet.from_pretrained(directory)
        for part in (
            "1 missing: mid_block.resnets.0.norm1.bias",
            "1 unexpected: encoder.foreign",
            "encoder.conv_in.weight (3, 3, 3, 3) instead of (8, 3, 3, 3)",
        ):
            assert part in str(error.value)

    def test_truncated_and_pickled_weights(self, directory: Path) -> None:
        file = directory / "diffusion_pytorch_model.safetensors"
        file.write_bytes(file.read_bytes()[:1000])
        with pytest.raises(UserError, match="complete safetensors file"):
            UNet.from_pretrained(directory)
        file.rename(directory / "diffusion_pytorch_model.bin")
        with pytest.raises(UserError, match="Pickles are never loaded"):
            UNet.from_pretrained(directory)

    def test_foreign_config(self, directory: Path, tmp_path: Path) -> None:
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**config, "_class_name": "AutoencoderKL"}))
        with pytest.raises(UserError, match="_class_name=AutoencoderKL: must be UNet"):
            UNet.from_pretrained(directory)
        with pytest.raises(UserError, match="model directory with config.json"):
            UNet.from_pretrained(tmp_path / "elsewhere")

    def test_weights_of_another_encoder(self, tmp_path: Path) -> None:
        file = tmp_path / "resnet34.safetensors"
        save_file(torchvision.models.resnet34().state_dict(), file)
        with pytest.raises(UserError, match="must contain torchvision's resnet18"):
            UNet(encoder={"name": "resnet18", "weights": str(file)}, heads=SEGMENTATION)

    def test_pickled_weights_of_an_encoder(self, tmp_path: Path) -> None:
        file = tmp_path / "resnet18.pth"
        torch.save({}, file)
        with pytest.raises(
            UserError, match=r"weights: .* \(got a pickle\).*save_file\(state, 'resnet18.safetensors'\)"
        ):
            UNet(encoder={"name": "resnet18", "weights": str(file)}, heads=SEGMENTATION)

    def test_an_even_head_kernel(self) -> None:
        with pytest.raises(UserError, match="imported.segmentation_kernel_size=2: must be odd"):
            UNet(**TINY, heads={"segmentation": {"num_classes": 5}}, imported={"segmentation_kernel_size": 2})


def test_mean_and_deviation_of_the_input() -> None:
    """A network with mean and std computes what one without computes from normalized pixels."""
    torch.manual_seed(0)
    options = {"encoder": {"name": "classic", "channels": [4, 8]}, "heads": {"segmentation": {"num_classes": 2}}}
    plain = UNet(in_channels=2, **options).eval()
    options["encoder"] |= {"mean": [0.2, 0.7], "std": [0.1, 0.3]}
    normalizing = UNet(in_channels=2, **options).eval()
    normalizing.load_state_dict(plain.state_dict())
    pixels = torch.rand(1, 2, 8, 8)
    mean, std = torch.tensor([0.2, 0.7])[:, None, None], torch.tensor([0.1, 0.3])[:, None, None]
    expected = plain.segment((pixels - mean) / std / 10)  # in [-1, 1], which segment() asks for
    normalizing.encoder.normalization.scale /= 10
    normalizing.encoder.normalization.shift /= 10
    torch.testing.assert_close(normalizing.segment(2 * pixels - 1), expected)
    for encoder, message in (
        ({"mean": [0.5]}, "encoder.std=null: must be set with encoder.mean"),
        ({"mean": [0.5], "std": [0.5]}, "encoder.mean=.*must be 2 values, one per channel"),
        ({"name": "residual", "mean": [0.5], "std": [0.5]}, "null with encoder.name=residual"),
    ):
        with pytest.raises(UserError, match=message):
            UNet(in_channels=2, encoder={"name": "classic", **encoder}, heads={"segmentation": {"num_classes": 2}})


def test_dropout_at_the_end_of_the_contracting_path() -> None:
    torch.manual_seed(0)
    heads = {"segmentation": {"num_classes": 2}}
    unet = UNet(encoder={"name": "classic", "channels": [4, 8, 16], "dropout": 0.5}, heads=heads)
    dropouts = [name for name, module in unet.named_modules() if isinstance(module, torch.nn.Dropout)]
    assert dropouts == ["encoder.dropout", "mid_block.dropout"]
    pixels = torch.rand(1, 3, 16, 16)
    assert not torch.equal(unet.segment(pixels), unet.segment(pixels))
    features = unet.features(pixels)
    zeros = {name: float((value == 0).float().mean()) for name, value in features.items()}
    assert zeros["encoder.1"] > 0.4 and zeros["mid_block"] > 0.4
    unet.eval()
    assert torch.equal(unet.segment(pixels), unet.segment(pixels))
    with pytest.raises(UserError, match="encoder.dropout=0.5: must be 0 with encoder.name=resnet18"):
        UNet(encoder={"name": "resnet18", "dropout": 0.5}, heads=heads)
