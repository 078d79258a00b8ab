"""Tasks built from a config, or loaded from a model directory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from unetdiff.data.base import ImageDataset
from unetdiff.diffusion.codecs import Codec, LatentCodec, PixelCodec
from unetdiff.diffusion.conditioning.base import Conditioner
from unetdiff.diffusion.conditioning.captions import CaptionConditioner
from unetdiff.diffusion.conditioning.images import ImageConditioner
from unetdiff.diffusion.conditioning.load import load_conditioner
from unetdiff.diffusion.conditioning.prompt import PromptConditioner
from unetdiff.diffusion.conditioning.text_encoder import CachedFeatures, SavedFeatures, TextEncoder, saved_model
from unetdiff.diffusion.mask_codec import MaskCodec
from unetdiff.diffusion.objectives import build_scheduler
from unetdiff.diffusion.scheduler_file import load_scheduler
from unetdiff.diffusion.stable_diffusion import prompt_conditioner
from unetdiff.errors import config_error
from unetdiff.export.convert.to_diffusers import config_to_diffusers
from unetdiff.files.pipeline_parts import part
from unetdiff.kernels.accelerate import accelerate_training_
from unetdiff.models import loading
from unetdiff.models.config import DiffusionHeadConfig, HeadsConfig, SegmentationHeadConfig
from unetdiff.models.resolve import parse
from unetdiff.models.unet import UNet
from unetdiff.segmentation.context import FOLDER as CONTEXT_FOLDER
from unetdiff.segmentation.context import SegmentationContext
from unetdiff.segmentation.pipeline import saved_input
from unetdiff.training.conditions import build_conditioner, condition_channels
from unetdiff.training.pretrained import component_path, kept_denoiser, pretrained_denoiser, pretrained_scheduler
from unetdiff.training.segmentation_context import build_context
from unetdiff.training.sigma_data import measure_sigma_data
from unetdiff.training.tasks.base import Task
from unetdiff.training.tasks.diffusion import DiffusionTask
from unetdiff.training.tasks.joint import JointTask
from unetdiff.training.tasks.segmentation import SegmentationTask

if TYPE_CHECKING:
    from unetdiff.config.schema import RunConfig


def build_task(config: RunConfig, train: ImageDataset, val: ImageDataset) -> Task:
    """A task with a new network: output channels follow from the data, input channels from the condition.

    Raises:
        UserError: the autoencoder cannot be loaded, or its factor does not divide the image sizes.
    """
    model, codec, step = config.model, _codec(config, train), config.data.bucket_step
    if step is not None and step % codec.factor:
        raise config_error("data.bucket_step", step, f"a multiple of {codec.factor}, the autoencoder's factor")
    heads = HeadsConfig()
    if config.task != "diffusion":
        head = model.heads.segmentation or SegmentationHeadConfig()
        heads.segmentation = replace(head, num_classes=len(train.classes))
    if config.task != "segmentation":
        heads.diffusion = DiffusionHeadConfig(out_channels=codec.channels)
    size, source = model.sample_size, pretrained_denoiser(config, codec) if config.task == "segmentation" else None
    if source is not None:
        heads.diffusion, size = DiffusionHeadConfig(**source["heads"]["diffusion"]), size or source["sample_size"]
    if size is None and (config.task != "segmentation" or isinstance(codec, PixelCodec)):
        size = _sample_size(config.data.size, train, codec)
    channels = codec.channels + condition_channels(config, codec)
    unet = UNet(**replace(model, in_channels=channels, sample_size=size, heads=heads).network())
    conditioner = None if config.task == "segmentation" else build_conditioner(config, train, codec)
    noise = config.diffusion.noise
    if config.task == "diffusion" and noise.process == "edm" and noise.edm.sigma_data is None:
        noise = replace(noise, edm=replace(noise.edm, sigma_data=measure_sigma_data(train, codec)))
        config = replace(config, diffusion=replace(config.diffusion, noise=noise))
    kept = None if source is None else kept_denoiser(config, unet, codec)
    if isinstance(conditioner if kept is None else kept.parts.get("conditioner"), PromptConditioner):
        config_to_diffusers(parse(**loading.plain(unet.config)))  # refuses now what could not be saved
    task = _assemble(config, unet, conditioner, val, codec, build_context(config, train))
    denoiser, segmentation, scheduler = denoiser_of(task), segmentation_of(task), pretrained_scheduler(config)
    if denoiser is not None and scheduler is not None:
        denoiser.scheduler = scheduler
    if isinstance(task, JointTask):
        task.all_labelled = train.labelled is None
    if segmentation is not None:
        segmentation.kept = kept
    if segmentation is not None and segmentation.scheduler is not None and scheduler is not None:
        segmentation.set_scheduler(scheduler, config.diffusion.noise)
    return task


def load_task(config: RunConfig, directory: Path, val: ImageDataset) -> Task:
    """A task with the weights of a model directory, for evaluation.

    A head that a segmentation run kept from a pretrained denoiser has no task.
    """
    unet = accelerate_training_(UNet.from_pretrained(directory / "unet"))
    heads = unet.config["heads"]
    conditioner, text, vae = None, None, part(directory, "vae")
    codec = MaskCodec.saved(directory) or (LatentCodec.from_pretrained(vae, "vae") if vae.is_dir() else PixelCodec())
    if (directory / "conditioner").is_dir():
        conditioner = load_conditioner(directory / "conditioner")
    elif heads["diffusion"] and part(directory, "text_encoder").is_dir():
        text = saved_model(directory)
        conditioner = prompt_conditioner(directory, unet, *text)
    if isinstance(conditioner, CaptionConditioner):
        encoder = TextEncoder(*(text or saved_model(directory)), conditioner.max_tokens, conditioner.padded)
        conditioner.features = CachedFeatures(encoder)
    if isinstance(conditioner, ImageConditioner):
        conditioner.latents_of = codec.encode
    if not (heads["segmentation"] and config.task == "segmentation"):
        config.task = "joint" if all(heads.values()) else ("segmentation" if heads["segmentation"] else "diffusion")
    folder = directory / CONTEXT_FOLDER
    context = SegmentationContext.from_pretrained(folder) if folder.is_dir() and heads["segmentation"] else None
    if context is not None and context.reads_captions:
        context.features = SavedFeatures(directory, context.config["tokens"])
    task = _assemble(config, unet, conditioner, val, codec, context)
    segmentation = segmentation_of(task)
    if segmentation is not None:
        segmentation.view = saved_input(directory)
    denoiser = denoiser_of(task)
    if denoiser is not None:  # the noise and the prediction type that the network was trained with
        denoiser.scheduler = load_scheduler(directory / "scheduler", strict=not loading.is_stock(directory / "unet"))
    return task


def denoiser_of(task: Task) -> DiffusionTask | None:
    """The task of the diffusion head; None without one."""
    denoiser = task.diffusion if isinstance(task, JointTask) else task
    return denoiser if isinstance(denoiser, DiffusionTask) else None


def segmentation_of(task: Task) -> SegmentationTask | None:
    """The task of the segmentation head; None without one."""
    segmentation = task.segmentation if isinstance(task, JointTask) else task
    return segmentation if isinstance(segmentation, SegmentationTask) else None


def _assemble(
    config: RunConfig,
    unet: UNet,
    conditioner: Conditioner | None,
    val: ImageDataset,
    codec: Codec,
    context: SegmentationContext | None = None,
) -> Task:
    size, dropout = config.data.size or config.data.longest_side, config.diffusion.condition_dropout
    if config.task == "segmentation":
        assert not isinstance(codec, MaskCodec)
        segmentation_config = config.segmentation
        noisy = segmentation_config.noise or segmentation_config.noised or segmentation_config.pseudo_labels
        scheduler = build_scheduler(config.diffusion) if noisy else None
        noise = config.diffusion.noise
        return SegmentationTask(unet, config.segmentation, val, size, scheduler, noise, codec, context, dropout)
    diffusion = DiffusionTask(unet, conditioner, config.diffusion, val, config.training.seed, codec, config.data.size)
    if config.task == "diffusion":
        return diffusion
    assert not isinstance(codec, MaskCodec)  # refused by the validation
    segmentation = SegmentationTask(
        unet,
        config.segmentation,
        val,
        size,
        diffusion.scheduler,
        config.diffusion.noise,
        codec=codec,
        context=context,
        caption_dropout=dropout,
    )
    return JointTask(segmentation, diffusion, config.joint)


def _codec(config: RunConfig, train: ImageDataset) -> Codec:
    """The codec of x0: pixels, latents or masks."""
    diffusion = config.diffusion
    if config.task != "segmentation" and diffusion.target == "mask":
        return MaskCodec(train.classes, train.palette.tolist())
    vae = config.latent.vae
    if vae is None:
        return PixelCodec(config.data.channels or 3)
    return LatentCodec.from_pretrained(component_path(config, vae))


def _sample_size(size: list[int] | None, data: ImageDataset, codec: Codec) -> int | list[int] | None:
    """The size of x0: its side, or [height, width]; None without `data.size` if the first image is not square."""
    height, width = codec.grid(tuple(data[0]["image"].shape[-2:]), "data.size")
    if height == width:
        return height
    return None if size is None else [height, width]
