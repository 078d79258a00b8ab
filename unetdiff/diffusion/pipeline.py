"""From noise to images: a diffusers pipeline around the U-Net, its scheduler and its conditioner."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from einops import rearrange
from safetensors import SafetensorError

from unetdiff.diffusion import schedulers
from unetdiff.diffusion.codecs import Codec, PixelCodec, make_codec
from unetdiff.diffusion.conditioning.base import Conditioner, Conditioning, Size, concat_conditioning
from unetdiff.diffusion.conditioning.classes import Classes
from unetdiff.diffusion.conditioning.images import ImageConditioner, ImageInput
from unetdiff.diffusion.conditioning.layouts import Layout
from unetdiff.diffusion.conditioning.text import TextConditioner
from unetdiff.diffusion.conditioning.text_encoder import TextEncoder
from unetdiff.diffusion.editing import STRENGTH, STRENGTH_WITH_MASK, Mask, img2img_timesteps, known_image
from unetdiff.diffusion.guidance import Denoise, classifier_free_guidance, in_guidance_interval
from unetdiff.diffusion.objectives import predicted_x0
from unetdiff.diffusion.steering import LossGuidance, steered
from unetdiff.errors import UserError
from unetdiff.models.attention import CrossAttentionCache, null_context
from unetdiff.models.unet import UNet

OUTPUT_TYPES = ("pil", "np", "pt", "latent")

ClassLabels = Classes | Sequence[Classes] | torch.Tensor
StepCallback = Callable[["GenerationPipeline", int, torch.Tensor, dict[str, torch.Tensor]], dict[str, torch.Tensor]]


@dataclass
class Trajectory:
    """What sampling went through, at evenly spaced steps; the last entry is the finished image.

    Images are float in [0, 1] on the CPU, (k, B, C, H, W); latents are decoded.
    """

    timesteps: list[int]
    """Timestep of each entry, noisiest first (0 for the finished image)."""
    noisy: torch.Tensor
    """What the network was given: x_t."""
    predicted: torch.Tensor
    """What it took the clean image to be: x_0 as predicted from x_t."""


@dataclass
class GenerationOutput(ImagePipelineOutput):
    """`images` as in every diffusers pipeline, and the trajectory if it was asked for."""

    trajectory: Trajectory | None = None

    def pixels(self) -> torch.Tensor:
        """The tensor of output_type="pt", floats in [0, 1], or of "latent", (B, C, H, W)."""
        if not isinstance(self.images, torch.Tensor):
            raise TypeError('pixels() needs output_type="pt" or "latent"')
        return self.images


class GenerationPipeline(DiffusionPipeline):
    """Draws images with a trained denoiser.

    Args:
        unet: the denoiser, `unet(sample, timestep, encoder_hidden_states=...).sample`.
        scheduler: any of diffusers' that knows the model's prediction type; change it by
            `pipeline.scheduler = swap(pipeline.scheduler, "dpm++")` (`unetdiff.diffusion.schedulers`), or for one that
            is not among its names by `EulerDiscreteScheduler.from_config(pipeline.scheduler.config)`.
        conditioner: what tells it of classes, a text, a layout or an image; None for a model without a condition.
        text_encoder: for a `TextConditioner`, a transformers text encoder.
        tokenizer: its tokenizer.
        vae: for a denoiser of latents, the autoencoder that they are of, diffusers' AutoencoderKL.
        masks: for a denoiser of masks, `unetdiff.diffusion.mask_codec.Masks.settings`. It draws them in their colours;
            `codec.probabilities` reads an output_type "latent".
    """

    model_cpu_offload_seq = "text_encoder->conditioner->unet->vae"  # type: ignore[assignment]
    _optional_components = ["conditioner", "text_encoder", "tokenizer", "vae"]

    def __init__(
        self,
        unet: ModelMixin,
        scheduler: SchedulerMixin,
        conditioner: Conditioner | None = None,
        text_encoder: Any = None,
        tokenizer: Any = None,
        vae: AutoencoderKL | None = None,
        masks: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if masks is not None:
            self.register_to_config(masks=masks)
        self.register_modules(
            unet=unet,
            scheduler=scheduler,
            conditioner=conditioner,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            vae=vae,
        )
        if isinstance(conditioner, TextConditioner) and conditioner.features is None and text_encoder is not None:
            conditioner.features = TextEncoder(text_encoder, tokenizer, conditioner.max_tokens)
        if isinstance(conditioner, ImageConditioner) and vae is not None:
            conditioner.latents_of = self.codec.encode

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return self.unet.device

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any) -> Self:
        """Load a directory in diffusers' layout (model_index.json, unet/, scheduler/, conditioner/, vae/).

        Raises:
            UserError: a directory without model_index.json, that is, a model without a diffusion head, or with a part
                that is missing or damaged.
        """
        path = Path(pretrained_model_name_or_path)
        if path.is_dir() and not (path / "model_index.json").is_file():
            raise UserError(f"{path}: no model_index.json, so there is no diffusion head to sample from.")
        import_module("unetdiff.models.unet")  # diffusers finds our class only where it has been imported
        where = path if path.is_dir() else pretrained_model_name_or_path
        try:
            return super().from_pretrained(where, **{"use_safetensors": True, **kwargs})
        except UserError:
            raise
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(f"{where}: cannot be loaded ({' '.join(str(error).split())})") from error

    @torch.no_grad()
    def __call__(
        self,
        class_labels: ClassLabels | None = None,
        prompt: str | Sequence[str] | None = None,
        layout: Layout | Sequence[Layout] | None = None,
        condition_image: ImageInput | Sequence[ImageInput] | None = None,
        conditions: torch.Tensor | None = None,
        negative_class_labels: ClassLabels | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        image: ImageInput | None = None,
        strength: float | None = None,
        mask_image: Mask | None = None,
        batch_size: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 2.0,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        height: int | None = None,
        width: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        callback_on_step_end: StepCallback | None = None,
        steering: LossGuidance | None = None,
        return_trajectory: int = 0,
        autocast_dtype: torch.dtype | None = None,
        return_dict: bool = True,
    ) -> GenerationOutput | tuple[Any, ...]:
        """Draw images.

        What to draw is told in the way that the model was trained: by class_labels, prompt, layout or condition_image
        (or `conditions`); one of them is drawn `batch_size` times. None of them: anything.

        Args:
            class_labels: classes, by index or name; for several in one image "cat+dog" or a sequence.
            prompt: what the image shows, in words.
            layout: masks of class indices, (H, W) or (B, H, W), or PIL images of mode L or P; of any size.
            condition_image: images to restore, of any size.
            conditions: what the model's conditioner makes of these (`encode`, `of`), first axis = image.
            negative_class_labels: classes to move away from, instead of from no class at all.
            negative_prompt: what the image should not show, in words.
            image: an image to start from; brought to the size of the result.
            strength: share of the way that is gone from `image`, above 0 (hardly changed) to 1 (drawn anew); None: 0.8,
                or 1 with a mask.
            mask_image: where `image` is drawn anew (bright) and where it stays (dark); of any size. A denoiser of
                latents draws every cell anew that has a bright pixel, and the dark ones are then put back as they were.
            batch_size: number of images; None: as many as there are conditions or latents, else 1.
            num_inference_steps: denoising steps.
            guidance_scale: 1 = no guidance (half the work), larger = more typical of the condition, less varied.
            guidance_rescale: 0 to 1, undoes the overexposure of a large guidance scale (Lin et al. 2024).
            guidance_interval: guidance only here, shares of the timesteps from 0 (clean) to 1 (noise); outside, a step
                costs half (Kynkäänniemi et al. 2024).
            height: pixels; None: the size the model was trained at.
            width: pixels; None: the size the model was trained at.
            generator: of the starting noise and of the steps' noise; a list has one for each image.
            latents: starting noise of unit variance, (B, *noise_shape()), instead of drawing it.
            output_type: "pil" (list of images), "np" (B, H, W, C) or "pt" (B, C, H, W); numbers in [0, 1]. "latent":
                what was noised, without decoding, float32 (B, *noise_shape()) on the device.
            callback_on_step_end: called as (pipeline, step, timestep, {"latents": x}) after each step; may
                return a dict with other latents.
            steering: lead the images to what a loss wants, by its gradient (`unetdiff.diffusion.steering`); of pixels
                only.
            return_trajectory: keep this many evenly spaced moments of the way to the image (0: none).
            autocast_dtype: run the networks under autocast, e.g. torch.bfloat16; x_t stays in float32.
            return_dict: False returns a tuple.

        Raises:
            UserError: a condition that the model was not trained with, an unknown class or output type, a number of
                images, of negatives or of generators that is not that of the conditions, no size, or one that an
                autoencoder does not divide, or steering of latents.
        """
        if output_type not in OUTPUT_TYPES:
            raise UserError(f"output_type: '{output_type}' is not one of {', '.join(OUTPUT_TYPES)}.")
        steps_allowed = self.scheduler.config.num_train_timesteps
        if not 1 <= num_inference_steps <= steps_allowed:
            raise UserError(f"num_inference_steps: {num_inference_steps} is not between 1 and {steps_allowed}.")
        if not 0 <= guidance_interval[0] <= guidance_interval[1] <= 1:
            raise UserError(f"guidance_interval: {guidance_interval} is no interval; give shares, e.g. (0.2, 0.8).")
        if mask_image is not None and image is None:
            raise UserError("mask_image: there is no image to keep; give image as well.")
        device, codec = self._execution_device, self.codec
        if steering is not None and not isinstance(codec, PixelCodec):
            raise UserError("steering: this model denoises latents, and the loss sees images; use None.")
        shape = self.noise_shape(height, width) if latents is None else tuple(latents.shape[1:])
        grid = (shape[-2], shape[-1])
        size = (grid[0] * codec.factor, grid[1] * codec.factor)
        asked = {"class_labels": class_labels, "prompt": prompt, "layout": layout, "condition_image": condition_image}
        told = self._encoded(asked, size) if conditions is None else conditions
        batch = self._batch(told, batch_size, None if latents is None else len(latents))
        if isinstance(generator, list) and len(generator) != batch:
            raise UserError(f"generator: {len(generator)} are given for {batch} images; give one, or one for each.")
        if latents is None:
            latents = randn_tensor((batch, *shape), generator=generator, device=device, dtype=torch.float32)
        latents = latents.to(device, torch.float32)

        with _evaluating(self.unet, self.conditioner):
            unwanted = {"class_labels": negative_class_labels, "prompt": negative_prompt}
            away = self._encoded(unwanted, size, "negative_")
            if away is not None and len(away) not in (1, batch):
                raise UserError(f"negative_{self.conditioner.pipeline_arg}: {len(away)} are given for {batch} images.")
            conditional, null = self._contexts(told, away, batch, size, grid)
            schedulers.set_steps(self.scheduler, num_inference_steps, device)
            known, timesteps = None, self.scheduler.timesteps
            if image is not None:
                known = known_image(image, mask_image, latents, codec)
                usual = STRENGTH if mask_image is None else STRENGTH_WITH_MASK
                timesteps = img2img_timesteps(
                    self.scheduler, num_inference_steps, usual if strength is None else strength
                )
            kept = _evenly(len(timesteps), return_trajectory - 1)  # the finished image is the last entry
            history: list[tuple[int, torch.Tensor, torch.Tensor]] = []
            step_arguments = self._step_arguments(generator)
            precision = partial(_precision, device.type, autocast_dtype)
            denoise = self._denoiser(precision)
            both = None if conditional is None or null is None else concat_conditioning(null, conditional)

            def pixels(x: torch.Tensor) -> torch.Tensor:
                with precision():
                    return codec.decode(x)

            xt = latents * self.scheduler.init_noise_sigma
            if known is not None and len(timesteps) < len(self.scheduler.timesteps):
                xt = known.at(self.scheduler, timesteps[0])
            with self.progress_bar(total=len(timesteps)) as progress:
                for step, t in enumerate(timesteps):
                    scale = guidance_scale if in_guidance_interval(t, steps_allowed, guidance_interval) else 1.0
                    model_input = self.scheduler.scale_model_input(xt, t)

                    def predict(x: torch.Tensor, t: torch.Tensor = t, scale: float = scale) -> torch.Tensor:
                        return classifier_free_guidance(denoise, x, t, conditional, null, scale, guidance_rescale, both)

                    if steering is None:
                        output = predict(model_input)
                    else:
                        output = steered(steering, self.scheduler, predict, model_input, t)
                    if step in kept:
                        whole = t.round().long().expand(batch)  # some schedulers count in floats
                        x0 = predicted_x0(self.scheduler, output, model_input, whole)
                        history.append((int(whole[0]), _to_unit(pixels(model_input)), _to_unit(pixels(x0))))
                    xt = schedulers.step(self.scheduler, output, t, xt, **step_arguments)
                    if known is not None:
                        xt = known.kept(self.scheduler, xt, timesteps[step + 1] if step + 1 < len(timesteps) else None)
                    if callback_on_step_end is not None:
                        xt = (callback_on_step_end(self, step, t, {"latents": xt}) or {}).get("latents", xt)
                    progress.update()
            decoded: Any = None  # (B, C, H, W)
            if output_type != "latent" or return_trajectory:
                drawn = pixels(xt)
                decoded = _to_unit(drawn if known is None else known.pasted(drawn))
        self.maybe_free_model_hooks()

        trajectory = _trajectory([*history, (0, decoded, decoded)]) if return_trajectory else None
        images: Any = xt if output_type == "latent" else decoded
        if output_type in ("np", "pil"):
            images = rearrange(decoded, "b c h w -> b h w c").numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        if not return_dict:
            return (images,) if trajectory is None else (images, trajectory)
        return GenerationOutput(images=images, trajectory=trajectory)

    @property
    def channels(self) -> int:
        """Channels of what is noised: those of the network's input without what the conditioner puts beside it."""
        return self.unet.config.in_channels - (0 if self.conditioner is None else self.conditioner.channels)

    @property
    def codec(self) -> Codec:
        """What is noised."""
        return make_codec(self.vae, dict(self.config).get("masks"))

    def _encoded(self, asked: dict[str, Any], size: Size, prefix: str = "") -> torch.Tensor | None:
        """The conditions (B, ...) that were asked for, by whichever argument; None: none."""
        given = {name: value for name, value in asked.items() if value is not None}
        right = None if self.conditioner is None else self.conditioner.pipeline_arg
        for name in given:
            if name != right:
                instead = "without a condition; leave it out" if right is None else f"with {right}; use that"
                raise UserError(f"{prefix}{name}: this model was trained {instead}.")
        return self.conditioner.encode(given[right], size) if right in given else None

    def _batch(self, conditions: torch.Tensor | None, batch_size: int | None, given: int | None) -> int:
        """How many images to draw."""
        wanted = given if batch_size is None else batch_size
        if given is not None and wanted != given:
            raise UserError(f"batch_size: {batch_size}, but latents are given for {given} images.")
        if conditions is None:
            return 1 if wanted is None else wanted
        if wanted is not None and len(conditions) not in (1, wanted):
            raise UserError(f"{self.conditioner.pipeline_arg}: {len(conditions)} are given for {wanted} images.")
        return len(conditions) if wanted is None else wanted

    def _contexts(
        self, conditions: torch.Tensor | None, away: torch.Tensor | None, batch: int, size: Size, grid: Size
    ) -> tuple[Conditioning | None, Conditioning | None]:
        """Context of the conditions, and of what guidance moves away from, for images of `size`, noised on `grid`."""
        if self.conditioner is None:
            return None, None

        def context(given: torch.Tensor) -> Conditioning:
            return self.conditioner(given.expand(batch, *given.shape[1:]), grid)

        nothing = context(self.conditioner.null_condition(batch, size))
        if conditions is None:
            return nothing, None if away is None else context(away)
        return context(conditions), nothing if away is None else context(away)

    def size(self, height: int | None = None, width: int | None = None) -> Size:
        """Height and width of what is drawn, pixels; what is not given is the size that the model was trained at.

        Raises:
            UserError: the model does not say.
        """
        size, factor = self.unet.config.sample_size, self.codec.factor
        if size is not None:
            sides = (size, size) if isinstance(size, int) else tuple(size)
            height, width = height or sides[0] * factor, width or sides[1] * factor
        if not height or not width:
            raise UserError("height, width: the model does not say what size it was trained at; give both.")
        return height, width

    def noise_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """Channels, height and width of the noise that an image of so many pixels is drawn from.

        Raises:
            UserError: no size, or one that the autoencoder does not divide.
        """
        return (self.channels, *self.codec.grid(self.size(height, width), "height, width"))

    def _denoiser(self, precision: Callable[[], AbstractContextManager[Any]]) -> Denoise:
        ours = isinstance(self.unet, UNet) and self.unet._compiled_call_impl is None  # compiled code takes tensors only
        conditions: dict[int, dict[str, Any]] = {}  # of each context, which lives as long as this function

        def denoise(sample: torch.Tensor, timestep: torch.Tensor, context: Conditioning | None) -> torch.Tensor:
            told = context or Conditioning()
            sample = told.concat_channels(sample).to(self.unet.dtype, memory_format=torch.channels_last)
            if id(context) not in conditions:
                tokens = told.tokens
                if tokens is None and isinstance(self.unet, UNet2DConditionModel):  # ours puts them in itself
                    tokens = null_context(len(sample), self.unet.config["cross_attention_dim"], like=sample)
                if tokens is None:
                    conditions[id(context)] = {}
                else:
                    tokens = tokens.to(self.unet.dtype)
                    conditions[id(context)] = {"encoder_hidden_states": CrossAttentionCache(tokens) if ours else tokens}
            with precision():
                return self.unet(sample, timestep, **conditions[id(context)]).sample.float()

        return denoise

    def _step_arguments(self, generator: torch.Generator | list[torch.Generator] | None) -> dict[str, Any]:
        """What this scheduler's `step` takes beyond the three arguments that they all take."""
        known = inspect.signature(self.scheduler.step).parameters
        # a clipped x_0 must be followed by the noise that agrees with it, as in DDIM's own code
        every = {"generator": generator, "use_clipped_model_output": True}
        return {name: value for name, value in every.items() if name in known}


def _precision(device_type: str, autocast_dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Autocast where a precision is asked for."""
    return nullcontext() if autocast_dtype is None else torch.autocast(device_type, autocast_dtype)


def _to_unit(images: torch.Tensor) -> torch.Tensor:
    """[-1, 1] on any device to [0, 1] on the CPU, clipped."""
    return (images.float().cpu() / 2 + 0.5).clamp(0, 1)


def _evenly(total: int, count: int) -> set[int]:
    """At most `count` evenly spaced indices below `total`, starting with 0."""
    count = min(count, total)
    return {round(i * total / count) for i in range(count)} if count > 0 else set()


def _trajectory(history: list[tuple[int, torch.Tensor, torch.Tensor]]) -> Trajectory:
    timesteps, noisy, predicted = zip(*history, strict=True)
    return Trajectory(list(timesteps), torch.stack(noisy), torch.stack(predicted))


@contextmanager
def _evaluating(*models: torch.nn.Module | None) -> Iterator[None]:
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
