"""Inputs of `GenerationPipeline`: their validation and encoding, the number of images, the network's conditionings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Generator, Tensor

from unetdiff.diffusion.codecs import Codec, PixelCodec
from unetdiff.diffusion.conditioning.base import Conditioner, Conditioning, Size
from unetdiff.diffusion.denoising import Generators
from unetdiff.diffusion.loss_guidance import LossGuidance
from unetdiff.diffusion.scheduler_names import SCHEDULERS
from unetdiff.errors import UserError
from unetdiff.models.attention import null_context

MAX_SIDE = 1 << 14
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def validate_options(
    output_type: str,
    num_inference_steps: int,
    num_train_timesteps: int,
    loss_guidance: LossGuidance | None,
    codec: Codec,
) -> None:
    """Raise UserError for options that are out of range, or that this model does not support."""
    if output_type not in OUTPUT_TYPES:
        raise UserError(f"output_type={output_type!r}: must be one of {', '.join(OUTPUT_TYPES)}.")
    if not _is_count(num_inference_steps) or num_inference_steps > num_train_timesteps:
        raise UserError(
            f"num_inference_steps={num_inference_steps}: must be in 1..{num_train_timesteps}, the training timesteps."
        )
    if loss_guidance is not None and loss_guidance.sees == "x0" and not isinstance(codec, PixelCodec):
        raise UserError(
            "loss_guidance: must be None, or of a loss that sees x_t (sees='xt'), for a denoiser of latents or masks. "
            "A loss of x_0 sees pixels."
        )


def validate_process(trained: str, process: str, scheduler: str) -> None:
    """Raise UserError for a scheduler of another forward process than the model's.

    Args:
        trained: the process that the model was trained with.
        process: that of the scheduler.
        scheduler: its class.
    """
    if process != trained:
        names = ", ".join(SCHEDULERS[trained])
        raise UserError(
            f"scheduler={scheduler}: must sample from the {trained} process, which the model was trained with (got "
            f"{process}). Use make_scheduler with one of {names}."
        )


def validate_tensors(
    conditioner: Conditioner | None,
    conditions: Tensor | None,
    latents: Tensor | None,
    batch_size: int | None,
    channels: int,
    sides: Sequence[int | None],
) -> None:
    """Raise UserError for tensors and numbers that cannot be those of a batch of images.

    Args:
        conditioner: the model's.
        conditions: encoded by it, (B, ...).
        latents: noise, (B, channels, h, w).
        batch_size: number of images.
        channels: of the noise.
        sides: height and width.
    """
    if batch_size is not None and not _is_count(batch_size):
        raise UserError(f"batch_size={batch_size}: must be an integer of at least 1.")
    for key, side in zip(("height", "width"), sides, strict=True):
        if side is not None and (not _is_count(side) or side > MAX_SIDE):
            raise UserError(f"{key}={side}: must be an integer in [1, {MAX_SIDE}].")
    if latents is not None:
        if not isinstance(latents, Tensor) or latents.ndim != 4 or latents.shape[1] != channels or not latents.numel():
            found = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
            raise UserError(f"latents: must be a tensor of shape (B, {channels}, height, width) (got {found}).")
        if not latents.is_floating_point() or not bool(latents.isfinite().all()):
            raise UserError(f"latents: must be finite floating-point numbers (got {latents.dtype}).")
    if conditions is None:
        return
    if conditioner is None:
        raise UserError("conditions: must be None, because this model was trained without a condition.")
    null, kind = conditioner.null_condition(1, (8, 8)), type(conditioner).__name__
    end = -2 if conditioner.batch_key in ("image", "mask") else null.ndim  # height and width are free
    if not isinstance(conditions, Tensor) or not len(conditions) or conditions.shape[1:end] != null.shape[1:end]:
        found = tuple(conditions.shape) if isinstance(conditions, Tensor) else type(conditions).__name__
        raise UserError(f"conditions: must have the shape that {kind}.encode returns (got {found}).")
    if conditions.ndim != null.ndim or conditions.is_floating_point() != null.is_floating_point():
        dtype = f"{conditions.dtype} of {conditions.ndim} dimensions"
        raise UserError(f"conditions: must have the dtype that {kind}.encode returns (got {dtype}).")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def encode_inputs(
    conditioner: Conditioner | None, inputs: dict[str, Any], size: Size, prefix: str = ""
) -> Tensor | None:
    """The user's input as conditions (B, ...); None: no input.

    Args:
        conditioner: the model's; None: unconditional.
        inputs: argument of the pipeline to its value, or None.
        size: of the images, in pixels.
        prefix: of the arguments' names, in messages.

    Raises:
        UserError: a condition that the model was not trained with.
    """
    inputs = {name: value for name, value in inputs.items() if value is not None}
    expected = None if conditioner is None else conditioner.pipeline_arg
    for name in inputs:
        if name != expected:
            trained = "without a condition" if expected is None else f"with {expected}. Set {expected} instead"
            raise UserError(f"{prefix}{name}: must be None, because this model was trained {trained}.")
    return conditioner.encode(inputs[expected], size) if conditioner is not None and expected in inputs else None


def infer_batch_size(
    conditioner: Conditioner | None,
    conditions: Tensor | None,
    negative: Tensor | None,
    batch_size: int | None,
    latents: Tensor | None,
    generator: Generators,
) -> int:
    """The number of images.

    Raises:
        UserError: numbers of conditions, latents or generators that differ from it.
    """
    if latents is not None and batch_size not in (None, len(latents)):
        raise UserError(f"batch_size={batch_size}: must be the number of latents (got {len(latents)}).")
    batch = batch_size if latents is None else len(latents)
    if batch is None:
        batch = 1 if conditions is None else len(conditions)
    name = "" if conditioner is None else conditioner.pipeline_arg
    for key, encoded in ((name, conditions), (f"negative_{name}", negative)):
        if encoded is not None and len(encoded) not in (1, batch):
            raise UserError(f"{key}: must be 1 or {batch}, the number of images (got {len(encoded)}).")
    generators = generator if isinstance(generator, list | tuple) else [generator]
    if not all(one is None or isinstance(one, Generator) for one in generators):
        raise UserError(f"generator: must be torch.Generator, or a list of one per image ({batch}).")
    if isinstance(generator, list) and len(generator) != batch:
        raise UserError(f"generator: must be one, or one per image ({batch}) (got {len(generator)}).")
    return batch


def make_conditionings(
    unet: ModelMixin,
    conditioner: Conditioner | None,
    conditions: Tensor | None,
    negative: Tensor | None,
    latents: Tensor,
    size: Size,
) -> tuple[Conditioning, Conditioning | None]:
    """Tokens and channels of the conditions, and of the null or negative ones (None: no guidance).

    Args:
        unet: the denoiser.
        conditioner: the model's; None: unconditional.
        conditions: encoded, (1 or B, ...); None: the null condition.
        negative: encoded, (1 or B, ...); None: the null condition.
        latents: noise, (B, C, h, w).
        size: of the images, in pixels.
    """
    batch, grid = len(latents), (latents.shape[-2], latents.shape[-1])

    def conditioning(encoded: Tensor) -> Conditioning:
        assert conditioner is not None
        return _for_network(conditioner(encoded.expand(batch, *encoded.shape[1:]), grid), unet, latents)

    if conditioner is None:
        return _for_network(Conditioning(), unet, latents), None
    null = conditioner.null_condition(batch, size)
    if conditions is None:
        return conditioning(null), None if negative is None else conditioning(negative)
    return conditioning(conditions), conditioning(null if negative is None else negative)


def _for_network(conditioning: Conditioning, unet: ModelMixin, latents: Tensor) -> Conditioning:
    """Tokens in the network's precision; diffusers' conditional network needs some, ours fills them in itself."""
    tokens = conditioning.tokens
    if tokens is None and isinstance(unet, UNet2DConditionModel):
        tokens = null_context(len(latents), unet.config["cross_attention_dim"], like=latents)
    return Conditioning(None if tokens is None else tokens.to(unet.dtype), conditioning.channels)
