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
    input_scale: float = 1.0
    """Scale b of what is noised (Chen et al. 2023, "A Generalist Framework for Panoptic Segmentation", who take 0.1 for
    masks): each timestep's SNR is b² of the schedule's. What is large and plain, such as a mask, is seen through much
    noise; below 1 it is drowned earlier, and more timesteps have to look at the condition."""


@dataclass
class LatentConfig:
    """What is noised: pixels, or an autoencoder's latents of them (Rombach et al. 2022)."""

    vae: str | None = None
    """A folder with a diffusers AutoencoderKL, or with one in vae/ (Stable Diffusion's); None: pixels."""


@dataclass
class TextConfig:
    """diffusion.condition text: the captions of the data set, by a frozen text encoder."""

    encoder: str = "openai/clip-vit-large-patch14"
    """A text encoder with its tokenizer: a name on the hub, or a folder in transformers' format (CLIP, T5, BERT, …)."""
    max_tokens: int | None = None
    """Tokens of a caption that are read; longer ones are cut, which is said. None: as many as the longest caption of
    the training split has, and the encoder reads."""
    cache_dir: str | None = None
    """Folder for the features of the captions; None: unetdiff/captions in the user's cache folder."""


@dataclass
class LayoutConfig:
    """diffusion.condition layout: the data set's masks."""

    grid: int = 8
    """Tokens are those of a grid of this many cells a side, each with its shares of the classes; 0, or no
    model.conditioning.cross_attention_dim: no tokens."""
    channels: int = 8
    """Channels beside the noisy image, a learned colour for each class; 0: none."""


@dataclass
class ImageConfig:
    """diffusion.condition image: a degraded image that is to be restored."""

    degradation: Literal["downscale", "grayscale", "blur", "none"] = "downscale"
    """downscale (super-resolution), grayscale (colouring), blur (deblurring), none (the image itself, whose mask is
    drawn: diffusion.target mask)."""
    strength: float = 4.0
    """Factor of downscale, standard deviation of blur in pixels; the others have none."""


@dataclass
class DiffusionConfig:
    """Objective, condition and judgement of the diffusion head."""

    target: Literal["image", "mask"] = "image"
    """What is drawn: images, or masks, e.g. of the image that the denoiser is told (SegDiff, Amit et al. 2021:
    diffusion.condition image with diffusion.image.degradation none). For masks see diffusion.noise.input_scale."""
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "v_prediction"
    """What the network predicts: the noise, the clean image, or v."""
    weighting: Literal["uniform", "min_snr", "soft_min_snr", "clamped_snr"] = "uniform"
    """Weight of a timestep in the loss, right for each prediction type. uniform learns fastest in short runs (see
    docs/results.md); clamped_snr is Min-SNR (Hang et al. 2023) that does not fall below its value at SNR 1."""
    snr_gamma: float = 5.0
    """Gamma of the SNR weights: the largest weight of an error of the clean image."""
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    """The forward process."""
    latent: LatentConfig = field(default_factory=LatentConfig)
    """Pixels or latents."""
    offset_noise: float = 0.0
    """Strength of a constant added to the training noise of each image and channel (Guttenberg 2023, who takes 0.1),
    for samples that are darker or brighter than the mean. The noise's variance becomes 1 + its square; 0: off."""
    condition: Literal["none", "class", "text", "layout", "image"] = "class"
    """What the denoiser is told: nothing, the image's class (or classes), its caption, its mask, or the image,
    mostly in a degraded form."""
    condition_dropout: float = 0.1
    """Share of images that are trained with the null token, for classifier-free guidance."""
    class_tokens: int = 1
    """Tokens that a class is told with."""
    max_classes: int = 1
    """Most classes that an image is told with. 1: its label; more: the classes that its mask shows."""
    text: TextConfig = field(default_factory=TextConfig)
    """Captions."""
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    """Masks."""
    image: ImageConfig = field(default_factory=ImageConfig)
    """Restoration."""
    preview_steps: int = 25
    """Denoising steps of the images drawn while training."""
    preview_per_class: int = 4
    """Images of each class (or caption, mask, image) drawn while training."""
    guidance_scale: float = 2.0
    """Guidance of the images drawn while training."""
