"""The parts of a pipeline directory: which classes they may be, how each is loaded, and whether they fit together.

No class is loaded because a file names it: model_index.json is compared with the classes listed here, so that a
directory cannot run code of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.configuration_utils import ConfigMixin

from unetdiff.diffusion.autoencoders import CLASSES as AUTOENCODERS
from unetdiff.diffusion.autoencoders import load_autoencoder
from unetdiff.diffusion.conditioning.base import Conditioner
from unetdiff.diffusion.conditioning.captions import CaptionConditioner
from unetdiff.diffusion.conditioning.load import KINDS, load_conditioner
from unetdiff.diffusion.conditioning.text_encoder import saved_model
from unetdiff.diffusion.mask_codec import INDEX, MASKS, MaskCodec
from unetdiff.diffusion.scheduler_file import SCHEDULER_CLASSES, load_scheduler
from unetdiff.diffusion.stable_diffusion import LATENT_DIFFUSION, LDM_LIBRARY, UNUSED, prompt_conditioner
from unetdiff.diffusion.stable_diffusion import PIPELINES as STABLE_DIFFUSION
from unetdiff.errors import FileError, UserError
from unetdiff.files import hub, records
from unetdiff.files.folders import is_there
from unetdiff.files.hub_errors import hub_reason
from unetdiff.files.pipeline_parts import LATENT_DIFFUSION as LATENT_DIFFUSION_PARTS
from unetdiff.files.pipeline_parts import part
from unetdiff.models.config import STOCK_CLASSES
from unetdiff.models.unet import UNet

OURS = "GenerationPipeline"
PIPELINES = (OURS, "DDIMPipeline", "DDPMPipeline", *STABLE_DIFFUSION)
"""Classes of pipelines whose directories are read: ours, diffusers' of an unconditional denoiser of pixels, and Stable
Diffusion's."""
LIBRARIES: dict[str, dict[str, tuple[str, ...]]] = {
    "unet": {"unetdiff.models.unet": ("UNet",), "diffusers": STOCK_CLASSES},
    "scheduler": {"diffusers": SCHEDULER_CLASSES},
    "conditioner": {kind.__module__: (kind.__name__,) for kind in KINDS},
    "vae": {"diffusers": tuple(AUTOENCODERS)},
}
"""Component -> library -> classes. Text encoder and tokenizer are loaded as transformers' own classes, whatever the
index calls them."""
TRANSFORMERS = ("text_encoder", "tokenizer")
LDM = {LDM_LIBRARY: ("LDMBertModel",)}
"""Latent Diffusion's text encoder, of diffusers."""
ABSENT = ([None, None], None)
REQUIRED = ("unet", "scheduler")


def read_index(directory: Path) -> dict[str, Any]:
    """model_index.json of a pipeline directory, checked: the (library, class) of each part that it has, and masks.

    Raises:
        FileError: not a pipeline, a key that is missing or unknown, or a class that is not among those loaded.
    """
    path = directory / INDEX
    index = records.read_object(path)
    kind = index.get("_class_name")
    if kind not in PIPELINES:
        raise FileError.of(path, f"_class_name={kind}: must be {' or '.join(PIPELINES)}")
    parts: dict[str, Any] = {}
    renamed = {other: name for name, other in LATENT_DIFFUSION_PARTS.items()} if kind == LATENT_DIFFUSION else {}
    for folder, value in index.items():
        name = renamed.get(folder, folder)
        if name.startswith("_") or (kind in STABLE_DIFFUSION and name in UNUSED):
            continue
        if name == MASKS:
            parts[MASKS] = MaskCodec.parse(path, value)
            continue
        if name not in (*LIBRARIES, *TRANSFORMERS):
            raise FileError.of(path, f"'{folder}' is not a part of this version's pipelines")
        if value not in ABSENT and not (isinstance(value, list) and [type(one) for one in value] == [str, str]):
            raise FileError.of(path, f"'{folder}' must be [library, class], or two nulls (got {value!r:.80})")
        if value in ABSENT:
            continue
        library, class_name = value
        allowed = {"transformers": (class_name,), **LDM} if name in TRANSFORMERS else LIBRARIES[name]
        if class_name not in allowed.get(library, ()):
            known = ", ".join(f"{module}.{one}" for module, classes in allowed.items() for one in classes[:4])
            raise FileError.of(path, f"'{folder}' must be one of {known} (got {library}.{class_name})")
        parts[name] = (library, class_name)
    required = (*REQUIRED, "vae", *TRANSFORMERS) if kind in STABLE_DIFFUSION else REQUIRED
    missing = [name for name in required if name not in parts]
    if missing:
        raise FileError.of(path, f"must have the key '{missing[0]}'")
    return parts


def load_components(directory: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `GenerationPipeline` from its directory.

    Args:
        directory: with model_index.json.
        given: parts that replace those of the directory, by name.

    Raises:
        UserError: a part that is missing, damaged, of another class, or does not fit the others.
    """
    index = read_index(directory)
    loaded: dict[str, Any] = {MASKS: index[MASKS].settings} if MASKS in index else {}
    for name in index:
        if name in given or name in (MASKS, *TRANSFORMERS):
            continue
        folder = part(directory, name)
        if not folder.is_dir():
            raise FileError.of(folder, f"must exist, as {directory / INDEX} names it")
        if name == "unet":
            loaded[name] = UNet.from_pretrained(folder)
        elif name == "scheduler":
            loaded[name] = load_scheduler(folder, strict=index["unet"][1] == "UNet")
        elif name == "conditioner":
            loaded[name] = load_conditioner(folder)
        elif name == "vae":
            loaded[name] = load_autoencoder(folder, "vae")
    reads_prompts = "conditioner" not in index and "text_encoder" in index
    if (reads_prompts or isinstance(loaded.get("conditioner"), CaptionConditioner)) and "text_encoder" not in given:
        loaded["text_encoder"], loaded["tokenizer"] = saved_model(directory)
    loaded |= given
    if reads_prompts and "conditioner" not in given:
        parts = (loaded[name] for name in ("unet", *TRANSFORMERS))
        loaded["conditioner"] = prompt_conditioner(directory, *parts)
    require_agreement(directory, loaded)
    return loaded


def require_agreement(directory: Path, parts: Mapping[str, Any]) -> None:
    """UserError for parts whose numbers of channels or widths of tokens differ."""
    unet, conditioner, vae, masks = (parts.get(name) for name in ("unet", "conditioner", "vae", MASKS))
    if not isinstance(unet, UNet):
        return

    def require(what: str, got: Any, expected: Any, of: str) -> None:
        if got != expected:
            raise FileError.of(directory / "unet", f"{what} must be {expected}, as of {of} (got {got})")

    if unet.out_channels is None:
        raise FileError.of(directory / "unet", "must have a diffusion head")
    extra = conditioner.channels if isinstance(conditioner, Conditioner) else 0
    require("in_channels", unet.config["in_channels"], unet.out_channels + extra, "its diffusion head and conditioner")
    if vae is not None:
        require("out_channels", unet.out_channels, vae.config["latent_channels"], "the autoencoder's latents")
    if masks is not None:
        require("out_channels", unet.out_channels, len(masks["classes"]), "the classes of masks")
    if vae is None and masks is None:
        require("out_channels", unet.out_channels, 3, "RGB images")
    dim = conditioner.config.get("dim") if isinstance(conditioner, ConfigMixin) else None
    if dim is not None:
        require("cross_attention_dim", unet.config["conditioning"]["cross_attention_dim"], dim, "the conditioner")


def downloaded(name: str, revision: str | None = None) -> Path:
    """A model's directory on the Hub, downloaded if it is not in the Hub's cache, without pickles and without code.

    Of diffusers' pipelines, the files that diffusers itself would load; of ours, all.

    Args:
        name: "owner/model".
        revision: branch, tag or commit; None: its main branch.

    Raises:
        UserError: no such model, or no connection.
    """
    import diffusers

    if hub.NAME.fullmatch(name) is None:
        raise UserError(f"'{name}' does not exist. Give a model directory, or OWNER/NAME on the Hub.")
    directory = hub.resolved(name, ("*.json", "*/*.json"), revision=revision)
    index = records.read_object(directory / INDEX) if is_there(directory / INDEX) else {}
    if not hasattr(diffusers, str(index.get("_class_name"))):
        return hub.resolved(name, hub.MODEL_FILES, revision=revision)
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    try:
        return Path(DiffusionPipeline.download(name, revision=revision, use_safetensors=True, trust_remote_code=False))
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{name}: must be a directory or a model on the Hub ({hub_reason(error)}).") from None
