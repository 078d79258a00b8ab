"""Feature networks: images as points, in which distances between samples and real images are measured.

A distance is reported with the name of its network. "inception" is the Inception-v3 of the FID (Heusel et al. 2017)
with torch-fidelity's weights, the only one whose distance is called FID. A torchvision encoder ("mobilenet_v2", ...)
gives its last feature map, globally averaged; "classifier" the penultimate features of
`unetdiff.evaluation.classifier`, which is trained on the dataset itself and sees little but its classes.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional as F

from unetdiff.errors import FileError, UserError
from unetdiff.evaluation.classifier import Classifier
from unetdiff.evaluation.config import CLASSIFIER, IMAGENET, INCEPTION
from unetdiff.files.tensors import read_tensors, read_torch_tensors, write_torch_tensors
from unetdiff.files.writing import file_errors, temporary_folder
from unetdiff.models.encoders import IMAGENET_MEAN, IMAGENET_STD
from unetdiff.models.pretrained import feature_levels, load_pretrained_encoder

MIN_ENCODER_SIDE = 128
"""Pixels of the short side that smaller images are enlarged to for an encoder; its last map is then at least 4 × 4."""
BATCH = 64  # images


class FeatureExtractor:
    """A named feature network: uint8 images (N, 3, H, W) to features (N, D).

    Args:
        name: reported with every distance.
        network: uint8 (B, 3, H, W) -> (B, D), of any height and width.
        device: for inference.

    Attributes:
        fingerprint: hash of name and weights, for caches of its features.
    """

    def __init__(self, name: str, network: nn.Module, device: torch.device | str = "cpu") -> None:
        self.name, self.device = name, torch.device(device)
        self.network = network.eval().to(self.device)
        self.fingerprint = _fingerprint(name, network)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features (N, D), float32 on the CPU, of uint8 images (N, 3, H, W).

        Raises:
            TypeError: images that are not uint8.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"images: must be uint8 (got {images.dtype}).")
        return torch.cat([self.network(part.to(self.device)).float().cpu() for part in images.split(BATCH)])

    @property
    def frechet_name(self) -> str:
        """Name of its Fréchet distance; FID for Inception-v3 only."""
        return "FID" if self.name == INCEPTION else f"Fréchet distance ({self.name} features)"

    @property
    def kernel_name(self) -> str:
        """Name of its kernel distance; KID for Inception-v3 only."""
        return "KID" if self.name == INCEPTION else f"kernel distance ({self.name} features)"


class EncoderFeatures(nn.Module):
    """The last feature map of a torchvision encoder, globally averaged; images normalized by ImageNet's statistics."""

    def __init__(self, name: str, weights: str) -> None:
        super().__init__()
        self.encoder = load_pretrained_encoder(name, weights)
        self.blocks = [name for _, names, _ in feature_levels(self.encoder, 3) for name in names]
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", rearrange(torch.tensor(IMAGENET_MEAN), "c -> c 1 1"))
        self.register_buffer("std", rearrange(torch.tensor(IMAGENET_STD), "c -> c 1 1"))

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> (B, D)."""
        x = images.float() / 255
        factor = MIN_ENCODER_SIDE / min(x.shape[-2:])
        if factor > 1:
            size = [round(side * factor) for side in x.shape[-2:]]
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        x = (x - self.mean) / self.std
        for name in self.blocks:
            x = self.encoder.get_submodule(name)(x)
        return reduce(x, "b c h w -> b c", "mean")


class ClassifierFeatures(nn.Module):
    """Penultimate features of the independent classifier."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.network, self._features = classifier.network, classifier.features

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> (B, 128)."""
        return self._features(images)


def load_feature_extractor(
    name: str, weights: str | None = None, classifier: Classifier | None = None, device: torch.device | str = "cpu"
) -> FeatureExtractor:
    """Load a feature network by name.

    Args:
        name: "inception", "classifier", or a torchvision encoder (`unetdiff.models.config.PRETRAINED_ENCODERS`).
        weights: file of weights: torchvision's as safetensors for an encoder, torch-fidelity's .pth (or safetensors)
            for inception; None (or "imagenet"): downloaded.
        classifier: the trained classifier, for "classifier".
        device: for inference.

    Raises:
        UserError: missing, unavailable or mismatched weights, torch-fidelity not installed for inception, or no
            classifier.
    """
    if name == INCEPTION:
        return FeatureExtractor(name, _inception(weights), device)
    if name == CLASSIFIER:
        if classifier is None:
            raise UserError(
                "features=classifier: must have a dataset with class labels. Use inception or a torchvision encoder."
            )
        return FeatureExtractor(name, ClassifierFeatures(classifier), device)
    try:
        return FeatureExtractor(name, EncoderFeatures(name, weights or IMAGENET), device)
    except UserError as error:
        raise UserError(str(error).replace("model.encoder.weights", f"features.{name}")) from None
    except OSError as error:
        raise UserError(
            f"features={name}: its ImageNet weights cannot be downloaded ({error}). Use {name}=FILE.safetensors."
        ) from None


def _inception(weights: str | None) -> nn.Module:
    """torchmetrics' Inception-v3 of the FID, which resizes images as the original TensorFlow implementation does."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
        from torchmetrics.image.fid import NoTrainInceptionV3
    except ImportError:
        raise UserError("features=inception: requires torch-fidelity. pip install 'unetdiff[fid]'.") from None
    state = _downloaded(URL_INCEPTION_V3) if weights is None else _read(weights)
    with temporary_folder() as folder:
        file = folder / "weights.pth"  # torch-fidelity unpickles its file, so write one from tensors read safely
        with file_errors(file, "Set TMPDIR to a folder with room."):
            write_torch_tensors(state, file)
        try:
            return NoTrainInceptionV3("inception-v3-compat", ["2048"], str(file), antialias=False)
        except (RuntimeError, TypeError, KeyError):
            raise UserError(
                f"features=inception={weights}: must be torch-fidelity's Inception-v3, "
                "weights-inception-2015-12-05-6726825d.pth."
            ) from None


def _downloaded(url: str) -> dict[str, Tensor]:
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"features=inception: its weights cannot be downloaded ({error}). Download {url} and use inception=FILE."
        ) from None


def _read(weights: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a torch file of tensors only."""
    try:
        return (read_tensors if Path(weights).suffix == ".safetensors" else read_torch_tensors)(weights)
    except FileError as error:
        raise UserError(f"features=inception={error}") from None


def _fingerprint(name: str, network: nn.Module) -> str:
    digest = hashlib.sha256(f"{name} {MIN_ENCODER_SIDE}".encode())
    for key, tensor in sorted(network.state_dict().items()):
        digest.update(f"{key} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
