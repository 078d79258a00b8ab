"""Directories of diffusers, read and written, with a segmentation head beside the denoiser; stock pipelines."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DConditionModel, UNet2DModel
from safetensors.torch import load_file, save_file

from unetdiff import GenerationPipeline
from unetdiff.errors import UserError
from unetdiff.models.unet import UNet

FILE = "diffusion_pytorch_model.safetensors"
SMALL: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
OURS: dict[str, Any] = {
    "sample_size": 16,
    "encoder": {"channels": [8, 16]},
    "residual": {"norm_num_groups": 4, "layers_per_block": 1},
    "conditioning": {"attention_head_dim": 8, "attention_levels": [1]},
    "heads": {"diffusion": {"out_channels": 3}},
}
SIZE = (2, 3, 16, 16)


@pytest.fixture
def reference() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(**SMALL).eval()


def built(**config: Any) -> UNet:
    """A UNet in eval mode, no tensor of which is zero."""
    torch.manual_seed(0)
    unet = UNet(**{**OURS, **config}).eval()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return unet


@torch.no_grad()
def answer(unet: Any, **conditioned: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return unet(torch.randn(SIZE, generator=generator), torch.tensor([3, 700]), **conditioned).sample


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], v) for k, v in second.items())


# ------------------------------------------------------------------------------------------------ reading


def test_directories(reference: UNet2DModel, tmp_path: Path) -> None:
    actual = UNet.from_diffusers(reference)
    reference.save_pretrained(tmp_path / "model")
    DDPMPipeline(reference, DDPMScheduler()).save_pretrained(tmp_path / "pipeline")
    shutil.copytree(tmp_path / "model", tmp_path / "first_release")  # everything in one folder
    shutil.copy(tmp_path / "pipeline" / "model_index.json", tmp_path / "first_release")
    for name in ("model", "pipeline", "pipeline/unet", "first_release"):
        assert same(UNet.from_diffusers(tmp_path / name), actual)
    assert same(UNet.from_diffusers(str(tmp_path), subfolder="pipeline/unet"), actual)


def test_precision_and_variant(reference: UNet2DModel, tmp_path: Path) -> None:
    half = UNet2DModel(**SMALL).half()
    assert UNet.from_diffusers(half).dtype == torch.float16
    assert UNet.from_diffusers(half, torch_dtype=torch.float32).dtype == torch.float32
    half.save_pretrained(tmp_path, variant="fp16")
    found = UNet.from_diffusers(tmp_path, variant="fp16")
    assert found.dtype == torch.float32 and same(found, UNet.from_diffusers(half.float()))
    with pytest.raises(UserError, match=r"model.safetensors: no such file .*Found .*model.fp16.safetensors"):
        UNet.from_diffusers(tmp_path)


def test_the_weights_are_copies(reference: UNet2DModel) -> None:
    before = reference.conv_in.weight.clone()
    actual = UNet.from_diffusers(reference)
    with torch.no_grad():
        actual.encoder.conv_in.weight.zero_()
    assert torch.equal(reference.conv_in.weight, before)


def test_attention_of_the_first_releases(reference: UNet2DModel, tmp_path: Path) -> None:
    reference.save_pretrained(tmp_path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(tmp_path / FILE)
    for now, then in old.items():
        state = {key.replace(f".{now}.", f".{then}."): tensor for key, tensor in state.items()}
    assert "mid_block.attentions.0.proj_attn.bias" in state
    save_file(state, tmp_path / FILE, {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config["down_block_types"] = ["UNetResDownBlock2D", "UNetResAttnDownBlock2D"]
    config["up_block_types"] = ["UNetResAttnUpBlock2D", "UNetResUpBlock2D"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert same(UNet2DModel.from_pretrained(tmp_path), reference)  # what diffusers makes of it
    actual = UNet.from_diffusers(tmp_path)
    torch.testing.assert_close(answer(actual), answer(reference), rtol=1e-5, atol=1e-5)


def test_tensors_that_do_not_fit_are_named_as_in_the_file(reference: UNet2DModel, tmp_path: Path) -> None:
    reference.save_pretrained(tmp_path)
    state = load_file(tmp_path / FILE)
    state["add_embedding.weight"] = torch.zeros(1)
    state["conv_in.weight"] = torch.zeros(3, 3, 3, 3)
    del state["mid_block.resnets.0.norm1.bias"]
    save_file(state, tmp_path / FILE)
    with pytest.raises(UserError) as error:
        UNet.from_diffusers(tmp_path)
    for part in (
        f"'{tmp_path / FILE}' does not fit",
        "1 missing: mid_block.resnets.0.norm1.bias",
        "1 unexpected: add_embedding.weight",
        "conv_in.weight (3, 3, 3, 3) instead of (8, 3, 3, 3)",
    ):
        assert part in str(error.value)


def test_what_is_no_network_of_diffusers(reference: UNet2DModel, tmp_path: Path) -> None:
    reference.save_pretrained(tmp_path / "pickle", safe_serialization=False)
    built().save_pretrained(tmp_path / "actual")
    (tmp_path / "empty").mkdir()
    for source, says in (
        (tmp_path / "pickle", "is a pickle. Pickles are never loaded"),
        (
            tmp_path / "actual",
            "_class_name=UNet: must be UNet2DModel or UNet2DConditionModel. Use UNet.from_pretrained",
        ),
        (tmp_path / "empty", "must contain config.json or unet/config.json"),
        (Path("google/ddpm-cifar10-32"), "google/ddpm-cifar10-32: no such directory.*a name on the Hub"),
        (torch.nn.Linear(1, 1), "must be a directory, UNet2DModel or UNet2DConditionModel .got a Linear"),
    ):
        with pytest.raises(UserError, match=says):
            UNet.from_diffusers(source)
    reference.save_pretrained(tmp_path / "reference")
    state = UNet.from_diffusers(tmp_path / "reference").state_dict()
    assert all(torch.equal(state[k], v) for k, v in UNet.from_pretrained(tmp_path / "reference").state_dict().items())


# --------------------------------------------------------------------------------------- a segmentation head


def test_a_segmentation_head_comes_and_goes_with_the_denoiser(
    reference: UNet2DModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    actual = UNet.from_diffusers(reference)
    denoised = answer(actual)
    actual.add_head("segmentation", num_classes=5)
    assert torch.equal(answer(actual), denoised)
    actual.save_pretrained(tmp_path / "actual")
    assert same(UNet.from_pretrained(tmp_path / "actual"), actual)

    actual.to_diffusers(tmp_path / "reference")
    logging.getLogger("diffusers").propagate = True
    with caplog.at_level("WARNING"):
        stock = UNet2DModel.from_pretrained(tmp_path / "reference")
    assert caplog.records == []
    assert same(stock, reference) and torch.equal(answer(stock), answer(reference))

    again = UNet.from_diffusers(tmp_path / "reference")
    assert same(again, actual) and again.num_classes == 5
    assert {parameter.device.type for parameter in again.parameters()} == {"cpu"}
    pixels = torch.randn(1, 3, 13, 18)
    with torch.no_grad():
        assert torch.equal(again.segment(pixels), actual.segment(pixels))

    UNet.from_diffusers(reference).to_diffusers(tmp_path / "reference")  # over it, without the head
    assert set(UNet.from_diffusers(tmp_path / "reference").heads) == {"diffusion"}


def test_a_head_of_any_kernel_comes_back(tmp_path: Path) -> None:
    heads = {"diffusion": {"out_channels": 3}, "segmentation": {"num_classes": 3}}
    unet = built(heads=heads, imported={"segmentation_kernel_size": 3})
    unet.to_diffusers(tmp_path)
    again = UNet.from_diffusers(tmp_path)
    assert same(again, unet) and again.config["imported"]["segmentation_kernel_size"] == 3


def test_what_we_save_in_any_precision_and_variant_we_load(tmp_path: Path) -> None:
    unet = built()
    unet.save_pretrained(tmp_path, variant="fp16")
    assert same(UNet.from_pretrained(tmp_path, variant="fp16"), unet)
    for word in ("dtype", "torch_dtype"):
        assert UNet.from_pretrained(tmp_path, variant="fp16", **{word: torch.float16}).dtype == torch.float16
    with pytest.raises(UserError, match=r"model.safetensors: no such file .*Found .*model.fp16.safetensors"):
        UNet.from_pretrained(tmp_path)


def test_a_head_that_does_not_fit_is_refused(reference: UNet2DModel, tmp_path: Path) -> None:
    UNet.from_diffusers(reference).add_head("segmentation", num_classes=5).to_diffusers(tmp_path)
    file = tmp_path / "segmentation_head.safetensors"
    head = load_file(file)
    save_file({k: v for k, v in head.items() if "norm.bias" not in k}, file)
    with pytest.raises(UserError, match="1 missing: heads.segmentation.norm.bias"):
        UNet.from_diffusers(tmp_path)
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(UserError, match="must contain heads.segmentation.conv.weight"):
        UNet.from_diffusers(tmp_path)


def test_a_head_on_a_denoiser_that_is_told_tokens(tmp_path: Path) -> None:
    unet = built(conditioning={"cross_attention_dim": 6, "attention_head_dim": 4, "attention_levels": [0, 1]})
    unet.add_head("segmentation", num_classes=3).to(memory_format=torch.channels_last)
    unet.to_diffusers(tmp_path)
    stock = UNet2DConditionModel.from_pretrained(tmp_path)
    tokens = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(2))
    expected = answer(unet, encoder_hidden_states=tokens)
    torch.testing.assert_close(answer(stock, encoder_hidden_states=tokens), expected, rtol=1e-5, atol=1e-5)
    assert same(UNet.from_diffusers(tmp_path), unet)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unet = built()
    unet.to_diffusers(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setattr(UNet2DModel, "save_config", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        built(imported={"norm_eps": 1e-3}).to_diffusers(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


# ---------------------------------------------------------------------------------------------- pipelines


def test_the_same_images_in_stock_pipelines_and_in_ours(tmp_path: Path) -> None:
    unet, scheduler = built(sample_size=[16, 24]), DDPMScheduler(num_train_timesteps=100)
    unet.to_diffusers(tmp_path)
    stock = UNet2DModel.from_pretrained(tmp_path)
    settings: dict[str, Any] = {"batch_size": 2, "num_inference_steps": 5, "output_type": "np"}
    images = []
    for pipeline in (
        DDPMPipeline(stock, scheduler),
        DDPMPipeline(unet, scheduler),
        GenerationPipeline(unet, scheduler),
        GenerationPipeline(stock, scheduler),
    ):
        pipeline.set_progress_bar_config(disable=True)
        images.append(torch.from_numpy(pipeline(generator=torch.Generator().manual_seed(7), **settings).images))
    assert images[0].shape == (2, 16, 24, 3) and images[0].std() > 0.05
    for drawn in images[1:]:
        torch.testing.assert_close(drawn, images[0], rtol=0, atol=1e-4)
