"""The `diffusion:` section of a config (objective, forward process, condition, previews) and the `latent:` section."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class FlowConfig:
    """diffusion.noise.process flow."""

    shift: float = 1.0
    """Moves training and sampling timesteps towards the noise, for large images or latents: σ becomes
    shift · σ / (1 + (shift - 1) σ) (Esser et al. 2024, equation 23, who use 3 at 1024 x 1024). 1: none."""
    logit_mean: float = 0.0
    """Mean of the logit of σ in training (Esser et al. 2024, equation 19), before the shift."""
    logit_std: float = 1.0
    """Standard deviation of the logit of σ in training."""


@dataclass
class EDMConfig:
    """diffusion.noise.process edm, with the paper's names (Karras et al. 2022, table 1)."""

    sigma_data: float | None = None
    """Standard deviation of x0, for the preconditioning; None: measured on training images."""
    sigma_min: float = 0.002
    """Least noise of sampling."""
    sigma_max: float = 80.0
    """Largest noise of sampling, far above the deviation of x0."""
    rho: float = 7.0
    """Spacing of the sampler's steps: larger puts more of them at little noise."""
    p_mean: float = -1.2
    """Mean of the logarithm of the noise's deviation in training."""
    p_std: float = 1.2
    """Standard deviation of that logarithm."""


@dataclass
class NoiseConfig:
    """The forward process, a diffusers scheduler."""

    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = "squaredcos_cap_v2"
    """Schedule of the noise variance (diffusers' names; squaredcos_cap_v2 is the cosine schedule)."""
    beta_start: float = 0.0001
    """First noise variance of linear, scaled_linear and sigmoid (Ho et al. 2020; Stable Diffusion: 0.00085)."""
    beta_end: float = 0.02
    """Last noise variance of linear, scaled_linear and sigmoid (Stable Diffusion: 0.012)."""
    num_train_timesteps: int = 1000
    """Number of timesteps T."""
    zero_terminal_snr: bool = False
    """Rescale the betas so that the last timestep is pure noise (Lin et al. 2024); not with epsilon prediction."""
    input_scale: float = 1.0
    """Scale b of x0 (Chen et al. 2023, "A Generalist Framework for Panoptic Segmentation", who use 0.1 for masks):
    every timestep's SNR is multiplied by b². Below 1, smooth signals such as masks are destroyed earlier, so that more
    timesteps depend on the condition."""
    process: Literal["ddpm", "flow", "edm"] = "ddpm"
    """ddpm (Ho et al. 2020), flow: flow matching on straight lines from image to noise (Lipman et al. 2023), or edm:
    noise of any level and a preconditioned network (Karras et al. 2022)."""
    flow: FlowConfig = field(default_factory=FlowConfig)
    """Flow matching."""
    edm: EDMConfig = field(default_factory=EDMConfig)
    """EDM."""


@dataclass
class LatentConfig:
    """The `latent:` section: what the network reads, pixels or latents of an autoencoder (Rombach et al. 2022)."""

    vae: str | None = None
    """Folder of a diffusers AutoencoderKL or AutoencoderTiny, or of a pipeline with one in vae/; None: pixels."""
    cache: Literal["auto", "none", "memory", "disk"] = "auto"
    """Encode every image, and its mirror image with data.augment.flip, once instead of in each step. auto: in memory
    where augmentation allows it, the run uses each of them at least twice, and they take at most 2 GiB."""
    cache_dir: str | None = None
    """Folder of latent.cache disk, which runs share; None: unetdiff/latents in the user's cache folder."""


@dataclass
class TextConfig:
    """diffusion.condition text: the captions of the dataset, encoded by a frozen text encoder."""

    encoder: str = "openai/clip-vit-large-patch14"
    """Text encoder and tokenizer: a name on the hub, or a folder in transformers' format (CLIP, T5, BERT, ...)."""
    projection: bool = True
    """Normalize and project the encoder's features by a learned layer, with a learned null token. False: its hidden
    states are the tokens, padding included, and the empty caption is the null condition, as in Stable Diffusion; the
    run is then saved as diffusers' StableDiffusionPipeline."""
    max_tokens: int | None = None
    """Tokens per caption; longer captions are truncated with a warning. None: the length of the longest training
    caption, up to the encoder's maximum."""
    cache_dir: str | None = None
    """Folder for cached caption features; None: unetdiff/captions in the user's cache folder."""


@dataclass
class LayoutConfig:
    """diffusion.condition layout: the masks of the dataset."""

    grid: int = 8
    """Tokens are the cells of a grid of this side length, each with its class fractions; 0, or no
    model.conditioning.cross_attention_dim: no tokens."""
    channels: int = 8
    """Input channels with a learned color per class, concatenated to the noisy image; 0: none."""


@dataclass
class ImageConfig:
    """diffusion.condition image: a degraded image to restore."""

    degradation: Literal["downscale", "grayscale", "blur", "none"] = "downscale"
    """downscale (super-resolution), grayscale (colorization), blur (deblurring), none (the image itself, to sample its
    mask: diffusion.target mask)."""
    strength: float = 4.0
    """downscale: the factor; blur: the standard deviation in pixels; otherwise unused."""


@dataclass
class InpaintingConfig:
    """A denoiser of latents that repaints the masked part of an image (Rombach et al. 2022, section 4.5)."""

    enabled: bool = False
    """The network sees a mask and the masked image's latents as further input channels, as Stable Diffusion's
    inpainting models (9 channels); masks are random boxes and brush strokes (Suvorov et al. 2022, "LaMa")."""
    full_mask_fraction: float = 0.25
    """Fraction of the training images that are masked as a whole, so that prompts alone can be drawn (Stable
    Diffusion: 0.25)."""


@dataclass
class DiffusionConfig:
    """Training objective, condition and previews of the diffusion head."""

    target: Literal["image", "mask"] = "image"
    """x0: images, or masks, e.g. conditioned on the image (SegDiff, Amit et al. 2021: diffusion.condition image with
    diffusion.image.degradation none). For masks see diffusion.noise.input_scale."""
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "v_prediction"
    """Output of the network: the noise, x0, or the velocity, which is v for ddpm, noise - x0 for flow,
    and v of x0 scaled to unit variance for edm (epsilon: -v, the F of its paper)."""
    weighting: Literal["uniform", "min_snr", "soft_min_snr", "clamped_snr"] = "uniform"
    """Weight of a timestep in the loss, equivalent across processes and prediction types. uniform learns fastest in
    short runs (see docs/results.md); clamped_snr is Min-SNR (Hang et al. 2023) bounded below by its value at SNR 1."""
    snr_gamma: float = 5.0
    """Gamma of the SNR weights: the maximum weight of an error in x0."""
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    """The forward process."""
    offset_noise: float = 0.0
    """Strength of an offset, constant over each image and channel, added to the training noise (Guttenberg 2023, who
    uses 0.1), for samples darker or brighter than the mean. The noise's variance becomes 1 + strength²; 0: off."""
    prior_weight: float = 1.0
    """Weight of the mean loss of data.regularization_root's images next to that of the training images."""
    condition: Literal["none", "class", "text", "layout", "image"] = "class"
    """The condition: none, class (label, or the classes in the mask), text (caption), layout (mask) or image (usually
    degraded)."""
    condition_dropout: float = 0.1
    """Fraction of the training images with the null condition, for classifier-free guidance."""
    class_tokens: int = 1
    """Tokens per class."""
    max_classes: int = 1
    """Maximum number of classes per image. 1: its label; more: the classes in its mask."""
    text: TextConfig = field(default_factory=TextConfig)
    """Captions."""
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    """Masks."""
    image: ImageConfig = field(default_factory=ImageConfig)
    """Restoration."""
    inpainting: InpaintingConfig = field(default_factory=InpaintingConfig)
    """Inpainting."""
    preview_steps: int = 25
    """Denoising steps of the preview images."""
    preview_per_class: int = 4
    """Preview images per class (or caption, mask, image)."""
    guidance_scale: float = 2.0
    """Guidance scale of the preview images."""
