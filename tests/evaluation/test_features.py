"""Feature networks against torchvision and torchmetrics, safe loading, and names (FID for Inception-v3 only)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from unetdiff.errors import UserError
from unetdiff.evaluation.classifier import Classifier, ClassifierNetwork
from unetdiff.evaluation.features import BATCH, FeatureExtractor, load_feature_extractor

Noisy = Callable[..., Tensor]


@pytest.fixture(scope="module")
def encoder_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random mobilenet_v2's weights, as torchvision names them."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "mobilenet_v2.safetensors"
    save_file(torchvision.models.mobilenet_v2().state_dict(), path)
    return path


def test_encoder_features_are_torchvisions(encoder_weights: Path, noisy: Noisy) -> None:
    network = load_feature_extractor("mobilenet_v2", str(encoder_weights))
    reference = torchvision.models.mobilenet_v2().eval()
    torch.manual_seed(0)
    reference.load_state_dict(torchvision.models.mobilenet_v2().state_dict())
    reference.classifier = nn.Identity()
    images = noisy(2, 0, 128)
    normalize = torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = reference(normalize(images / 255))
    features = network(images)
    assert features.shape == (2, 1280) and features.dtype == torch.float32 and not features.requires_grad
    assert torch.allclose(features, expected, atol=1e-5)
    assert network.frechet_name == "Fréchet distance (mobilenet_v2 features)"
    assert network.kernel_name == "kernel distance (mobilenet_v2 features)"


def test_small_images_are_enlarged(encoder_weights: Path, noisy: Noisy) -> None:
    network = load_feature_extractor("mobilenet_v2", str(encoder_weights))
    shapes: list[tuple[int, ...]] = []
    network.network.encoder.features[0].register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    network(torch.zeros(1, 3, 8, 12, dtype=torch.uint8))
    network(torch.zeros(1, 3, 160, 130, dtype=torch.uint8))
    assert shapes == [(1, 3, 128, 192), (1, 3, 160, 130)]


def test_classifier_features_are_the_penultimate_layer(noisy: Noisy) -> None:
    torch.manual_seed(0)
    classifier = Classifier(ClassifierNetwork(4), 4, "none")
    network = load_feature_extractor("classifier", classifier=classifier)
    images = noisy(BATCH + 3, 0, 16)
    features = network(images)
    assert features.shape == (BATCH + 3, 128)
    assert torch.allclose(classifier.network.head(features), classifier.logits(images), atol=1e-5)
    assert torch.equal(features, network(images))
    with pytest.raises(UserError, match="must have a dataset with class labels"):
        load_feature_extractor("classifier")
    with pytest.raises(TypeError, match="uint8"):
        network(images.float())


def test_the_fingerprint_follows_name_and_weights() -> None:
    class Scale(nn.Module):
        def __init__(self, by: float) -> None:
            super().__init__()
            self.by = nn.Parameter(torch.tensor(by))

        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1).float() * self.by

    one, same, renamed, other = (
        FeatureExtractor(n, Scale(by)) for n, by in (("a", 1.0), ("a", 1.0), ("b", 1.0), ("a", 2.0))
    )
    assert one.fingerprint == same.fingerprint
    assert len({one.fingerprint, renamed.fingerprint, other.fingerprint}) == 3


def test_mismatched_encoder_weights(encoder_weights: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="features.resnet18=.*: must contain torchvision's resnet18"):
        load_feature_extractor("resnet18", str(encoder_weights))
    (tmp_path / "cut.safetensors").write_bytes(encoder_weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="features.mobilenet_v2: .*cut.safetensors: must be a complete safetensors"):
        load_feature_extractor("mobilenet_v2", str(tmp_path / "cut.safetensors"))


def test_inception_requires_torch_fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(UserError, match=r"requires torch-fidelity. pip install 'unetdiff\[fid\]'"):
        load_feature_extractor("inception")


class Trap:
    """What unpickling would run."""

    def __reduce__(self):
        return (Path.touch, (Path("trapped"),))


def test_inception_unpickles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_fidelity")
    monkeypatch.chdir(tmp_path)
    torch.save({"weights": Trap()}, "trap.pth")
    with pytest.raises(UserError, match="inception=trap.pth: must be a file of tensors only"):
        load_feature_extractor("inception", "trap.pth")
    assert not Path("trapped").exists()
    torch.load("trap.pth", weights_only=False)
    assert Path("trapped").exists()  # the trap is one


def test_inception_is_torchmetrics_fid(tmp_path: Path, noisy: Noisy, monkeypatch: pytest.MonkeyPatch) -> None:
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    monkeypatch.chdir(tmp_path)
    torch.save({"weights": torch.zeros(2)}, "other.pth")

    class Unweighted(fidelity.FeatureExtractorInceptionV3):
        def load_state_dict(self, *_, **__):
            return None

    torch.manual_seed(0)
    state = Unweighted("random", ["2048"], "other.pth").state_dict()
    torch.save(state, "random.pth")
    save_file(state, "random.safetensors")
    monkeypatch.setattr(nn.Conv2d, "reset_parameters", lambda _: None)  # slow, and overwritten by the weights
    with pytest.raises(UserError, match="inception=other.pth: must be torch-fidelity's Inception-v3"):
        load_feature_extractor("inception", "other.pth")
    network = load_feature_extractor("inception", "random.pth")
    assert (network.frechet_name, network.kernel_name) == ("FID", "KID")
    assert load_feature_extractor("inception", "random.safetensors").fingerprint == network.fingerprint
    classifier = FrechetInceptionDistance(feature_extractor_weights_path="random.pth", antialias=False)
    image = noisy(1, 0, 32)
    assert torch.allclose(network(image), classifier.inception(image), atol=1e-6)
