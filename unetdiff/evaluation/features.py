"""Images as points: named feature networks that a Fréchet distance is measured in.

A distance means something only with the name of its network. "inception" is the Inception-v3 of the FID (Heusel et al.
2017) with torch-fidelity's weights, and the only one whose distance may be called FID. Any torchvision trunk
("mobilenet_v2", ...) gives its last map's mean, and "classifier" what the last layer of
`unetdiff.evaluation.classifier` sees: it was trained on the set itself and knows little but its classes.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from pickle import UnpicklingError

import torch
from einops import rearrange, reduce
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from unetdiff.errors import UserError
from unetdiff.evaluation.classifier import Judge
from unetdiff.evaluation.config import CLASSIFIER, IMAGENET, INCEPTION
from unetdiff.models.encoders import IMAGENET_MEAN, IMAGENET_STD, load_trunk, pyramid

TRUNK_SIDE = 128
"""Pixels that the short side of a smaller image is enlarged to for a trunk, so that its last map is 4 x 4 or more."""
BATCH = 64  # images at once


class FeatureNetwork:
    """uint8 images (N, 3, H, W) to features (N, D).

    Args:
        name: what the network is called beside every figure.
        network: uint8 (B, 3, H, W) -> (B, D), of any height and width.
        device: where to run it.

    Attributes:
        fingerprint: a hash of name and weights: other features have another one.
    """

    def __init__(self, name: str, network: nn.Module, device: torch.device | str = "cpu") -> None:
        self.name, self.device = name, torch.device(device)
        self.network = network.eval().to(self.device)
        self.fingerprint = _fingerprint(name, network)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features (N, D), float32 on the CPU, of uint8 images (N, 3, H, W).

        Raises:
            TypeError: images of another type.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"feature networks take uint8 images, not {images.dtype}")
        return torch.cat([self.network(part.to(self.device)).float().cpu() for part in images.split(BATCH)])

    @property
    def frechet(self) -> str:
        """What its Fréchet distance is called."""
        return "FID" if self.name == INCEPTION else f"Fréchet distance ({self.name} features)"

    @property
    def kernel(self) -> str:
        """What its kernel distance is called."""
        return "KID" if self.name == INCEPTION else f"kernel distance ({self.name} features)"


class TrunkFeatures(nn.Module):
    """The mean of a torchvision trunk's last map, of images with ImageNet's statistics."""

    def __init__(self, family: str, weights: str) -> None:
        super().__init__()
        self.trunk = load_trunk(family, weights)
        self.blocks = [name for _, names, _ in pyramid(self.trunk, 3) for name in names]
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", rearrange(torch.tensor(IMAGENET_MEAN), "c -> c 1 1"))
        self.register_buffer("std", rearrange(torch.tensor(IMAGENET_STD), "c -> c 1 1"))

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> (B, D)."""
        x = images.float() / 255
        factor = TRUNK_SIDE / min(x.shape[-2:])
        if factor > 1:
            size = [round(side * factor) for side in x.shape[-2:]]
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        x = (x - self.mean) / self.std
        for name in self.blocks:
            x = self.trunk.get_submodule(name)(x)
        return reduce(x, "b c h w -> b c", "mean")


class ClassifierFeatures(nn.Module):
    """What the last layer of the independent classifier sees."""

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self.network, self._features = judge.network, judge.features

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> (B, 128)."""
        return self._features(images)


def load_features(
    name: str, weights: str | None = None, classifier: Judge | None = None, device: torch.device | str = "cpu"
) -> FeatureNetwork:
    """A feature network by name.

    Args:
        name: "inception", "classifier", or a torchvision trunk (`unetdiff.models.config.PRETRAINED_ENCODERS`).
        weights: a file: for a trunk torchvision's weights as safetensors, for inception torch-fidelity's .pth or the
            same as safetensors; None (or "imagenet"): downloaded.
        classifier: the trained classifier, for "classifier".
        device: where to run it.

    Raises:
        UserError: weights that are not there, cannot be downloaded or are another network's, no
            torch-fidelity for inception, or no classifier.
    """
    if name == INCEPTION:
        return FeatureNetwork(name, _inception(weights), device)
    if name == CLASSIFIER:
        if classifier is None:
            raise UserError("features: 'classifier' needs a set with classes; use inception or a trunk")
        return FeatureNetwork(name, ClassifierFeatures(classifier), device)
    try:
        return FeatureNetwork(name, TrunkFeatures(name, weights or IMAGENET), device)
    except UserError as error:
        raise UserError(str(error).replace("model.encoder.weights", f"features {name}")) from None
    except OSError as error:
        raise UserError(
            f"features: the ImageNet weights of {name} cannot be downloaded ({error}); give {name}=FILE.safetensors"
        ) from None


def _inception(weights: str | None) -> nn.Module:
    """torchmetrics' Inception-v3 of the FID, images resized as TensorFlow did for the published figures."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
        from torchmetrics.image.fid import NoTrainInceptionV3
    except ImportError:
        raise UserError("features: 'inception' needs torch-fidelity; pip install 'unetdiff[fid]'") from None
    state = _downloaded(URL_INCEPTION_V3) if weights is None else _read(weights)
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "weights.pth"  # torch-fidelity unpickles what it is given: what was read safely
        torch.save(state, own)
        try:
            return NoTrainInceptionV3("inception-v3-compat", ["2048"], str(own), antialias=False)
        except (RuntimeError, TypeError):
            raise UserError(
                f"features: '{weights}' does not hold torch-fidelity's Inception-v3; give its "
                "weights-inception-2015-12-05-6726825d.pth"
            ) from None


def _downloaded(url: str) -> dict[str, Tensor]:
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"features: the weights of inception cannot be downloaded ({error}); fetch {url} and give inception=FILE"
        ) from None


def _read(weights: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a torch file that holds nothing else."""
    path = Path(weights)
    if not path.is_file():
        raise UserError(f"features: no file '{weights}'; give inception=FILE")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, ValueError, OSError):
        raise UserError(
            f"features: '{weights}' cannot be read as tensors alone (truncated, or a pickle of something else); "
            "give a .safetensors or .pth file of weights"
        ) from None


def _fingerprint(name: str, network: nn.Module) -> str:
    digest = hashlib.sha256(f"{name} {TRUNK_SIDE}".encode())
    for key, tensor in sorted(network.state_dict().items()):
        digest.update(f"{key} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
