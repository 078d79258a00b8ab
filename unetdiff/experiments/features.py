"""Named feature maps of frozen networks: a `UNet` at any timestep, and a bare torchvision encoder."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unetdiff.data.base import ImageDataset
from unetdiff.data.hashing import generator_of
from unetdiff.data.transforms import to_model_range
from unetdiff.diffusion.mask_codec import MaskCodec
from unetdiff.errors import UserError, config_error
from unetdiff.evaluation.class_names import require_same_classes
from unetdiff.evaluation.load_run import run_config
from unetdiff.models import loading
from unetdiff.models.forward_state import ForwardState
from unetdiff.models.unet import UNet
from unetdiff.reports.runs import Run
from unetdiff.segmentation.pipeline import saved_classes
from unetdiff.segmentation.segmenter import Segmenter
from unetdiff.training.tasks.build import denoiser_of, load_task, segmentation_of
from unetdiff.training.tasks.diffusion import DiffusionTask

NoiseLevel = int | None
"""Timestep of the noise in an image; None: the clean image."""
CLEAN = "clean"
"""Name of the noise level None."""


def parse_noise_levels(words: Sequence[str], option: str = "--timesteps") -> list[NoiseLevel]:
    """Parse noise levels, "clean" or a timestep of at least 0, without duplicates.

    Raises:
        UserError: another word.
    """
    levels: list[NoiseLevel] = []
    for word in words:
        if word != CLEAN and not word.isdecimal():
            raise config_error(option, word, f"a timestep of at least 0, or {CLEAN}")
        levels.append(None if word == CLEAN else int(word))
    return list(dict.fromkeys(levels))


def level_name(level: NoiseLevel) -> str:
    """ "clean", or the timestep."""
    return CLEAN if level is None else str(level)


def block_names(maps: Mapping[str, Tensor]) -> dict[str, str]:
    """Readable names of the maps of `UNet.features`, e.g. "encoder 16x16", "decoder 32x32 #2".

    Part and size (height x width), numbered where several blocks share both, in the order of computation. "last", the
    input of the heads, is left out because it equals the last block's map.
    """
    names = {key: f"{key.split('.')[0]} {m.shape[-2]}x{m.shape[-1]}" for key, m in maps.items() if key != "last"}
    duplicated = {name for name, count in Counter(names.values()).items() if count > 1}
    seen: Counter[str] = Counter()
    unique: dict[str, str] = {}
    for key, name in names.items():
        seen[name] += 1
        unique[key] = f"{name} #{seen[name]}" if name in duplicated else name
    return unique


def noise_for_names(names: Sequence[str], shape: Sequence[int], seed: int) -> Tensor:
    """Gaussian noise (B, *shape) on the CPU, a function of each image's name and the seed.

    An image gets the same noise at every timestep and in every network of one input shape.
    """
    noise = [torch.randn(tuple(shape), generator=generator_of(seed, zlib.crc32(name.encode()))) for name in names]
    return torch.stack(noise)


class Features(ABC):
    """The feature maps of a frozen network.

    Attributes:
        name: name of the network in the report.
        noise_levels: the supported noise levels; [None] for a network of clean images.
    """

    name: str
    noise_levels: list[NoiseLevel]

    def __init__(self, name: str, network: nn.Module, noise_levels: list[NoiseLevel]) -> None:
        self.name, self.noise_levels = name, noise_levels
        self.network = network.eval().requires_grad_(False)
        self._block_names: dict[str, str] | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor, names: Sequence[str], level: NoiseLevel = None) -> dict[str, Tensor]:
        """The maps {block name: (B, C, h, w)} of uint8 images (B, 3, H, W), float32 on the network's device.

        Block names contain the map sizes of the first images. names: the images' names, which determine their noise.
        """
        maps = self._maps(images, names, level)
        if self._block_names is None:
            self._block_names = block_names(maps)
        return {name: maps[key].float() for key, name in self._block_names.items()}

    @abstractmethod
    def _maps(self, images: Tensor, names: Sequence[str], level: NoiseLevel) -> dict[str, Tensor]: ...


class UNetFeatures(Features):
    """Every block of a `UNet` (`UNet.features`), unconditional.

    Args:
        name: name in the report.
        unet: the network.
        diffusion: the task that noises images (or their latents) and provides the null condition; None: the network
            sees clean images only.
        segmenter: what its segmentation head sees images through, on clean images; None: no such head.
        noise_levels: noise levels of a denoiser.
        seed: seed of the noise.
    """

    def __init__(
        self,
        name: str,
        unet: UNet,
        diffusion: DiffusionTask | None,
        segmenter: Segmenter | None,
        noise_levels: list[NoiseLevel],
        seed: int,
    ) -> None:
        super().__init__(name, unet, noise_levels if diffusion is not None else [None])
        self.unet, self.diffusion, self.segmenter, self.seed = unet, diffusion, segmenter, seed

    def _maps(self, images: Tensor, names: Sequence[str], level: NoiseLevel) -> dict[str, Tensor]:
        task = self.diffusion
        if self.segmenter is not None and (task is None or level is None):
            return self.segmenter.features(to_model_range(images.to(self.unet.device)))
        assert task is not None
        x0 = task.encode({"image": images})  # pixels or latents (B, K, h, w)
        size = (x0.shape[-2], x0.shape[-1])
        null = None if task.conditioner is None else task.conditioner.null_condition(len(x0), size).to(x0.device)
        if level is None:
            context = task.conditioning(null, size)
            return self.unet.features(context.concat_channels(x0), 0, context.tokens)
        noise = noise_for_names(names, x0.shape[1:], self.seed).to(x0)
        noised = task.add_noise_at(x0, noise, torch.full((len(x0),), level, device=x0.device), null)
        return self.unet.features(noised.sample, noised.timesteps, noised.conditioning.tokens)

    def with_random_weights(self, name: str, seed: int, noise_levels: list[NoiseLevel] | None = None) -> UNetFeatures:
        """A randomly initialized network of the same config, on the same images and noise."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            unet = loading.build(UNet, loading.plain(self.unet.config)).to(self.unet.device)
        segmenter = None if self.segmenter is None else replace(self.segmenter, unet=unet)
        return UNetFeatures(name, unet, self.diffusion, segmenter, noise_levels or self.noise_levels, self.seed)


def open_features(
    run: Run, val: ImageDataset, noise_levels: list[NoiseLevel], seed: int, device: torch.device | str
) -> UNetFeatures:
    """The best weights of a run; on noised images if it has a trained diffusion head, else on clean ones.

    Args:
        run: a finished run.
        val: its validation images.
        noise_levels: noise levels of a denoiser.
        seed: seed of the noise.
        device: device of the network.

    Raises:
        UserError: a timestep beyond the denoiser's, a denoiser of masks, or an encoder with padding=valid, whose maps
            cover only the center of the image.
    """
    assert run.model is not None
    task = load_task(run_config(run.path), run.model, val).to(device)
    if task.unet.config["encoder"]["padding"] == "valid":
        raise UserError(f"model.encoder.padding=valid: must be same, so that the maps cover the image ({run.path}).")
    if "segmentation" in run.heads:
        require_same_classes(saved_classes(run.model) or [], val.classes, str(run.model))
    diffusion, segmentation = denoiser_of(task), segmentation_of(task)
    segmenter = segmentation.segmenter if segmentation is not None and "segmentation" in run.heads else None
    if diffusion is None or "diffusion" not in run.heads:
        return UNetFeatures(run.name, task.unet, None, segmenter, [None], seed)
    if isinstance(diffusion.codec, MaskCodec):
        raise UserError(f"diffusion.target=mask: must be image, so that the network sees noised images ({run.path}).")
    diffusion.forward_process.require_clean_timestep(f"runs={run.path}")
    max_timestep = int(diffusion.forward_process.at_fraction(torch.tensor(1.0)))
    for level in noise_levels:
        if level is not None and level > max_timestep:
            raise config_error("--timesteps", level, f"at most {max_timestep} for {run.path}")
    return UNetFeatures(run.name, task.unet, diffusion, segmenter, noise_levels, seed)


class PretrainedEncoderFeatures(Features):
    """The five maps of a bare torchvision encoder, as in a `UNet`.

    Args:
        encoder: one of `unetdiff.models.config.PRETRAINED_ENCODERS`.
        weights: "imagenet" (downloaded), or a safetensors file with torchvision's names.
        min_size: images whose shorter side is below this are enlarged to it, in pixels: the encoder has five levels,
            and at 32 pixels the last map is 1x1.
        device: device of the encoder.

    Raises:
        UserError: an unknown encoder, or weights that cannot be loaded.
    """

    def __init__(self, encoder: str, weights: str, min_size: int, device: torch.device | str) -> None:
        try:
            unet = UNet(encoder={"name": encoder, "weights": weights}, heads={"segmentation": {}})  # head unused
        except UserError as error:
            raise UserError(str(error).replace("model.encoder.weights", "--encoder_weights")) from None
        except OSError as error:
            raise UserError(
                f"--encoder_weights={weights}: download of {encoder} failed ({error}). Give a safetensors file."
            ) from None
        super().__init__(f"{encoder}, ImageNet", unet.encoder.to(device), [None])
        self.min_size, self.device = min_size, torch.device(device)

    def _maps(self, images: Tensor, names: Sequence[str], level: NoiseLevel) -> dict[str, Tensor]:
        x = to_model_range(images.to(self.device))
        factor = self.min_size / min(x.shape[-2:])
        if factor > 1:
            size = [round(side * factor) for side in x.shape[-2:]]
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        state = ForwardState(None, None, maps={})
        self.network(x, state)
        assert state.maps is not None
        return state.maps
