"""The directory of `model.pretrained` with its weights, and the parts of a run that are read from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetdiff.config.pretrained import facts_directory, is_hub_name
from unetdiff.diffusion.codecs import Codec, LatentCodec
from unetdiff.diffusion.components import INDEX, downloaded, load_components
from unetdiff.diffusion.pipeline import GenerationPipeline
from unetdiff.diffusion.scheduler_file import CONFIG, load_scheduler
from unetdiff.models.unet import UNet

if TYPE_CHECKING:
    from unetdiff.config.schema import RunConfig


def pretrained_directory(config: RunConfig) -> Path | None:
    """The directory of the pretrained model, downloaded if it is on the Hub; None without one.

    Raises:
        UserError: it does not exist, or cannot be downloaded.
    """
    name = config.model.pretrained
    if name is None:
        return None
    directory = facts_directory(config)
    if is_hub_name(name) and directory.parent != Path(config.training.output_dir):
        return downloaded(name, config.model.revision)
    return directory


def component_path(config: RunConfig, value: str) -> str:
    """Where the autoencoder or text encoder of a key is: that of the pretrained model, or the key's own value."""
    directory = pretrained_directory(config) if value == config.model.pretrained else None
    return value if directory is None else str(directory)


def pretrained_scheduler(config: RunConfig) -> Any:
    """The pretrained model's scheduler, with all of its settings; None: it has none."""
    directory = pretrained_directory(config)
    if directory is None or not (directory / "scheduler" / CONFIG).is_file():
        return None
    return load_scheduler(directory / "scheduler", strict=False)


class KeptDenoiser:
    """What a pretrained denoiser samples with, saved with a segmenter that was trained from it.

    Not copied when a task is deep-copied (for its EMA).

    Args:
        parts: the arguments of `GenerationPipeline` but the U-Net.
    """

    def __init__(self, parts: dict[str, Any]) -> None:
        self.parts = parts

    def __deepcopy__(self, memo: dict[int, Any]) -> KeptDenoiser:
        return self

    def save(self, unet: UNet, directory: Path) -> None:
        """Write the pipeline's directory with this U-Net: of Stable Diffusion, one of diffusers' own."""
        GenerationPipeline(unet, **self.parts).save_pretrained(directory)


def pretrained_denoiser(config: RunConfig, codec: Codec) -> dict[str, Any] | None:
    """The network's config of a pretrained pipeline whose diffusion head a segmentation run keeps.

    None: no `model.pretrained`, one without a pipeline or a diffusion head, or a denoiser with another input than
    a segmenter has: of masks, of images next to a condition, or with class embeddings in its network.
    """
    directory = pretrained_directory(config)
    if directory is None or not (directory / INDEX).is_file() or config.diffusion.target == "mask":
        return None
    network = UNet.read_config(directory / "unet")
    head, table = network["heads"]["diffusion"], network["imported"]["num_class_embeds"]
    if head is None or table is not None or not network["in_channels"] == head["out_channels"] == codec.channels:
        return None
    return network


def kept_denoiser(config: RunConfig, unet: UNet, codec: Codec) -> KeptDenoiser:
    """The other parts of the pipeline of `pretrained_denoiser`.

    Raises:
        UserError: a part is missing, damaged, or does not fit the others.
    """
    directory = pretrained_directory(config)
    assert directory is not None
    given = {"unet": unet} | ({"vae": codec.vae} if isinstance(codec, LatentCodec) else {})
    parts = load_components(directory, given)
    return KeptDenoiser({name: part for name, part in parts.items() if name != "unet"})
