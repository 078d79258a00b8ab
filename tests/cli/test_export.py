"""`unetdiff export`: a run in, one checked file out; what cannot be is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from diffusers import AutoencoderKL, DDIMPipeline, DiffusionPipeline, UNet2DConditionModel, UNet2DModel

from unetdiff import GenerationPipeline
from unetdiff.cli.main import main
from unetdiff.diffusion.config import DiffusionConfig
from unetdiff.diffusion.objectives import build_scheduler
from unetdiff.models.unet import UNet
from unetdiff.segmentation.pipeline import SegmentationPipeline


@pytest.mark.xdist_group("export")  # where the operators of ONNX are registered already
def test_images_in_logits_out(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "net.onnx"
    assert main(["export", str(run), "--output", str(file), "--preprocess"]) == 0
    first, expected_input, second = capsys.readouterr().out.splitlines()
    assert first == f"{file}: pixels (batch, height, width, 3) -> logits"
    assert expected_input == "pixels: RGB, uint8, 0 to 255, channels last"
    assert second.startswith("largest difference to the network at 1x2x25x3 and 3x23x17x3: ")

    pipeline = SegmentationPipeline.from_pretrained(run / "best")
    image = np.random.default_rng(0).integers(0, 256, (32, 27, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    logits = session.run(["logits"], {"pixels": image[None]})[0][0]
    expected = pipeline(image, return_logits=True).logits
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-4)
    notes = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert notes["classes"] == pipeline.classes and notes["pixels"] == expected_input.removeprefix("pixels: ")
    assert notes["palette"] == pipeline.palette.tolist()
    assert notes["size"] is None and pipeline.size is None  # scenes are seen at their own


def test_fixed_denoiser_beside_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--format", "torch", "--head", "diffusion", "--fixed", "--size", "16", "20"]
    assert main(["export", str(run), *words]) == 0
    assert "sample (1, 3, 16, 20), timestep (1), encoder_hidden_states (1, tokens, 8) -> prediction" in (
        capsys.readouterr().out
    )
    unet = UNet.from_pretrained(run / "best" / "unet")
    sample, timestep, context = torch.randn(1, 3, 16, 20), torch.tensor([300]), torch.randn(1, 1, 8)
    with torch.no_grad():
        found = torch.export.load(run / "diffusion.pt2").module()(sample, timestep, context)
        expected = unet(sample, timestep, context).sample
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_denoiser_for_diffusers(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """diffusers loads the same denoiser, our pipeline samples the same images, and the segmentation head is kept."""
    assert main(["export", str(run), "--format", "diffusers", "--output", str(tmp_path / "out")]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{tmp_path / 'out'}: sample (batch, 3, height, width), timestep (batch), encoder_hidden")
    assert second.startswith("largest difference to the network at 2x3x16x24: ")
    ours = GenerationPipeline.from_pretrained(run / "best")
    back = GenerationPipeline.from_pretrained(tmp_path / "out")
    stock = UNet2DConditionModel.from_pretrained(tmp_path / "out", subfolder="unet")
    sample, timestep, tokens = torch.randn(1, 3, 16, 16), torch.tensor([300]), torch.randn(1, 1, 8)
    with torch.no_grad():
        expected = ours.unet(sample, timestep, tokens).sample
        torch.testing.assert_close(stock(sample, timestep, tokens).sample, expected, rtol=1e-4, atol=1e-5)
    images = []
    for pipeline in (ours, back):
        pipeline.set_progress_bar_config(disable=True)
        drawn = pipeline([3, 7], num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt")
        images.append(drawn.images)
    torch.testing.assert_close(images[1], images[0], rtol=0, atol=1e-4)
    segmenter = UNet.from_diffusers(tmp_path / "out")
    pixels = torch.randn(1, 3, 21, 18)
    with torch.no_grad():
        torch.testing.assert_close(segmenter.segment(pixels), ours.unet.segment(pixels))
    assert (tmp_path / "out" / "segmentation.json").read_text() == (run / "best" / "segmentation.json").read_text()
    assert main(["export", str(run), "--format", "diffusers", "--output", str(tmp_path / "out")]) == 2
    assert "must be a new or an empty directory. Delete it, or choose another." in capsys.readouterr().err


def test_a_denoiser_that_is_told_nothing_is_a_stock_pipeline(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unet = UNet(
        sample_size=16,
        encoder={"channels": [8, 16]},
        residual={"layers_per_block": 1, "norm_num_groups": 4},
        conditioning={"attention_head_dim": 8},
        heads={"diffusion": {"out_channels": 3}},
    )
    GenerationPipeline(unet, build_scheduler(DiffusionConfig())).save_pretrained(tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), "--format", "diffusers"]) == 0
    stock = DiffusionPipeline.from_pretrained(tmp_path / "model" / "diffusers")
    ours = GenerationPipeline.from_pretrained(tmp_path / "model")
    assert type(stock) is DDIMPipeline and type(stock.unet) is UNet2DModel
    images = []
    for pipeline, options in ((stock, {"use_clipped_model_output": True}), (ours, {})):
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        drawn = pipeline(batch_size=2, num_inference_steps=4, generator=generator, output_type="np", **options)
        images.append(torch.from_numpy(drawn.images))
    torch.testing.assert_close(images[1], images[0], rtol=0, atol=1e-4)


def test_told_nothing_with_cross_attention_it_stays_ours(tmp_path: Path) -> None:
    # diffusers has no pipeline that gives such a network the tokens that stand for nothing
    unet = UNet(
        sample_size=16,
        encoder={"channels": [8, 16]},
        residual={"layers_per_block": 1, "norm_num_groups": 4},
        conditioning={"attention_head_dim": 8, "cross_attention_dim": 8},
        heads={"diffusion": {"out_channels": 3}},
    )
    GenerationPipeline(unet, build_scheduler(DiffusionConfig())).save_pretrained(tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), "--format", "diffusers"]) == 0
    out = tmp_path / "model" / "diffusers"
    assert json.loads((out / "model_index.json").read_text())["_class_name"] == "GenerationPipeline"
    drawn = [
        GenerationPipeline.from_pretrained(path)(
            num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np"
        ).images
        for path in (tmp_path / "model", out)
    ]
    torch.testing.assert_close(torch.from_numpy(drawn[1]), torch.from_numpy(drawn[0]), rtol=0, atol=1e-4)


def test_a_denoiser_of_latents_goes_on_to_decode_them(vae: Path, tmp_path: Path) -> None:
    unet = UNet(
        in_channels=4,
        sample_size=8,
        encoder={"channels": [8, 16]},
        residual={"layers_per_block": 1, "norm_num_groups": 4},
        conditioning={"attention_head_dim": 8},
        heads={"diffusion": {"out_channels": 4}},
    )
    autoencoder = AutoencoderKL.from_pretrained(vae)
    GenerationPipeline(unet, build_scheduler(DiffusionConfig()), vae=autoencoder).save_pretrained(tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), "--format", "diffusers"]) == 0
    assert json.loads((tmp_path / "model" / "diffusers" / "model_index.json").read_text())["vae"][1] == "AutoencoderKL"
    exported = GenerationPipeline.from_pretrained(tmp_path / "model" / "diffusers")
    exported.set_progress_bar_config(disable=True)
    assert exported(batch_size=1, num_inference_steps=2, output_type="pt").images.shape == (1, 3, 16, 16)
    with pytest.raises(Exception, match="GenerationPipeline"):  # no class of diffusers'
        DiffusionPipeline.from_pretrained(tmp_path / "model" / "diffusers")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "diffusers", "--head", "segmentation"], "--head: must be left out with --format=diffusers."),
        (["--format", "diffusers", "--fixed"], "--fixed: must be left out with --format=diffusers."),
        (["--format", "torch", "--opset", "18"], "--opset=18: must be left out with --format=torch."),
        (
            ["--head", "diffusion", "--fixed"],
            "--fixed: must be used with --size, as this model has no fixed input size.",
        ),
        (["--head", "diffusion", "--preprocess"], "preprocess=true: must be false with head=diffusion"),
        (["--size", "1", "1"], "size=[1, 1]: must be [height, width] of at least 2 each."),
        (["--formt", "torch"], "unknown argument '--formt'. Did you mean --format?"),
    ],
)
def test_refusals(words: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(run.iterdir())
    assert main(["export", str(run), *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""
    assert sorted(run.iterdir()) == before


def test_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path / "nowhere")]) == 2
    assert f"{tmp_path}/nowhere: does not exist" in capsys.readouterr().err


def test_no_denoiser(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    UNet(encoder={"channels": [8, 16]}, heads={"segmentation": {"num_classes": 2}}).save_pretrained(tmp_path / "unet")
    assert main(["export", str(tmp_path), "--format", "diffusers"]) == 2
    assert f"path={tmp_path}: must be a denoiser's model directory, with model_index.json." in capsys.readouterr().err
