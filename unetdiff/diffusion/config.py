"""How the diffusion head is trained and judged: the typed `diffusion:` section of a config file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class NoiseConfig:
    """The forward process: a diffusers scheduler."""

    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = "squaredcos_cap_v2"
    """Schedule of the noise variance (diffusers' names; squaredcos_cap_v2 is the cosine schedule)."""
    num_train_timesteps: int = 1000
    """Timesteps of the forward process."""
    zero_terminal_snr: bool = False
    """Rescale the betas so that the last timestep is pure noise (not with epsilon prediction)."""


@dataclass
class DiffusionConfig:
    """Objective, condition and judgement of the diffusion head."""

    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "v_prediction"
    """What the network predicts: the noise, the clean picture, or v."""
    weighting: Literal["uniform", "min_snr", "soft_min_snr", "clamped_snr"] = "uniform"
    """Weight of a timestep in the loss, right for each prediction type. uniform learns fastest in short runs (see
    docs/results.md); clamped_snr is Min-SNR (Hang et al. 2023) that does not fall below its value at SNR 1."""
    snr_gamma: float = 5.0
    """Gamma of the SNR weights: the largest weight of an error of the clean picture."""
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    """The forward process."""
    offset_noise: float = 0.0
    """Strength of a constant added to the training noise of each picture and channel (Guttenberg 2023, who takes 0.1),
    for samples that are darker or brighter than the mean. The noise's variance becomes 1 + its square; 0: off."""
    condition: Literal["none", "class"] = "class"
    """What the denoiser is told: nothing, or the picture's class."""
    condition_dropout: float = 0.1
    """Share of pictures that are trained with the null token, for classifier-free guidance."""
    class_tokens: int = 1
    """Tokens that a class is told with."""
    preview_steps: int = 25
    """Denoising steps of the pictures drawn while training."""
    preview_per_class: int = 4
    """Pictures of each class drawn while training."""
    guidance_scale: float = 2.0
    """Guidance of the pictures drawn while training."""
