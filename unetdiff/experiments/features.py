"""Named feature maps of frozen networks: ours at any timestep, and a bare torchvision trunk."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unetdiff.config.reading import from_yaml
from unetdiff.data.base import ImageDataset
from unetdiff.data.hashing import generator_of
from unetdiff.data.transforms import to_model_range
from unetdiff.diffusion.mask_codec import MaskCodec
from unetdiff.errors import UserError
from unetdiff.models import loading
from unetdiff.models.conditioning import ForwardState
from unetdiff.models.unet import UNet
from unetdiff.reports.runs import Run
from unetdiff.training.rundir import CONFIG
from unetdiff.training.tasks import DiffusionTask, JointTask, load_task

Moment = int | None
"""A timestep of the noise in an image; None: the clean image."""
CLEAN = "clean"
"""What None is called."""


def moments(words: Sequence[str], option: str = "--timesteps") -> list[Moment]:
    """Words as moments: "clean", or a timestep of 0 or more, each once.

    Raises:
        UserError: another word.
    """
    found: list[Moment] = []
    for word in words:
        if word != CLEAN and not word.isdecimal():
            raise UserError(f"{option}: {word!r} is no timestep; give numbers of 0 or more, or {CLEAN}")
        found.append(None if word == CLEAN else int(word))
    return list(dict.fromkeys(found))


def called(moment: Moment) -> str:
    """ "clean", or the timestep."""
    return CLEAN if moment is None else str(moment)


def titles(maps: Mapping[str, Tensor]) -> dict[str, str]:
    """What a reader calls the maps of `UNet.features`: "encoder 16x16", "decoder 32x32 #2".

    Part and size (height x width), and a number where several blocks share both; in the order they are computed. The
    map that the heads read ("last") is the last block's, and is left out.
    """
    plain = {key: f"{key.split('.')[0]} {m.shape[-2]}x{m.shape[-1]}" for key, m in maps.items() if key != "last"}
    several = {title for title, count in Counter(plain.values()).items() if count > 1}
    seen: Counter[str] = Counter()
    named: dict[str, str] = {}
    for key, title in plain.items():
        seen[title] += 1
        named[key] = f"{title} #{seen[title]}" if title in several else title
    return named


def noise_of(names: Sequence[str], shape: Sequence[int], seed: int) -> Tensor:
    """Gaussian noise (B, *shape) on the CPU, a function of each image's name and the seed alone.

    So an image has the same noise whenever it is looked at, at every timestep and by every network of one input shape.
    """
    drawn = [torch.randn(tuple(shape), generator=generator_of(seed, zlib.crc32(name.encode()))) for name in names]
    return torch.stack(drawn)


class Features(ABC):
    """A frozen network's maps.

    Attributes:
        name: what the network is called beside its figures.
        moments: what it can be looked at; [None] for a network of clean images.
    """

    name: str
    moments: list[Moment]

    def __init__(self, name: str, network: nn.Module, moments: list[Moment]) -> None:
        self.name, self.moments = name, moments
        self.network = network.eval().requires_grad_(False)
        self._titles: dict[str, str] | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor, names: Sequence[str], moment: Moment = None) -> dict[str, Tensor]:
        """The maps {title: (B, C, h, w)} of uint8 images (B, 3, H, W), float32 on the network's device.

        Titles are those of the first images' sizes. names: the images', which their noise depends on.
        """
        maps = self._maps(images, names, moment)
        if self._titles is None:
            self._titles = titles(maps)
        return {title: maps[key].float() for key, title in self._titles.items()}

    @abstractmethod
    def _maps(self, images: Tensor, names: Sequence[str], moment: Moment) -> dict[str, Tensor]: ...


class UNetFeatures(Features):
    """Every block of one of our U-Nets (`UNet.features`), told no condition.

    Args:
        name: what it is called.
        unet: the network.
        diffusion: the task that noises images (or their latents) for it and tells it nothing; None: it sees clean
            ones only.
        segments: it was trained on clean images too, which it is then given as its segmentation head is.
        moments: timesteps of a denoiser.
        seed: of the noise.
    """

    def __init__(
        self, name: str, unet: UNet, diffusion: DiffusionTask | None, segments: bool, moments: list[Moment], seed: int
    ) -> None:
        super().__init__(name, unet, moments if diffusion is not None else [None])
        self.unet, self.diffusion, self.segments, self.seed = unet, diffusion, segments, seed

    def _maps(self, images: Tensor, names: Sequence[str], moment: Moment) -> dict[str, Tensor]:
        task = self.diffusion
        if task is None or (moment is None and self.segments):
            return self.unet.features(to_model_range(images.to(self.unet.device)))
        x0 = task.clean({"image": images})  # pixels or latents (B, K, h, w)
        size = (x0.shape[-2], x0.shape[-1])
        nothing = None if task.conditioner is None else task.conditioner.null_condition(len(x0), size).to(x0.device)
        if moment is None:
            context = task.conditioning(nothing, size)
            return self.unet.features(context.concat_channels(x0), 0, context.tokens)
        noise = noise_of(names, x0.shape[1:], self.seed).to(x0)
        noised = task.noised_with(x0, noise, torch.full((len(x0),), moment, device=x0.device), nothing)
        return self.unet.features(noised.sample, noised.timesteps, noised.conditioning.tokens)

    def with_random_weights(self, name: str, seed: int, moments: list[Moment] | None = None) -> UNetFeatures:
        """A network of the same config with fresh weights, shown the same images and noise."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            fresh = loading.build(UNet, loading.plain(self.unet.config)).to(self.unet.device)
        return UNetFeatures(name, fresh, self.diffusion, self.segments, moments or self.moments, self.seed)


def open_features(
    run: Run, val: ImageDataset, moments: list[Moment], seed: int, device: torch.device | str
) -> UNetFeatures:
    """The best weights of a run; noised images for a run that trained a diffusion head, clean ones for others.

    val: the run's validation images. moments: those of a denoiser.

    Raises:
        UserError: a timestep that the denoiser has not, a denoiser of masks, or the unpadded 2015 network, whose maps
            are of the image's middle alone.
    """
    assert run.model is not None
    task = load_task(from_yaml(run.path / CONFIG), run.model, val).to(device)
    if task.unet.config["encoder"]["padding"] == "valid":
        raise UserError(f"{run.path}: model.encoder.padding 'valid' gives maps of the image's middle alone; use same")
    diffusion = task.diffusion if isinstance(task, JointTask) else task
    if not isinstance(diffusion, DiffusionTask) or "diffusion" not in run.heads:
        return UNetFeatures(run.name, task.unet, None, True, [None], seed)
    if isinstance(diffusion.codec, MaskCodec):
        raise UserError(f"{run.path}: draws masks (diffusion.target mask), it sees no noisy images; give another run")
    late = [moment for moment in moments if moment is not None and moment >= diffusion.timesteps]
    if late:
        raise UserError(
            f"--timesteps: {late[0]} is beyond the {diffusion.timesteps} timesteps of {run.path}; "
            f"use {diffusion.timesteps - 1} or less"
        )
    return UNetFeatures(run.name, task.unet, diffusion, "segmentation" in run.heads, moments, seed)


class TrunkFeatures(Features):
    """The five maps of a torchvision trunk alone, as our encoder has them.

    Args:
        family: a trunk of `unetdiff.models.config.PRETRAINED_ENCODERS`.
        weights: "imagenet" (downloaded), or a safetensors file with torchvision's names.
        side: the short side that smaller images are enlarged to first: it has five levels, and at 32 pixels the last
            is a single cell.
        device: where to run it.

    Raises:
        UserError: an unknown trunk, or weights that cannot be had.
    """

    def __init__(self, family: str, weights: str, side: int, device: torch.device | str) -> None:
        try:
            unet = UNet(encoder={"name": family, "weights": weights}, heads={"segmentation": {}})  # never asked
        except UserError as error:
            raise UserError(str(error).replace("model.encoder.weights", "--trunk_weights")) from None
        except OSError as error:
            why = f"{weights} of {family} cannot be downloaded ({error})"
            raise UserError(f"--trunk_weights: {why}; give a safetensors file") from None
        super().__init__(f"{family}, ImageNet", unet.encoder.to(device), [None])
        self.side, self.device = side, torch.device(device)

    def _maps(self, images: Tensor, names: Sequence[str], moment: Moment) -> dict[str, Tensor]:
        x = to_model_range(images.to(self.device))
        factor = self.side / min(x.shape[-2:])
        if factor > 1:
            size = [round(side * factor) for side in x.shape[-2:]]
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        condition = ForwardState(None, None, maps={})
        self.network(x, condition)
        assert condition.maps is not None
        return condition.maps
