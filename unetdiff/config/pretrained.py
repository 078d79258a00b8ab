"""`model.pretrained`: the keys that follow from a pretrained model, read from the JSON files of its directory.

A key that was left at its default follows silently; one that was set and differs is refused with both values.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unetdiff.config.command_line import assign
from unetdiff.config.schema import KEYS, RunConfig, Task, flatten
from unetdiff.errors import FileError, UserError, as_yaml, config_error
from unetdiff.files import hub
from unetdiff.files.folders import is_there
from unetdiff.files.pipeline_parts import part
from unetdiff.files.records import read_object, read_yaml
from unetdiff.files.writing import OLD
from unetdiff.models.config import RESIDUAL, RGB, STOCK_CLASSES, ModelConfig, in_rgb
from unetdiff.models.resolve import parse, resolve

KEY = "model.pretrained"
CONFIG, INDEX, UNET, SCHEDULER = "config.json", "model_index.json", "unet", "scheduler/scheduler_config.json"
TEXT_ENCODER = "diffusion.text.encoder"
TABLES = ("num_class_embeds", "class_embed_type", "segmentation_kernel_size")
FREE = (
    *("model.heads", "model.sample_size", "model.in_channels", "model.encoder.weights", "model.residual.dropout"),
    *(f"model.imported.{key}" for key in TABLES),
)
"""Keys of a network that a run may have otherwise: they follow from task, dataset and condition."""
NULL_IS_A_VALUE = ("model.conditioning.cross_attention_dim", "latent.vae")
"""Keys whose null is a choice; that of others stands for the default."""
NOISE = {
    "prediction_type": ("diffusion.prediction_type", "epsilon"),
    "beta_schedule": ("diffusion.noise.beta_schedule", "linear"),
    "beta_start": ("diffusion.noise.beta_start", 0.0001),
    "beta_end": ("diffusion.noise.beta_end", 0.02),
    "num_train_timesteps": ("diffusion.noise.num_train_timesteps", 1000),
    "rescale_betas_zero_snr": ("diffusion.noise.zero_terminal_snr", False),
}
"""Key of a scheduler -> ours, and the scheduler's default."""
EDM = {
    "prediction_type": ("diffusion.prediction_type", "epsilon"),
    "num_train_timesteps": ("diffusion.noise.num_train_timesteps", 1000),
    "sigma_data": ("diffusion.noise.edm.sigma_data", 0.5),
    "sigma_min": ("diffusion.noise.edm.sigma_min", 0.002),
    "sigma_max": ("diffusion.noise.edm.sigma_max", 80.0),
    "rho": ("diffusion.noise.edm.rho", 7.0),
}
"""The same of an EDM scheduler."""
CONDITIONERS: dict[str, tuple[str, dict[str, str]]] = {
    "ClassConditioner": ("class", {"tokens": "diffusion.class_tokens", "max_classes": "diffusion.max_classes"}),
    "TextConditioner": ("text", {"max_tokens": "diffusion.text.max_tokens"}),
    "LayoutConditioner": ("layout", {"grid": "diffusion.layout.grid", "channels": "diffusion.layout.channels"}),
    "ImageConditioner": (
        "image",
        {"degradation": "diffusion.image.degradation", "strength": "diffusion.image.strength"},
    ),
}
"""Class of a conditioner -> `diffusion.condition`, and its arguments' keys."""
ATTENTION = tuple(
    f"model.conditioning.{key}" for key in ("attention_levels", "cross_attention_dim", "attention_head_dim")
)
"""Keys of the attention that a condition adds to a network without any."""
HUB_PATTERNS = ("*.json", "*/*.json")
"""The files of a model on the Hub that its keys are read from."""


def follow_pretrained(config: RunConfig, given: Collection[str] | None = None) -> RunConfig:
    """A config with the keys that follow from `model.pretrained`; the same one without it.

    Args:
        config: typed; not changed.
        given: keys that were set, in a file or on the command line; None: those that differ from their defaults, or all
            of a config that followed before (its network is the pretrained one).

    Raises:
        UserError: a key that was set contradicts the pretrained model, or its files are missing or damaged.
    """
    name = config.model.pretrained
    if name is None:
        return config
    directory = facts_directory(config)
    config, defaults, values = deepcopy(config), flatten(asdict(RunConfig())), flatten(asdict(config))
    facts = dict(_facts(directory, name, config.task))
    if given is None:
        followed = all(values.get(key) == value for key, value in facts.items() if key.startswith("model."))
        given = [key for key, value in values.items() if followed or value != defaults.get(key)]
    condition = facts.pop("diffusion.condition", None)
    if condition is not None and "diffusion.condition" not in given:
        assign(config, "diffusion.condition", condition)
    if config.diffusion.condition != condition:  # another condition of the same network
        own = {key for _, keys in CONDITIONERS.values() for key in keys.values()}
        own |= {key for key in facts if key.startswith("diffusion.text.")}
        if config.task != "diffusion" and config.segmentation.context != "none":  # which this encoder encodes
            own.discard(TEXT_ENCODER)
        facts = {key: value for key, value in facts.items() if key not in own}
    for key, value in facts.items():
        current = values.get(key)
        if current == value:
            continue
        if key in given and (current is not None or key in NULL_IS_A_VALUE):
            raise config_error(key, current, f"{as_yaml(value)}, as of {KEY}={name}", "Leave it out.")
        assign(config, key, value)
    return config


def facts_directory(config: RunConfig) -> Path:
    """The directory with the JSON files of the pretrained model, or, where it is gone, of the resumed run's latest one.

    Raises:
        UserError: it does not exist.
    """
    name, run = config.model.pretrained, Path(config.training.output_dir)
    assert name is not None
    if Path(name).is_dir():
        return exported_model(Path(name)) or Path(name)
    if config.training.resume and (run / "latest" / UNET / CONFIG).is_file():
        return run / "latest"
    if is_hub_name(name):
        try:
            return hub.resolved(name, HUB_PATTERNS, revision=config.model.revision)
        except UserError as error:
            raise UserError(f"{KEY}={error}") from None
    raise config_error(KEY, name, "an existing pipeline, run or model directory, or OWNER/NAME on the Hub, or null")


def is_hub_name(name: str) -> bool:
    """Whether a name is "owner/model", and not a directory here."""
    return hub.NAME.fullmatch(name) is not None and not Path(name).exists()


def exported_model(run: Path) -> Path | None:
    """The model directory of a run: its `best`, else its `latest`; None for anything else.

    A run that was killed while it replaced one of them has the old one aside until it is resumed.
    """
    names = [name for kind in ("best", "latest") for name in (kind, f"{OLD}{kind}")]
    return next((run / name for name in names if is_there(run / name / UNET / CONFIG)), None)


def _facts(directory: Path, name: str, task: Task) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of all that follows from a model directory for a task; `name` is the value of the key."""
    is_pipeline = is_there(directory / UNET / CONFIG)
    yield from _network(directory / UNET if is_pipeline else directory, name, task)
    if not is_pipeline:
        return
    yield from _noise(directory)
    yield "latent.vae", name if part(directory, "vae").is_dir() else None
    index = read_object(directory / INDEX) if is_there(directory / INDEX) else {}
    yield "diffusion.target", "mask" if index.get("masks") else "image"
    conditioner = directory / "conditioner" / CONFIG
    if is_there(conditioner):
        values = read_object(conditioner)
        condition, keys = CONDITIONERS.get(str(values.get("_class_name")), (None, {}))
        if condition is not None:
            yield "diffusion.condition", condition
            yield from ((key, values[own]) for own, key in keys.items() if own in values)
        if condition == "text":
            yield from ((TEXT_ENCODER, name), ("diffusion.text.projection", True))
    elif part(directory, "text_encoder").is_dir():
        if _is_inpainting(directory / UNET / CONFIG):
            yield "diffusion.inpainting.enabled", True
        yield "diffusion.condition", "text"
        yield from ((TEXT_ENCODER, name), ("diffusion.text.projection", False))
        yield "diffusion.text.max_tokens", None
    elif index:
        yield "diffusion.condition", "none"


def _is_inpainting(path: Path) -> bool:
    """Whether a U-Net of Stable Diffusion takes a mask and masked latents next to noisy ones; FileError for others."""
    config = read_object(path)
    channels, latents = config.get("in_channels", 4), config.get("out_channels", 4)
    if config.get("_class_name") in STOCK_CLASSES and channels not in (latents, 2 * latents + 1):
        known = f"{latents}, or {2 * latents + 1} for inpainting"
        raise FileError.of(path, f"in_channels={channels}: must be {known}, as {KEY}")
    return bool(channels != latents)


def _network(directory: Path, name: str, task: Task) -> Iterator[tuple[str, Any]]:
    """The keys of the network, all of them that fix its backbone."""
    path = directory / CONFIG
    if not is_there(path):
        raise FileError.of(directory, f"must be a pipeline's, a U-Net's, a run or a model directory, as {KEY}")
    source = read_object(path)
    kind, own = source.get("_class_name"), {key: value for key, value in source.items() if not key.startswith("_")}
    if kind in STOCK_CLASSES:
        from unetdiff.export.convert.from_diffusers import config_from_diffusers  # imports torch

        own = config_from_diffusers(kind, own, f"{KEY}: {path}")
    elif kind != "UNet":
        raise FileError.of(path, f"_class_name={kind}: must be UNet, {' or '.join(STOCK_CLASSES)}")
    try:
        network = resolve(parse(**own))
    except (TypeError, UserError) as error:
        raise FileError.of(path, f"describes no network ({error})") from None
    facts = {key: value for key, value in flatten({"model": asdict(network)}).items() if not key.startswith(FREE)}
    yield from (facts if network.heads.diffusion else _of_segmenter(facts, network, name, task)).items()


def _of_segmenter(facts: dict[str, Any], network: ModelConfig, name: str, task: Task) -> dict[str, Any]:
    """The keys of a network without a diffusion head, whose images are read as RGB, with what a new one needs."""
    channels = network.in_channels
    if channels not in (1, RGB):
        remedy = f"Set training.init_from={name} instead, which reads images as its segmenter does."
        raise config_error(KEY, name, f"a network of RGB or gray images (got {channels} channels)", remedy)
    if channels == 1:
        facts |= {key: in_rgb(facts[key]) for key in ("model.encoder.mean", "model.encoder.std")}
    if task == "segmentation":
        return facts
    facts["model.conditioning.timestep"] = True
    facts |= {key: "frozen" for key in ("model.encoder.norm", "model.decoder.norm") if facts[key] == "batch"}
    if network.encoder.name != RESIDUAL and not network.conditioning.attention_levels:
        facts = {key: value for key, value in facts.items() if key not in ATTENTION}
    return facts


def _noise(directory: Path) -> Iterator[tuple[str, Any]]:
    """The objective and the forward process of a denoiser: of its run's config, else of the scheduler."""
    path = directory / SCHEDULER
    if not is_there(path):
        return
    for config in (directory / "config.yaml", directory.parent / "config.yaml"):
        if is_there(config) and directory.name.removeprefix(OLD) in ("best", "latest"):
            diffusion = dict(read_yaml(config, "").get("diffusion") or {})
            kept = {key: diffusion[key] for key in ("prediction_type", "noise") if key in diffusion}
            yield from ((key, value) for key, value in flatten({"diffusion": kept}).items() if key in KEYS)
            return
    scheduler = read_object(path)
    if str(scheduler.get("_class_name")).startswith("FlowMatch"):
        yield "diffusion.noise.process", "flow"
        yield "diffusion.noise.num_train_timesteps", scheduler.get("num_train_timesteps", 1000)
        yield "diffusion.noise.flow.shift", scheduler.get("shift", 1.0)
        return
    if str(scheduler.get("_class_name")).startswith("EDM"):
        yield "diffusion.noise.process", "edm"
        yield from ((key, scheduler.get(own, default)) for own, (key, default) in EDM.items())
        return
    yield "diffusion.noise.process", "ddpm"
    if scheduler.get("trained_betas") is not None:
        raise FileError.of(path, f"trained_betas: must be null with {KEY}", "Give a run with its config.yaml.")
    is_cosine = scheduler.get("beta_schedule") == "squaredcos_cap_v2"
    for own, (key, default) in NOISE.items():
        if not (is_cosine and own in ("beta_start", "beta_end")):  # not read
            yield key, default if scheduler.get(own) is None else scheduler[own]
