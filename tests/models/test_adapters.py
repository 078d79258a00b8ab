"""Adapters of peft and diffusers on our U-Net, and diffusers' average of its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from unetdiff.errors import UserError
from unetdiff.models.unet import UNet

DIM = 12
LORA = LoraConfig(r=2, lora_alpha=3, target_modules=["to_q", "to_out.0", "down_blocks.0.resnets.0.conv1"])


def stock() -> UNet2DConditionModel:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=DIM,
        attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return unet.eval()


def randomize_lora_(unet: nn.Module) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)


@torch.no_grad()
def output(unet: Any, **options: Any) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    x, tokens = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, DIM, generator=generator)
    return unet(x, torch.tensor([3, 700]), tokens, **options).sample


@pytest.fixture(scope="module")
def adapted() -> UNet2DConditionModel:
    """diffusers' U-Net with an adapter."""
    unet = stock()
    unet.add_adapter(LORA)
    randomize_lora_(unet)
    return unet.eval()


@pytest.fixture(scope="module")
def folder(adapted: UNet2DConditionModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter as a training script of diffusers saves it."""
    path = tmp_path_factory.mktemp("lora")
    StableDiffusionPipeline.save_lora_weights(path, unet_lora_layers=get_peft_model_state_dict(adapted))
    return path


def pipeline(unet: Any) -> StableDiffusionPipeline:
    names = ("vae", "text_encoder", "tokenizer", "scheduler", "safety_checker", "feature_extractor")
    return StableDiffusionPipeline(unet=unet, requires_safety_checker=False, **dict.fromkeys(names))


def test_a_stock_pipeline_loads_lora_weights_into_our_network(adapted: UNet2DConditionModel, folder: Path) -> None:
    unet, reference = UNet.from_diffusers(stock()), stock()
    for network in (unet, reference):
        pipe = pipeline(network)
        pipe.load_lora_weights(folder, adapter_name="style")
    assert (output(unet) - output(UNet.from_diffusers(stock()))).abs().max() > 0.01
    torch.testing.assert_close(output(unet), output(reference), rtol=1e-5, atol=1e-5)
    scale = {"cross_attention_kwargs": {"scale": 0.3}}
    torch.testing.assert_close(output(unet, **scale), output(reference, **scale), rtol=1e-5, atol=1e-5)
    for network in (unet, reference):
        pipe = pipeline(network)
        pipe.set_adapters(["style"], [0.6])
    torch.testing.assert_close(output(unet), output(reference), rtol=1e-5, atol=1e-5)
    pipe = pipeline(unet)
    pipe.unload_lora_weights()
    assert torch.equal(output(unet), output(UNet.from_diffusers(stock())))


@pytest.mark.parametrize("form", ["kohya", "processors"])
def test_files_of_other_trainers(form: str) -> None:
    """kohya's trainer, with its alpha, and diffusers' before peft."""
    layer, generator = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", torch.Generator().manual_seed(4)
    down, up = torch.randn(2, 16, generator=generator), torch.randn(16, 2, generator=generator)
    if form == "kohya":
        name = f"lora_unet_{layer.replace('.', '_')}"
        state = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.0)}
    else:
        name = f"unet.{layer.replace('.to_q', '.processor.to_q_lora')}"
        state = {f"{name}.down.weight": down, f"{name}.up.weight": up}
    unet, reference = UNet.from_diffusers(stock()), stock()
    before = output(unet)
    for network in (unet, reference):
        pipeline(network).load_lora_weights(dict(state))
    assert (output(unet) - before).abs().max() > 1e-3
    torch.testing.assert_close(output(unet), output(reference), rtol=1e-5, atol=1e-5)


def test_an_adapter_is_trained_saved_and_read_by_diffusers(tmp_path: Path) -> None:
    unet = UNet.from_diffusers(stock())
    unet.add_adapter(LORA)
    learning = [name for name, parameter in unet.named_parameters() if parameter.requires_grad]
    assert learning and all("lora_" in name for name in learning)
    assert any("encoder.down_blocks.0.resnets.0.conv1" in name for name in learning)
    randomize_lora_(unet)
    unet.eval().save_lora_adapter(tmp_path)
    for reference in (stock(), UNet.from_diffusers(stock())):
        reference.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
        torch.testing.assert_close(output(reference), output(unet), rtol=1e-5, atol=1e-5)
    StableDiffusionPipeline.save_lora_weights(tmp_path / "pipe", unet_lora_layers=unet.lora_state_dict())
    other = stock()
    pipeline(other).load_lora_weights(tmp_path / "pipe")  # alpha = rank, as that file has no config
    assert set(get_peft_model_state_dict(other, adapter_name="default_0")) == set(unet.lora_state_dict())

    with pytest.raises(UserError, match="save_pretrained: this UNet has the adapter 'default'. Merge it"):
        unet.save_pretrained(tmp_path / "unet")
    expected = output(unet)
    unet.fuse_lora()
    unet.unload_lora()
    unet.save_pretrained(tmp_path / "unet")
    torch.testing.assert_close(output(UNet.from_pretrained(tmp_path / "unet")), expected, rtol=1e-5, atol=1e-5)


def test_an_adapter_of_another_network_is_refused_by_name(adapted: UNet2DConditionModel) -> None:
    state = {f"unet.{name}": tensor for name, tensor in get_peft_model_state_dict(adapted).items()}
    name = "unet.down_blocks.0.resnets.0.conv1.lora_B.weight"
    unet = UNet.from_diffusers(stock())
    for wrong, says in (
        ({name.replace("down_blocks.0", "down_blocks.7"): state[name]}, "down_blocks.7.*: must be of a layer"),
        ({name: torch.zeros(9, 2, 1, 1)}, r"down_blocks.0.*: must have 8 channels on side 0 \(got \(9, 2, 1, 1\)\)"),
    ):
        with pytest.raises(UserError, match=f"load_lora_adapter: {says}"):
            unet.load_lora_adapter({**state, **wrong})
    with pytest.raises(UserError, match="adapter_name=style: must be one of the loaded adapters .none"):
        unet.lora_state_dict("style")
    with pytest.raises(UserError, match="nowhere: no such file"):
        unet.load_lora_adapter("nowhere")


def test_diffusers_average_of_our_weights_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = {"name": "resnet18", "norm": "frozen", "weights": None}
    pretrained = UNet(encoder=encoder, decoder={"channels": [4] * 5}, heads=HEADS)
    pretrained.register_to_config(encoder={**pretrained.config["encoder"], "weights": "imagenet"})  # not downloaded
    for unet in (UNet.from_diffusers(stock()), pretrained):
        ema = EMAModel(unet.parameters(), decay=0.9, model_cls=UNet, model_config=unet.config)
        with torch.no_grad():
            for parameter in unet.parameters():
                parameter.add_(1)
        ema.step(unet.parameters())
        folder = tmp_path / unet.config["encoder"]["name"]
        ema.save_pretrained(folder)
        again = EMAModel.from_pretrained(folder, UNet)
        assert (again.decay, again.optimization_step) == (0.9, 1)
        assert again.model_config["encoder"] == unet.config["encoder"]
        assert all(torch.equal(*pair) for pair in zip(ema.shadow_params, again.shadow_params, strict=True))


HEADS: dict[str, Any] = {"segmentation": {"num_classes": 2}}
