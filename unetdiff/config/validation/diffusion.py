"""Constraints on the `diffusion:` section: target, noise schedule, loss weights."""

from __future__ import annotations

from functools import reduce
from typing import Any

from unetdiff.config.schema import RunConfig
from unetdiff.config.validation.conditioning import validate_conditioning
from unetdiff.config.validation.data import image_size
from unetdiff.data.capabilities import WITH_MASKS
from unetdiff.diffusion.config import NoiseConfig
from unetdiff.errors import as_yaml, config_error
from unetdiff.models.config import CLASSIC, RESIDUAL

PROCESS_KEYS = {
    "ddpm": ("beta_schedule", "beta_start", "beta_end", "zero_terminal_snr", "input_scale"),
    "flow": ("flow.shift", "flow.logit_mean", "flow.logit_std"),
    "edm": ("edm.sigma_data", "edm.sigma_min", "edm.sigma_max", "edm.rho", "edm.p_mean", "edm.p_std"),
}
"""Keys of `diffusion.noise` that only one process reads."""


def validate_diffusion(config: RunConfig) -> None:
    """Check target, forward process, conditioning, loss weights and previews of the denoiser."""
    diffusion = config.diffusion
    _validate_target(config)
    validate_noise(config)
    _validate_weighting(config)
    validate_conditioning(config)
    if not 1 <= diffusion.preview_steps <= diffusion.noise.num_train_timesteps:
        raise config_error(
            "diffusion.preview_steps",
            diffusion.preview_steps,
            f"in 1..{diffusion.noise.num_train_timesteps} (diffusion.noise.num_train_timesteps)",
        )
    size, trained = config.model.sample_size, image_size(config)
    if size is not None and trained is not None and trained != ([size, size] if isinstance(size, int) else size):
        right = f"Use {trained[0]}." if trained[0] == trained[1] else "Use null."
        raise config_error("model.sample_size", size, f"the size of the training images, {trained}", right)


def validate_noise(config: RunConfig) -> None:
    """Check the forward process."""
    noise, defaults = config.diffusion.noise, NoiseConfig()
    _validate_process(config)
    for key in ("beta_start", "beta_end"):
        value, default = getattr(noise, key), getattr(defaults, key)
        if noise.beta_schedule == "squaredcos_cap_v2" and value != default:
            constraint = f"{default:g} with diffusion.noise.beta_schedule=squaredcos_cap_v2, which does not read it"
            raise config_error(f"diffusion.noise.{key}", value, constraint, "Use linear or scaled_linear.")
    if noise.beta_start > noise.beta_end:
        constraint = f"at most diffusion.noise.beta_end={noise.beta_end:g}"
        raise config_error("diffusion.noise.beta_start", noise.beta_start, constraint)
    if noise.zero_terminal_snr and config.diffusion.prediction_type == "epsilon":
        raise config_error(
            "diffusion.prediction_type",
            "epsilon",
            "v_prediction or sample with diffusion.noise.zero_terminal_snr=true, whose last timestep is pure noise",
        )


def _validate_process(config: RunConfig) -> None:
    """Each process has its own keys."""
    noise, defaults = config.diffusion.noise, NoiseConfig()
    process = f"diffusion.noise.process={noise.process}"
    unread = [key for name, keys in PROCESS_KEYS.items() if name != noise.process for key in keys]
    for key in unread:
        value, default = _get(noise, key), _get(defaults, key)
        if value != default:
            own = next(name for name, keys in PROCESS_KEYS.items() if key in keys)
            constraint = f"{as_yaml(default)} with {process}, which does not read it"
            raise config_error(f"diffusion.noise.{key}", value, constraint, f"Use process={own}.")
    prediction = config.diffusion.prediction_type
    if noise.process == "flow" and prediction != "v_prediction":
        constraint = f"v_prediction with {process}, which predicts the velocity"
        raise config_error("diffusion.prediction_type", prediction, constraint)
    if noise.process != "edm":
        return
    if prediction == "sample":
        constraint = f"v_prediction or epsilon with {process}, whose preconditioning determines the target"
        raise config_error("diffusion.prediction_type", prediction, constraint)
    if noise.edm.sigma_min >= noise.edm.sigma_max:
        constraint = f"below diffusion.noise.edm.sigma_max={noise.edm.sigma_max:g}"
        raise config_error("diffusion.noise.edm.sigma_min", noise.edm.sigma_min, constraint)


def _get(config: Any, key: str) -> Any:
    return reduce(getattr, key.split("."), config)


def _validate_weighting(config: RunConfig) -> None:
    weighting, gamma = config.diffusion.weighting, config.diffusion.snr_gamma
    predicts_noise = config.diffusion.prediction_type == "epsilon" and config.diffusion.noise.process == "ddpm"
    if weighting == "clamped_snr" and predicts_noise:
        constraint = "another weighting with diffusion.prediction_type=epsilon, for which it diverges"
        raise config_error("diffusion.weighting", weighting, constraint, "Use min_snr.")
    if weighting == "clamped_snr" and gamma < 1:
        raise config_error("diffusion.snr_gamma", gamma, "at least 1 with diffusion.weighting=clamped_snr", "Use 5.0.")


def _validate_target(config: RunConfig) -> None:
    """Masks as the target need masks, one channel per class, and no condition that contains them."""
    diffusion, model = config.diffusion, config.model
    key = "diffusion.target"
    if diffusion.target == "image":
        if diffusion.condition == "image" and diffusion.image.degradation == "none":
            constraint = "downscale, grayscale or blur with diffusion.target=image: none would leak the target image"
            remedy = "Use one of these, or diffusion.target=mask."
            raise config_error("diffusion.image.degradation", "none", constraint, remedy)
        return
    if config.task == "joint":
        constraint = "image with task=joint, whose segmentation head reads images"
        raise config_error(key, "mask", constraint, "Use task=diffusion for masks.")
    if config.data.name not in WITH_MASKS:
        raise config_error(
            key,
            "mask",
            f"image with data.name={config.data.name}, which has no masks",
            f"Masks: {', '.join(WITH_MASKS)}.",
        )
    if diffusion.condition == "layout":
        constraint = f"another condition with {key}=mask: the layout would leak the target mask to the model"
        raise config_error("diffusion.condition", "layout", constraint, "Use image.")
    if config.latent.vae is not None:
        constraint = f"null with {key}=mask, as autoencoders encode images"
        raise config_error("latent.vae", config.latent.vae, constraint)
    if model.encoder.name not in (CLASSIC, RESIDUAL):
        constraint = f"{RESIDUAL} or {CLASSIC} with {key}=mask, as pretrained encoders read images"
        raise config_error("model.encoder.name", model.encoder.name, constraint)
    if model.heads.diffusion is not None:
        constraint = f"left out with {key}=mask, which has a channel per class"
        raise config_error("model.heads.diffusion.out_channels", model.heads.diffusion.out_channels, constraint)
