"""The config files of the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from unetdiff.config.quickstart import quickstart_configs
from unetdiff.config.reading import parse
from unetdiff.config.validation.run import validate
from unetdiff.models.config import SegmentationHeadConfig
from unetdiff.models.unet import UNet
from unetdiff.training.optimizer import LearningRate

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*/*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_shipped_configs(path: Path, stable_diffusion: Path) -> None:
    """The one of a pretrained model on the Hub, with a tiny one in its place."""
    config = parse(path, {"model.pretrained": str(stable_diffusion)} if path.stem == "stable_diffusion" else None)
    validate(config)
    assert config.task == path.parent.name
    if path.stem == "scenes":  # three objectives, one definition, the quickstart's
        quickstart = quickstart_configs(Path("quickstart"))[config.task]
        quickstart.training.output_dir = config.training.output_dir
        quickstart.training.log_every = config.training.log_every
        quickstart.diffusion.preview_steps = config.diffusion.preview_steps
        quickstart.diffusion.preview_per_class = config.diffusion.preview_per_class
        assert config == quickstart


def test_all_configs_are_shipped() -> None:
    assert [f"{path.parent.name}/{path.stem}" for path in CONFIGS] == [
        "diffusion/captioned_folder",
        "diffusion/cifar10",
        "diffusion/cifar10_gpu",
        "diffusion/fashion_mnist",
        "diffusion/flowers_latent",
        "diffusion/flowers_pixels",
        "diffusion/image_folder",
        "diffusion/scenes",
        "diffusion/scenes_text",
        "diffusion/stable_diffusion",
        "diffusion/voc_layout",
        "joint/camvid",
        "joint/scenes",
        "joint/voc_latent",
        "segmentation/camvid_mobilenet_v2",
        "segmentation/default",
        "segmentation/isbi_unet",
        "segmentation/scenes",
        "segmentation/voc_mobilenet_v2",
        "segmentation/voc_resnet50",
        "segmentation/voc_resnet50_reference",
        "segmentation/voc_stable_diffusion",
    ]


def test_the_reference_is_the_published_one() -> None:
    """Geometry, statistics, losses, optimizer and schedule; the golden learning rates at 1,464 images."""
    config = next(parse(path) for path in CONFIGS if path.stem == "voc_resnet50_reference")
    given = config.training
    config.model.encoder.weights = None
    config.model.heads.segmentation = SegmentationHeadConfig(num_classes=21)
    unet = UNet(**{name: getattr(config.model, name) for name in ("encoder", "decoder", "heads")})
    assert sum(p.numel() for p in unet.parameters()) / 1e6 == pytest.approx(43.93, abs=0.005)
    scale, shift = unet.encoder.normalization.scale, unet.encoder.normalization.shift
    assert scale.unique().tolist() == [0.5] and shift.unique().tolist() == [0.5]  # [0, 1]
    assert config.segmentation.losses == {"cross_entropy": 1.0, "dice": 1.0}
    assert (given.epochs, given.optimizer.weight_decay, given.optimizer.max_grad_norm) == (50, 0, 0)
    assert given.optimizer.lr == given.optimizer.encoder_lr and not given.ema.enabled
    steps = round(50 * 1464 / given.batch_size)
    rate = LearningRate(given.schedule, steps, steps * given.batch_size / 1464)
    for epoch, value in {0: 1e-5, 1: 2.44e-5, 2: 6.76e-5, 3: 9.997e-5, 25: 5.05e-5, 48: 1e-6, 49: 1e-6}.items():
        step = round(epoch * 1464 / given.batch_size)
        assert rate.at(step, given.optimizer.lr) == pytest.approx(value, rel=5e-4)
