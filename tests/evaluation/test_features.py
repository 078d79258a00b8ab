"""Feature networks: torchvision's and torchmetrics' own features, safe loading, and names that claim nothing."""

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
from unetdiff.evaluation.classifier import Judge, Network
from unetdiff.evaluation.features import BATCH, FeatureNetwork, load_features

Noisy = Callable[..., Tensor]


@pytest.fixture(scope="module")
def trunk_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random mobilenet_v2's weights, as torchvision names them."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "mobilenet_v2.safetensors"
    save_file(torchvision.models.mobilenet_v2().state_dict(), path)
    return path


def test_trunk_features_are_torchvisions(trunk_weights: Path, noisy: Noisy) -> None:
    network = load_features("mobilenet_v2", str(trunk_weights))
    reference = torchvision.models.mobilenet_v2().eval()
    torch.manual_seed(0)
    reference.load_state_dict(torchvision.models.mobilenet_v2().state_dict())
    reference.classifier = nn.Identity()
    images = noisy(2, 0, 128)
    normalize = torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = reference(normalize(images / 255))
    found = network(images)
    assert found.shape == (2, 1280) and found.dtype == torch.float32 and not found.requires_grad
    assert torch.allclose(found, expected, atol=1e-5)
    assert network.frechet == "Fréchet distance (mobilenet_v2 features)"
    assert network.kernel == "kernel distance (mobilenet_v2 features)"


def test_small_images_are_enlarged_for_a_trunk(trunk_weights: Path, noisy: Noisy) -> None:
    network = load_features("mobilenet_v2", str(trunk_weights))
    seen: list[tuple[int, ...]] = []
    network.network.trunk.features[0].register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))
    network(torch.zeros(1, 3, 8, 12, dtype=torch.uint8))
    network(torch.zeros(1, 3, 160, 130, dtype=torch.uint8))
    assert seen == [(1, 3, 128, 192), (1, 3, 160, 130)]


def test_classifier_features_come_before_its_last_layer(noisy: Noisy) -> None:
    torch.manual_seed(0)
    judge = Judge(Network(4), 4, "none")
    network = load_features("classifier", classifier=judge)
    images = noisy(BATCH + 3, 0, 16)
    found = network(images)
    assert found.shape == (BATCH + 3, 128)
    assert torch.allclose(judge.network.head(found), judge.logits(images), atol=1e-5)
    assert torch.equal(found, network(images))
    with pytest.raises(UserError, match="needs a set with classes"):
        load_features("classifier")
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
        FeatureNetwork(n, Scale(by)) for n, by in (("a", 1.0), ("a", 1.0), ("b", 1.0), ("a", 2.0))
    )
    assert one.fingerprint == same.fingerprint
    assert len({one.fingerprint, renamed.fingerprint, other.fingerprint}) == 3


def test_weights_of_a_trunk_are_refused_by_name(trunk_weights: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="features resnet18: .* does not hold torchvision's resnet18"):
        load_features("resnet18", str(trunk_weights))
    (tmp_path / "cut.safetensors").write_bytes(trunk_weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="features mobilenet_v2: .*cut.safetensors' is truncated"):
        load_features("mobilenet_v2", str(tmp_path / "cut.safetensors"))


def test_inception_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(UserError, match=r"needs torch-fidelity; pip install 'unetdiff\[fid\]'"):
        load_features("inception")


class Trap:
    """What unpickling would run."""

    def __reduce__(self):
        return (Path.touch, (Path("trapped"),))


def test_inception_unpickles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_fidelity")
    monkeypatch.chdir(tmp_path)
    torch.save({"weights": Trap()}, "trap.pth")
    with pytest.raises(UserError, match="'trap.pth' cannot be read as tensors alone"):
        load_features("inception", "trap.pth")
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
    monkeypatch.setattr(nn.Conv2d, "reset_parameters", lambda _: None)  # slow, and what it makes is loaded over
    with pytest.raises(UserError, match="'other.pth' does not hold torch-fidelity's Inception-v3"):
        load_features("inception", "other.pth")
    network = load_features("inception", "random.pth")
    assert (network.frechet, network.kernel) == ("FID", "KID")
    assert load_features("inception", "random.safetensors").fingerprint == network.fingerprint
    judge = FrechetInceptionDistance(feature_extractor_weights_path="random.pth", antialias=False)
    image = noisy(1, 0, 32)
    assert torch.allclose(network(image), judge.inception(image), atol=1e-6)
