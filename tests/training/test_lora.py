"""`training.lora`: what is trained, saved, resumed, merged, and what diffusers makes of the exported file."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from unetdiff import UNet
from unetdiff.config.reading import load
from unetdiff.config.schema import RunConfig
from unetdiff.config.training import EMAConfig, LoRAConfig, OptimizerConfig
from unetdiff.config.validation.run import validate
from unetdiff.errors import FileError, UserError
from unetdiff.kernels.accelerate import accelerate_inference_, accelerate_training_
from unetdiff.models.adapters import LORA_WEIGHTS, METADATA
from unetdiff.models.attention import CrossAttentionCache
from unetdiff.models.loading import WEIGHTS
from unetdiff.training import checkpoints, lora
from unetdiff.training.ema import EMA
from unetdiff.training.optimizer import build_optimizer
from unetdiff.training.tasks.base import Task
from unetdiff.training.trainer import Trainer, train

Tiny = Callable[..., RunConfig]
ALL_LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "conv1", "conv2", "conv"]
SETTINGS: dict[str, Any] = {
    "training__lora__rank": 2,
    "training__lora__alpha": 3.0,
    "training__lora__dropout": 0.2,
    "training__steps": 3,
    "training__validate_every": 3,
    "training__checkpoint_every": 2,
    "training__mixed_precision": "no",
}


def _network(segmentation: bool = False) -> UNet:
    """Random weights, none of them zero."""
    torch.manual_seed(0)
    unet = UNet(
        encoder={"channels": [8, 16]},
        residual={"layers_per_block": 1, "norm_num_groups": 4, "dropout": 0.1},
        conditioning={"cross_attention_dim": 8, "attention_levels": [1], "attention_head_dim": 8},
        heads={"diffusion": {"out_channels": 3}, "segmentation": {"num_classes": 4} if segmentation else None},
    )
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return unet.eval()


def _adapted(targets: list[str] = ALL_LAYERS, rank: int = 2, **options: Any) -> UNet:
    """With an adapter whose B is not zero."""
    unet = _network(**options)
    lora.inject(unet, LoRAConfig(rank, alpha=3.0, targets=targets), seed=0)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return unet


def _inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = (2, 3, 16, 16), (2, 3, 8)
    sample, tokens = (torch.randn(shape, generator=generator) for shape in shapes)
    return sample, torch.tensor([3, 700]), tokens


def _output(unet: Any, *inputs: Any) -> Tensor:
    with torch.no_grad():
        return unet(*(inputs or _inputs()), return_dict=False)[0]


def _stock(unet: UNet, folder: Path) -> StableDiffusionPipeline:
    """diffusers' pipeline around a network of ours without an adapter."""
    unet.to_diffusers(folder)
    stock = UNet2DConditionModel.from_pretrained(folder)
    none = dict.fromkeys(("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    return StableDiffusionPipeline(
        unet=stock, scheduler=DDPMScheduler(clip_sample=False, steps_offset=1), **none, requires_safety_checker=False
    )


@pytest.mark.parametrize("targets", [LoRAConfig().targets, ALL_LAYERS], ids=["attention", "all"])
def test_diffusers_loads_the_file_and_computes_the_same(targets: list[str], tmp_path: Path) -> None:
    unet = _adapted(targets)
    unet.save_lora_adapter(tmp_path, prefix="unet")
    pipeline = _stock(_network(), tmp_path / "unet")
    before = _output(pipeline.unet)
    with safe_open(tmp_path / LORA_WEIGHTS, "pt") as file:
        header = json.loads(file.metadata()[METADATA])
    assert set(header) == {"unet.r", "unet.lora_alpha", "unet.target_modules"}  # known to every version of peft
    pipeline.load_lora_weights(tmp_path)
    expected = _output(pipeline.unet)
    assert (before - expected).abs().max() > 0.05  # the adapter does something
    torch.testing.assert_close(_output(unet), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(_output(lora.merged_copy(unet)), expected, atol=1e-5, rtol=0)


def test_the_faster_kernels_do_not_bypass_an_adapter() -> None:
    """In training, without gradients, with cached keys and values, with one context token, and merged for inference."""
    unet, inputs = _adapted(), _inputs()
    one_token = (*inputs[:2], inputs[2][:, :1])
    plain = [_output(unet), _output(unet, *one_token)]
    fast = accelerate_training_(copy.deepcopy(unet))
    cached = _output(fast, *inputs[:2], CrossAttentionCache(inputs[2]))
    optimized = accelerate_inference_(lora.merged_copy(unet))
    for output, expected in (
        (_output(fast), plain[0]),
        (_output(fast, *one_token), plain[1]),
        (cached, plain[0]),
        (_output(optimized), plain[0]),
    ):
        torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)
    gradients = []
    for network in (unet, fast):
        network.enable_gradient_checkpointing()
        network.eval().zero_grad()
        network(*inputs, return_dict=False)[0].square().mean().backward()
        gradients.append({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and all(".lora_" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4)


def test_a_new_adapter_changes_nothing_and_trains_next_to_a_segmentation_head() -> None:
    unet, plain = _network(segmentation=True), _network(segmentation=True)
    hash_before = lora.fingerprint(unet)
    lora.inject(unet, LoRAConfig(2), seed=0)
    assert torch.equal(_output(unet), _output(plain)) and lora.fingerprint(unet) == hash_before
    trained = {name for name, p in unet.named_parameters() if p.requires_grad}
    assert trained == {name for name in unet.state_dict() if ".lora_" in name or name.startswith("heads.segmentation.")}
    again = _network(segmentation=True)
    lora.inject(again, LoRAConfig(2), seed=0)
    assert all(torch.equal(a, b) for a, b in zip(unet.parameters(), again.parameters(), strict=True))


def test_a_run(tiny: Tiny, tmp_path: Path, cut_and_resumed: Any) -> None:
    """Trained, cut, resumed with the same bits; checkpoints hold what is trained; best/ is whole and merged.

    With another network to adapt it is not resumed.
    """
    base = tmp_path / "base"
    _network().save_pretrained(base)
    config = tiny("joint", training__init_from=str(base), **SETTINGS)
    state = cut_and_resumed(config)
    run = Path(config.training.output_dir)
    of_network = {name for name in state if name.startswith("unet.")}
    assert of_network and all(lora.is_trained(name.removeprefix("unet.")) for name in of_network)
    assert any("heads.segmentation" in name for name in of_network) and len(of_network) < len(state)
    moments = load_file(checkpoints.newest(run) / checkpoints.OPTIMIZER)  # type: ignore[operator]
    assert {name.partition("|")[0].removeprefix("diffusion.") for name in moments} == set(state)

    merged, before = load_file(run / "best" / "unet" / WEIGHTS), load_file(base / WEIGHTS)
    changed = {name for name in before if not torch.equal(before[name], merged[name])}
    adapted = {name for name in before if any(f".{t}.weight" in name for t in LoRAConfig().targets)}
    still = {name for name in adapted if ".attn2.to_q" in name or ".attn2.to_k" in name}  # of one token: no gradient
    assert adapted - still <= changed <= adapted
    pipeline = _stock(_network(), run.parent / "stock")
    pipeline.load_lora_weights(run / "best")
    ours = UNet.from_pretrained(run / "best" / "unet")
    torch.testing.assert_close(_output(ours), _output(pipeline.unet), atol=1e-5, rtol=0)

    changed_base = _network()
    with torch.no_grad():
        changed_base.time_embedding.linear_1.weight += 1
    changed_base.save_pretrained(base)
    with pytest.raises(FileError, match=r"was trained with the adapter \{rank: 2.* base is a hash"):
        Trainer(config, None)
    config.training.overwrite, config.training.resume = True, False
    Trainer(config, None).close()  # best/ is deleted as a run's own


def test_a_segmenters_dropout_in_the_time_embedding_does_not_depend_on_the_cut(tiny: Tiny, tmp_path: Path) -> None:
    """No image has a timestep; each has its own masks."""
    base = tmp_path / "base"
    _network().save_pretrained(base)
    options = {**SETTINGS, "training__steps": 1, "training__lora__targets": ["time_emb_proj"]}
    options |= {"training__init_from": str(base), "model__conditioning__timestep": True}
    states = []
    for parts in (1, 2, 4):
        config = tiny("segmentation", f"run-{parts}", **options, training__gradient_accumulation_steps=parts)
        newest = checkpoints.newest(train(config))
        states.append(load_file(newest / checkpoints.MODEL))  # type: ignore[operator]
    assert any("lora_B" in name and tensor.abs().max() > 1e-6 for name, tensor in states[0].items())
    for state in states[1:]:
        for name, tensor in states[0].items():
            torch.testing.assert_close(state[name], tensor, atol=1e-5, rtol=1e-4)


def test_average_and_optimizer_have_the_adapter_alone() -> None:
    class Plain(Task):
        def __init__(self, unet: UNet) -> None:
            super().__init__()
            self.unet = unet

        forward = losses = evaluate = preview = save = lambda self, *args: None  # type: ignore[assignment]

    task = Plain(_adapted())
    ema, optimizer = EMA(task, EMAConfig(half_life_images=1)), build_optimizer(task, OptimizerConfig())
    names = {name for group in optimizer.param_groups for name in group["names"]}
    assert names == {name for name, p in task.named_parameters() if p.requires_grad}
    for (name, average), parameter in zip(ema.task.named_parameters(), task.parameters(), strict=True):
        assert (average is parameter) != (".lora_" in name)
    before = _output(ema.task.unet)
    with torch.no_grad():
        for parameter in task.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.5)
    assert torch.equal(_output(ema.task.unet), before)
    ema.update(task, images=10**6, batch_size=1)  # half of the way
    pairs = zip(ema.task.named_parameters(), task.parameters(), strict=True)
    for (name, average), parameter in pairs:
        if ".lora_" in name:
            torch.testing.assert_close(average, parameter * 1.25 / 1.5)
    with lora.merged(task):
        assert not lora.has_adapter(task.unet)
        merged = _output(task.unet)
    assert lora.has_adapter(task.unet)
    torch.testing.assert_close(merged, _output(task.unet), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"training.lora.rank": 4}, "training.lora.rank=4: must be null without"),
        ({"training.lora.alpha": 8}, "training.lora.alpha=8.0: must be left out without training.lora.rank"),
        ({"training.lora.targets": []}, "training.lora.targets=[]: must be a list of 1 to 60 layer names"),
        (
            {"training.lora.rank": 4, "training.init_from": "x", "training.frozen_levels": 1},
            "training.frozen_levels=1: must be 0 with training.lora.rank=4",
        ),
    ],
)
def test_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        validate(load(None, {"training.steps": 5, "model.conditioning.cross_attention_dim": 8, **overrides}))
    assert str(caught.value).startswith(message)


def test_targets_and_families_that_cannot_be_adapted() -> None:
    with pytest.raises(UserError, match=r"training.lora.targets=.*'to_w' is none of them. Did you mean to_"):
        lora.inject(_network(), LoRAConfig(2, targets=["to_w"]), 0)
    classic = UNet(encoder={"name": "classic", "channels": [8, 16]}, heads={"diffusion": {"out_channels": 3}})
    with pytest.raises(UserError, match=r"training.lora.rank=2: must be null with model.encoder.name=classic"):
        lora.inject(classic, LoRAConfig(2), 0)
    assert asdict(LoRAConfig())["rank"] is None
