"""Training steps of Stable Diffusion 1.5's size: its network with random weights, and what a step of it needs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from unetdiff.config.training import LoRAConfig, TrainingConfig
from unetdiff.diffusion.conditioning.base import Conditioning
from unetdiff.diffusion.config import DiffusionConfig
from unetdiff.kernels.accelerate import accelerate_training_
from unetdiff.models.attention import Attention
from unetdiff.models.forward_state import ForwardState
from unetdiff.models.unet import UNet
from unetdiff.segmentation.config import SegmentationConfig
from unetdiff.segmentation.segmenter import Segmenter
from unetdiff.training import lora
from unetdiff.training.optimizer import build_optimizer
from unetdiff.training.peak import peak_bytes
from unetdiff.training.runtime import build_accelerator
from unetdiff.training.step import optimizer_step
from unetdiff.training.step_layers import StepLayers
from unetdiff.training.tasks.base import Task
from unetdiff.training.tasks.diffusion import DiffusionTask
from unetdiff.training.tasks.segmentation import SegmentationTask

FACTOR, CLASSES = 8, 21
TOKENS = 77
STABLE_DIFFUSION: dict[str, Any] = {
    "in_channels": 4,
    "encoder": {"name": "residual", "channels": [320, 640, 1280, 1280]},
    "residual": {"layers_per_block": 2, "norm_num_groups": 32, "mid_block": "attention"},
    "conditioning": {"timestep": True, "cross_attention_dim": 768, "attention_levels": [0, 1, 2]},
    "imported": {"attention_heads": [8, 8, 8, 8]},
}
"""Arguments of `UNet`, without heads."""
PYRAMID: dict[str, Any] = {"num_classes": CLASSES, "pyramid": 256, "attention_maps": True}


@dataclass(frozen=True)
class Case:
    """What is trained."""

    segmentation: bool = False
    rank: int | None = None
    """Of LoRA; None: all weights."""
    checkpointing: bool = False


CASES = {
    "LoRA": Case(rank=4),
    "all weights": Case(checkpointing=True),
    "segmentation, LoRA": Case(segmentation=True, rank=4),
    "segmentation, all weights": Case(segmentation=True, checkpointing=True),
}


class LatentDenoising(DiffusionTask):
    """With latents and prompt embeddings made before the step."""

    def encode(self, batch: Any, draws: Any = None) -> Tensor:
        return batch["latents"].to(self.unet.device)

    def conditioning(self, conditions: Any, size: Any) -> Conditioning:
        return Conditioning(tokens=_tokens(self.unet, 1, TOKENS))


class LatentSegmentation(SegmentationTask):
    """With latents made before the step, and fixed tokens for the classes."""

    @property
    def segmenter(self) -> Segmenter:
        codec: Any = SimpleNamespace(factor=FACTOR)
        context: Any = lambda batch: _tokens(self.unet, batch, CLASSES)  # noqa: E731
        return Segmenter(self.unet, self.view, codec, context)

    def forward(self, batch: Any, draws: Any) -> Any:
        latents = batch["latents"].to(self.unet.device)
        size = batch["mask"].shape[-2], batch["mask"].shape[-1]
        return self.sums(self.segmenter.logits(latents, None, size), batch["mask"])


def _tokens(unet: UNet, batch: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    width = unet.config["conditioning"]["cross_attention_dim"]
    tokens = torch.randn(1, count, width, generator=generator).expand(batch, -1, -1)
    return tokens.to(unet.device, unet.dtype)


def build(case: Case, network: dict[str, Any]) -> UNet:
    """The network with the head that is trained, and the adapter."""
    heads = {"segmentation": PYRAMID} if case.segmentation else {"diffusion": {"out_channels": network["in_channels"]}}
    unet = UNet(**network, heads=heads)
    if case.rank is not None:
        if unet.device.type == "meta":  # no weights to hash
            _inject_on_meta(unet, case.rank)
        else:
            lora.inject(unet, LoRAConfig(case.rank), seed=0)
    return unet


def _inject_on_meta(unet: UNet, rank: int) -> None:
    hashed = lora.fingerprint
    try:
        lora.fingerprint = lambda unet: ""  # type: ignore[assignment]
        lora.inject(unet, LoRAConfig(rank), seed=0)
    finally:
        lora.fingerprint = hashed


def measure(name: str, network: dict[str, Any], size: int, precision: str, steps: int) -> dict[str, Any]:
    """Seconds of the last of some optimizer steps of one image, and the process's peak memory in bytes."""
    case, settings = CASES[name], TrainingConfig(mixed_precision=precision, batch_size=1)  # type: ignore[arg-type]
    accelerator = build_accelerator(settings)
    torch.manual_seed(0)
    unet, nothing = build(case, network), SimpleNamespace()
    task: Task
    if case.segmentation:
        task = LatentSegmentation(unet, SegmentationConfig(), nothing)  # type: ignore[arg-type]
    else:
        task = LatentDenoising(unet, None, DiffusionConfig(prediction_type="epsilon"), nothing, 0)  # type: ignore[arg-type]
    task.to(accelerator.device)
    layers = StepLayers(task)
    accelerate_training_(unet)
    task.set_memory_format(True)
    if case.checkpointing:
        unet.enable_gradient_checkpointing()
    optimizer = accelerator.prepare_optimizer(build_optimizer(task, settings.optimizer), device_placement=False)
    model = accelerator.prepare_model(task, device_placement=False)
    batch = {
        "latents": torch.randn(1, network["in_channels"], size // FACTOR, size // FACTOR),
        "mask": torch.randint(0, CLASSES, (1, size, size), dtype=torch.uint8),
        "name": ["0"],
    }
    seconds = 0.0
    for step in range(steps):
        start = time.perf_counter()
        losses, *_ = optimizer_step(model, optimizer, iter([batch]), step, settings, accelerator, layers)
        float(losses["loss"])  # waits for a GPU
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak": peak_bytes(accelerator.device), "loss": float(losses["loss"])}


# ------------------------------------------------------------------ arithmetic


@dataclass
class Need:
    """Bytes of a step of one image by purpose, with weights and moments in float32 and activations in `bytes_each`."""

    weights: int
    casts: int
    """Copies of the weights in the precision of the products (autocast)."""
    gradients: int
    moments: int
    activations: int
    trained: int
    """Number of trained parameters."""
    total_parameters: int

    @property
    def total(self) -> int:
        return self.weights + self.casts + self.gradients + self.moments + self.activations


def need(name: str, network: dict[str, Any], size: int, precision: str) -> Need:
    """Counted on the meta device, without memory: what autograd saves of a forward pass, with fused attention.

    With gradient checkpointing: the inputs of the blocks, what is saved outside of them, and the largest block.
    Autocast keeps norms in float32, which is not counted.
    """
    case, dtype = CASES[name], torch.float32 if precision == "no" else torch.bfloat16
    with torch.device("meta"):
        unet = build(case, network).train()
    total = sum(p.numel() for p in unet.parameters())
    trained = sum(p.numel() for p in unet.parameters() if p.requires_grad)
    nn.Module.to(unet, dtype=dtype)
    side = size // FACTOR
    sample = torch.empty(1, network["in_channels"], side, side, device="meta", dtype=dtype)
    width = network["conditioning"]["cross_attention_dim"]
    tokens = torch.empty(1, CLASSES if case.segmentation else TOKENS, width, device="meta", dtype=dtype)
    saved = _saved(unet, sample, tokens)
    activations = saved.checkpointed() if case.checkpointing else saved.bytes
    casts = 0 if precision == "no" else 2 * total
    return Need(4 * total, casts, 4 * trained, 8 * trained, activations, trained, total)


@dataclass
class Saved:
    """What autograd keeps of a forward pass."""

    known: dict[int, Any] = field(default_factory=dict)
    """Storages that count already, or are weights."""
    bytes: int = 0
    blocks: list[int] = field(default_factory=list)
    """Bytes that each block keeps."""
    inputs: int = 0
    """Bytes of the blocks' inputs."""
    known_inputs: dict[int, Any] = field(default_factory=dict)

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.known:
            self.known[storage._cdata] = storage
            self.bytes += storage.nbytes()
        return tensor

    def add_input(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.known_inputs:
            self.known_inputs[storage._cdata] = storage
            self.inputs += storage.nbytes()

    def checkpointed(self) -> int:
        return self.inputs + self.bytes - sum(self.blocks) + max(self.blocks)


class _FusedAttention(torch.autograd.Function):
    """What a fused kernel saves: queries, keys, values and output."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError


@contextmanager
def _recorded(saved: Saved) -> Iterator[None]:
    run, attend = ForwardState.run, Attention.attend

    def recorded(self: ForwardState, block: Any, *inputs: Any, owner: Any = None) -> Tensor:
        for value in inputs:
            if isinstance(value, Tensor):
                saved.add_input(value)
        before = saved.bytes
        out = run(self, block, *inputs, owner=owner)
        saved.blocks.append(saved.bytes - before)
        return out

    ForwardState.run = recorded  # type: ignore[method-assign]
    Attention.attend = lambda self, q, k, v, *mask: _FusedAttention.apply(q, k, v)  # type: ignore[method-assign]
    try:
        yield
    finally:
        ForwardState.run, Attention.attend = run, attend  # type: ignore[method-assign]


def _saved(unet: UNet, sample: Tensor, tokens: Tensor) -> Saved:
    saved = Saved()
    for tensor in unet.parameters():
        storage = tensor.untyped_storage()
        saved.known[storage._cdata] = storage
    with _recorded(saved), torch.autograd.graph.saved_tensors_hooks(saved.add, lambda tensor: tensor):
        unet(sample, torch.zeros(1, device="meta"), tokens, return_dict=False)
    return saved
