"""From noise to images: a diffusers pipeline of the U-Net, its scheduler and its conditioner."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from einops import rearrange
from torch import Tensor

from unetdiff.console import progress_bar
from unetdiff.diffusion import schedulers
from unetdiff.diffusion.autoencoders import Autoencoder
from unetdiff.diffusion.codecs import Codec, make_codec
from unetdiff.diffusion.components import downloaded, load_components
from unetdiff.diffusion.conditioning.base import Conditioner, Size
from unetdiff.diffusion.conditioning.captions import CaptionConditioner
from unetdiff.diffusion.conditioning.classes import Classes
from unetdiff.diffusion.conditioning.images import ImageConditioner, ImageInput
from unetdiff.diffusion.conditioning.layouts import Layout
from unetdiff.diffusion.conditioning.prompt import PromptConditioner
from unetdiff.diffusion.conditioning.text_encoder import TextEncoder
from unetdiff.diffusion.denoising import Generators, GuidedDenoiser, OnStepEnd, PredictOutput, denoise
from unetdiff.diffusion.editing import ImageStart, Inpainting, KnownImage, Mask, start_sampling
from unetdiff.diffusion.guidance import Guidance
from unetdiff.diffusion.inpainting import has_mask_input, with_mask
from unetdiff.diffusion.loss_guidance import LossGuidance, apply_loss_guidance
from unetdiff.diffusion.mask_codec import INDEX
from unetdiff.diffusion.pipeline_inputs import (
    encode_inputs,
    infer_batch_size,
    make_conditionings,
    validate_options,
    validate_process,
    validate_tensors,
)
from unetdiff.diffusion.processes.load import process_of
from unetdiff.diffusion.stable_diffusion import save_stable_diffusion
from unetdiff.errors import UserError
from unetdiff.files.folders import is_there
from unetdiff.files.push import PushMixin
from unetdiff.kernels.accelerate import accelerate_inference_
from unetdiff.models.unet import UNet

ClassLabels = Classes | Sequence[Classes] | Tensor
StepCallback = Callable[["GenerationPipeline", int, Tensor, dict[str, Tensor]], dict[str, Tensor]]


@dataclass
class GenerationOutput(ImagePipelineOutput):
    """`images`, as in every diffusers pipeline."""

    def pixels(self) -> Tensor:
        """The tensor of output_type="pt", floats in [0, 1], or of "latent", (B, C, H, W)."""
        if not isinstance(self.images, Tensor):
            raise TypeError('pixels() needs output_type="pt" or "latent"')
        return self.images


class GenerationPipeline(PushMixin, DiffusionPipeline):  # type: ignore[misc]
    """Samples images with a trained denoiser.

    Args:
        unet: the denoiser, `unet(sample, timestep, encoder_hidden_states=...).sample`.
        scheduler: any diffusers scheduler that supports the model's prediction type; change it by
            `pipeline.scheduler = make_scheduler(pipeline.scheduler, "dpm++")` (`unetdiff.diffusion.schedulers`), or for
            one without a name there by `EulerDiscreteScheduler.from_config(pipeline.scheduler.config)`.
        conditioner: of classes, text, a layout or an image; None: unconditional.
        text_encoder: for a `TextConditioner`, a transformers text encoder.
        tokenizer: its tokenizer.
        vae: for a denoiser of latents, diffusers' AutoencoderKL or AutoencoderTiny.
        masks: for a denoiser of masks, `unetdiff.diffusion.mask_codec.MaskCodec.settings`. It returns them in their
            colors; `codec.probabilities` reads an output_type "latent".
    """

    model_cpu_offload_seq = "text_encoder->conditioner->unet->vae"  # type: ignore[assignment]
    _optional_components = ["conditioner", "text_encoder", "tokenizer", "vae"]

    autocast_dtype: torch.dtype | None = None
    """U-Net and autoencoder run under autocast in this precision, x_t stays in float32; None: no autocast."""

    def __init__(
        self,
        unet: ModelMixin,
        scheduler: SchedulerMixin,
        conditioner: Conditioner | None = None,
        text_encoder: Any = None,
        tokenizer: Any = None,
        vae: Autoencoder | None = None,
        masks: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if masks is not None:
            self.register_to_config(masks=masks)
        self.trained_process = process_of(scheduler).name
        self.register_modules(
            unet=unet,
            scheduler=scheduler,
            conditioner=conditioner,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            vae=vae,
        )
        if isinstance(conditioner, CaptionConditioner) and conditioner.features is None and text_encoder is not None:
            conditioner.features = TextEncoder(text_encoder, tokenizer, conditioner.max_tokens, conditioner.padded)
        if isinstance(conditioner, ImageConditioner) and vae is not None:
            conditioner.latents_of = self.codec.encode

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        *,
        revision: str | None = None,
        torch_dtype: torch.dtype | None = None,
        **parts: Any,
    ) -> Self:
        """Load a directory in diffusers' layout (model_index.json, unet/, scheduler/, conditioner/, vae/).

        Also one of diffusers' own: Stable Diffusion's, with 4 or, for inpainting, 9 input channels; an unconditional
        denoiser of pixels (DDIMPipeline, DDPMPipeline); or a name on the hub. Only classes listed in
        `unetdiff.diffusion.components` are loaded, and never code or a pickle.

        Args:
            pretrained_model_name_or_path: the directory, or a name on the hub.
            revision: branch, tag or commit on the hub.
            torch_dtype: of network, conditioner, text encoder and autoencoder; None: float32.
            parts: arguments of the constructor, in the place of the directory's, e.g. `scheduler=...`.

        Raises:
            UserError: a directory without model_index.json, that is, a model without a diffusion head, or with a part
                that is missing, damaged, of an unknown class, or does not fit the others.
        """
        path = Path(pretrained_model_name_or_path)
        if not path.is_dir():
            path = downloaded(str(pretrained_model_name_or_path), revision)
        if not is_there(path / INDEX):
            raise UserError(f"{path}: no {INDEX}, so there is no diffusion head to sample from.")
        unknown = [name for name in parts if name not in inspect.signature(cls.__init__).parameters]
        if unknown:
            raise UserError(f"from_pretrained: {unknown[0]}: must be torch_dtype or a part of the pipeline.")
        pipeline = cls(**load_components(path, parts))
        return pipeline if torch_dtype is None else pipeline.to(torch_dtype)

    def save_pretrained(self, save_directory: str | PathLike[str], **options: Any) -> None:  # type: ignore[override]
        """Write a directory that `from_pretrained` loads; of prompts, one of diffusers' `StableDiffusionPipeline`.

        options: of diffusers' `save_pretrained`; none with prompts.

        Raises:
            UserError: after `optimize_for_inference`, or a U-Net of prompts that diffusers cannot express.
        """
        if isinstance(self.conditioner, PromptConditioner):
            return save_stable_diffusion(self, Path(save_directory))
        return super().save_pretrained(save_directory, **options)

    def card_facts(self) -> dict[str, Any]:
        """Arguments of the model card."""
        text = isinstance(self.conditioner, CaptionConditioner | PromptConditioner)
        facts = {"heads": ["diffusion"], "loaders": ["GenerationPipeline"], "about": "A denoising U-Net"}
        return facts | {"condition": "text" if text else "none"}

    def optimize_for_inference(self, dtype: torch.dtype | None = None, compile: bool = False) -> Self:
        """See `accelerate_inference_`: faster, but can no longer be saved; also sets `autocast_dtype`."""
        if isinstance(self.unet, UNet):  # not diffusers' networks
            accelerate_inference_(self.unet, dtype, compile)
        self.autocast_dtype = dtype
        return self

    @torch.no_grad()
    def __call__(
        self,
        class_labels: ClassLabels | None = None,
        prompt: str | Sequence[str] | None = None,
        layout: Layout | Sequence[Layout] | None = None,
        condition_image: ImageInput | Sequence[ImageInput] | None = None,
        *,
        conditions: Tensor | None = None,
        negative_class_labels: ClassLabels | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        batch_size: int | None = None,
        start: ImageStart | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float | Guidance = 2.0,
        loss_guidance: LossGuidance | None = None,
        height: int | None = None,
        width: int | None = None,
        generator: Generators = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        callback_on_step_end: StepCallback | None = None,
        return_dict: bool = True,
    ) -> GenerationOutput | tuple[Any, ...]:
        """Sample images of the condition that the model was trained with; without one, unconditionally.

        Args:
            class_labels: classes, by index or name; several in one image as "cat+dog" or a sequence.
            prompt: captions.
            layout: masks of class indices, (H, W) or (B, H, W), or PIL images of mode L or P; of any size.
            condition_image: images to restore, of any size.
            conditions: any of these, encoded by the model's conditioner, (B, ...).
            negative_class_labels: guidance moves away from these classes instead of from the null condition.
            negative_prompt: guidance moves away from this text.
            batch_size: number of images; one condition is repeated. None: as many as conditions or latents, else 1.
            start: an image to start from instead of noise; see `image_to_image` and `inpaint`.
            num_inference_steps: denoising steps.
            guidance_scale: of classifier-free guidance, 1 = none; or a `Guidance` with rescaling and an interval.
            loss_guidance: guidance by the gradient of a loss (`unetdiff.diffusion.loss_guidance`); of pixels, unless
                it sees x_t.
            height: pixels; None: the size that the model was trained at.
            width: pixels; None: the size that the model was trained at.
            generator: of the starting noise and of the steps' noise; a list has one per image
                (`unetdiff.diffusion.noise.generators_for`: the image does not depend on its batch).
            latents: starting noise of unit variance, (B, *noise_shape()).
            output_type: "pil" (list of images), "np" (B, H, W, C) or "pt" (B, C, H, W), in [0, 1]; "latent": x_0, not
                decoded, float32 (B, *noise_shape()) on the device.
            callback_on_step_end: called as (pipeline, step, timestep, state) after each step, the state as in
                `unetdiff.diffusion.denoising.denoise`; may return {"latents": x} to replace x_{t-1}.
                `unetdiff.diffusion.trajectory.TrajectoryRecorder` is one.
            return_dict: False returns a tuple.

        Raises:
            UserError: a condition that the model was not trained with, an unknown class or output type, numbers of
                conditions, images and generators that differ, no size or one that the autoencoder does not divide, or
                loss guidance of latents.
        """
        codec, scheduler, device = self.codec, self.scheduler, self._execution_device
        num_train_timesteps, process = scheduler.config.num_train_timesteps, process_of(scheduler)
        validate_process(self.trained_process, process.name, type(scheduler).__name__)
        validate_options(output_type, num_inference_steps, num_train_timesteps, loss_guidance, codec)
        validate_tensors(self.conditioner, conditions, latents, batch_size, self.channels, (height, width))
        guidance = Guidance.of(guidance_scale)
        shape = self.noise_shape(height, width) if latents is None else tuple(latents.shape[1:])  # (C, h, w)
        size = (shape[-2] * codec.factor, shape[-1] * codec.factor)
        if conditions is None:
            inputs = {"class_labels": class_labels, "prompt": prompt, "layout": layout}
            conditions = encode_inputs(self.conditioner, inputs | {"condition_image": condition_image}, size)
        negative_inputs = {"class_labels": negative_class_labels, "prompt": negative_prompt}
        negative = encode_inputs(self.conditioner, negative_inputs, size, "negative_")
        batch = infer_batch_size(self.conditioner, conditions, negative, batch_size, latents, generator)
        if latents is None:
            latents = randn_tensor((batch, *shape), generator=generator, device=device, dtype=torch.float32)
        latents = latents.to(device, torch.float32)

        with _eval_mode(self.unet, self.conditioner):
            conditional, unconditional = make_conditionings(
                self.unet, self.conditioner, conditions, negative, latents, size
            )
            schedulers.set_steps(scheduler, num_inference_steps, device)
            xt, timesteps, known = start_sampling(start, scheduler, latents, num_inference_steps, codec)
            callbacks: list[OnStepEnd] = [] if known is None else [Inpainting(known, scheduler, timesteps)]
            if has_mask_input(self.conditioner):
                conditional = with_mask(conditional, self.conditioner, (shape[-2], shape[-1]), codec, known)
                if unconditional is not None:
                    unconditional = replace(unconditional, channels=conditional.channels)
                callbacks = []  # the network keeps the image
            predict: PredictOutput = GuidedDenoiser(
                self.unet, conditional, unconditional, guidance, process, self.autocast_dtype
            )
            if loss_guidance is not None:
                predict = partial(apply_loss_guidance, loss_guidance, scheduler, predict)
            if callback_on_step_end is not None:
                callbacks.append(partial(callback_on_step_end, self))
            self.num_timesteps = len(timesteps)
            x0 = denoise(predict, scheduler, xt, self.progress_bar(timesteps), generator, callbacks)
            images: Any = x0 if output_type == "latent" else _as_output(self.decode(x0, known), output_type)
        self.maybe_free_model_hooks()
        return GenerationOutput(images=images) if return_dict else (images,)

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> Any:
        """Diffusers' bar as `set_progress_bar_config` sets it; without that, lines outside of a terminal."""
        if getattr(self, "_progress_bar_config", None):
            return super().progress_bar(iterable, total)
        return progress_bar(iterable, total, desc="sampling", unit="step")

    def image_to_image(
        self, image: ImageInput, strength: float = 0.8, **options: Any
    ) -> GenerationOutput | tuple[Any, ...]:
        """Sample from an image that is noised part of the way (SDEdit, Meng et al. 2022).

        Args:
            image: resized to the result; one for all samples, or one for each.
            strength: fraction of the denoising steps that are run, in (0, 1]: near 0 hardly changed, 1 not kept at all.
            options: as of a call.
        """
        return self(start=ImageStart(image, None, strength), **options)

    def inpaint(
        self, image: ImageInput, mask_image: Mask, strength: float = 1.0, **options: Any
    ) -> GenerationOutput | tuple[Any, ...]:
        """Repaint part of an image (Lugmayr et al. 2022, equation 8, without resampling).

        Args:
            image: resized to the result; one for all samples, or one for each.
            mask_image: repainted where bright, kept where dark; of any size. A denoiser of latents repaints every cell
                with a bright pixel, and the dark pixels are then restored.
            strength: as of `image_to_image`.
            options: as of a call.
        """
        return self(start=ImageStart(image, mask_image, strength), **options)

    @torch.no_grad()
    def decode(self, latents: Tensor, known: KnownImage | None = None) -> Tensor:
        """x_0 (B, C, h, w) as images in [0, 1] on the CPU, (B, 3, H, W), with the pixels of `known` that are kept."""
        dtype, device = self.autocast_dtype, latents.device
        with nullcontext() if dtype is None else torch.autocast(device.type, dtype):
            pixels = self.codec.decode(latents)
        if known is not None:
            pixels = known.paste(pixels)
        return (pixels.float().cpu() / 2 + 0.5).clamp(0, 1)

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return self.unet.device

    @property
    def channels(self) -> int:
        """Channels of x_t: those of the network's input without the conditioner's."""
        return self.unet.config.in_channels - (0 if self.conditioner is None else self.conditioner.channels)

    @property
    def codec(self) -> Codec:
        """What is noised: pixels, latents or masks."""
        return make_codec(self.vae, dict(self.config).get("masks"))

    def size(self, height: int | None = None, width: int | None = None) -> Size:
        """Height and width of the images in pixels; by default those that the model was trained at.

        Raises:
            UserError: the model's config has no size.
        """
        size, factor = self.unet.config.sample_size, self.codec.factor
        if size is not None:
            sides = (size, size) if isinstance(size, int) else tuple(size)
            height, width = height or sides[0] * factor, width or sides[1] * factor
        if not height or not width:
            raise UserError("height, width: must both be given, because the model's config has no sample_size.")
        return height, width

    def noise_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """Channels, height and width of the noise for an image of that many pixels.

        Raises:
            UserError: no size, or one that the autoencoder does not divide.
        """
        return (self.channels, *self.codec.grid(self.size(height, width), "height, width"))


def _as_output(images: Tensor, output_type: str) -> Any:
    """Images (B, C, H, W) in [0, 1] as "pt", "np" or "pil"."""
    if output_type == "pt":
        return images
    arrays = rearrange(images, "b c h w -> b h w c").numpy()
    return DiffusionPipeline.numpy_to_pil(arrays) if output_type == "pil" else arrays


@contextmanager
def _eval_mode(*models: torch.nn.Module | None) -> Iterator[None]:
    """Eval mode inside, and afterwards every module in the mode that it had."""
    modes = {module: module.training for model in models if model is not None for module in model.modules()}
    for model in models:
        if model is not None:
            model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
