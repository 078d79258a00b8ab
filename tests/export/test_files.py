"""Exports with free batch, height and width answer as the network does, at sizes that they were not traced at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor
from torch.export import ExportedProgram

from unetdiff.diffusion.codecs import LatentCodec
from unetdiff.errors import UserError
from unetdiff.export import files
from unetdiff.export.files import to_onnx, to_torch_export
from unetdiff.export.plan import Plan
from unetdiff.models.unet import UNet
from unetdiff.segmentation.context import SegmentationContext
from unetdiff.segmentation.inference import segment_whole
from unetdiff.segmentation.segmenter import NetworkInput, Segmenter

# one worker: the operators of ONNX are registered once in a process, in seconds
pytestmark = pytest.mark.xdist_group("export")

CLASSES, CONTEXT = 5, 12
SEGMENTS: dict[str, Any] = {"segmentation": {"num_classes": CLASSES}}
CONDITIONED: dict[str, Any] = {
    "timestep": True,
    "cross_attention_dim": CONTEXT,
    "attention_head_dim": 8,
    "attention_levels": [1],
}
CLASSIC: dict[str, Any] = {"encoder": {"name": "classic", "channels": [8, 12]}}
RESIDUAL: dict[str, Any] = {
    "encoder": {"name": "residual", "channels": [8, 16]},
    "residual": {"norm_num_groups": 4, "layers_per_block": 1},
    "imported": {"resample": "resnet", "upcast_attention": True},
    "conditioning": CONDITIONED,
}


def pretrained(name: str, **rest: Any) -> dict[str, Any]:
    return {"encoder": {"name": name}, "decoder": {"channels": [8] * 5}, **rest}


CONFIGS: dict[str, dict[str, Any]] = {
    "classic, squares": {**CLASSIC, "patch_size": 2},
    "classic, valid": {"encoder": {"name": "classic", "channels": [4, 6], "padding": "valid"}},
    "residual, ADM": RESIDUAL,
    "resnet18": pretrained(
        "resnet18", conditioning={"timestep": True, "attention_levels": [5], "attention_head_dim": 64}
    ),
    "mobilenet_v2": {**pretrained("mobilenet_v2"), "decoder": {"channels": [8] * 3, "align_corners": True}},
    "convnext_tiny": pretrained("convnext_tiny"),
}
DENOISER: dict[str, Any] = {
    **CLASSIC,
    "conditioning": {**CONDITIONED, "pooled_context": True},
    "heads": {"diffusion": {"out_channels": 3}},
    "imported": {"num_class_embeds": 4},
}
SIZES = [(1, 32, 32), (1, 33, 57), (3, 50, 45)]


def build(**config: Any) -> UNet:
    """A random network in eval mode, no tensor of which is zero."""
    torch.manual_seed(0)
    unet = UNet(**{"heads": SEGMENTS, **config}).eval()
    with torch.no_grad():
        for parameter in unet.parameters():
            if not parameter.any():
                parameter.copy_(0.05 * torch.randn_like(parameter))
    return unet


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def assert_agrees(result: Tensor | np.ndarray, expected: Tensor) -> None:
    assert tuple(result.shape) == tuple(expected.shape)
    difference = (torch.as_tensor(result) - expected).abs().max() / expected.abs().max()
    assert difference <= 1e-4


@pytest.fixture(scope="module")
def traced(request: pytest.FixtureRequest) -> tuple[UNet, list[ExportedProgram]]:
    """A network, and its program as soon as it has been traced."""
    return build(**{**CONFIGS, "denoiser": DENOISER}[request.param]), []


@pytest.fixture
def network(traced: tuple[UNet, list[ExportedProgram]], monkeypatch: pytest.MonkeyPatch) -> UNet:
    """A network that is traced once for both formats."""
    unet, programs = traced
    capture = Plan.capture

    def capture_once(plan: Plan) -> ExportedProgram:
        if not programs:
            programs.append(capture(plan))
        return programs[0]

    monkeypatch.setattr(Plan, "capture", capture_once)
    return unet


@pytest.mark.parametrize("traced", CONFIGS, indirect=True)
def test_onnx_answers_as_the_network_at_any_size(network: UNet, tmp_path: Path) -> None:
    done = to_onnx(network, tmp_path / "net.onnx")
    model = session(done.path)
    assert [(i.name, i.type, i.shape) for i in model.get_inputs()] == [
        ("pixels", "tensor(float)", ["batch", 3, "height", "width"])
    ]
    assert [(o.name, o.shape) for o in model.get_outputs()] == [("logits", ["batch", CLASSES, "height", "width"])]
    for batch, height, width in SIZES:
        x = random(batch, 3, height, width)
        with torch.no_grad():
            expected = segment_whole(network, x)
        assert expected.shape == (batch, CLASSES, height, width)
        assert_agrees(model.run(None, {"pixels": x.numpy()})[0], expected)
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.parametrize("traced", ["classic, squares", "classic, valid", "resnet18"], indirect=True)
def test_torch_export_answers_as_the_network_at_any_size(network: UNet, tmp_path: Path) -> None:
    done = to_torch_export(network, tmp_path / "net.pt2")
    program = torch.export.load(done.path).module()
    for batch, height, width in SIZES:
        x = random(batch, 3, height, width)
        with torch.no_grad():
            assert_agrees(program(x), segment_whole(network, x))
    assert [file.name for file in tmp_path.iterdir()] == ["net.pt2"]


@pytest.mark.parametrize("to", [to_onnx, to_torch_export])
@pytest.mark.parametrize("traced", ["denoiser"], indirect=True)
def test_denoiser(to: Any, network: UNet, tmp_path: Path) -> None:
    done = to(network, tmp_path / f"denoiser{'.onnx' if to is to_onnx else '.pt2'}")
    assert done.inputs["encoder_hidden_states"] == ["batch", "tokens", CONTEXT]
    for batch, height, width, tokens in ((1, 2, 2, 1), (4, 21, 30, 5)):
        inputs = {
            "sample": random(batch, 3, height, width),
            "timestep": torch.arange(batch) * 200 + 7,
            "encoder_hidden_states": random(batch, tokens, CONTEXT),
            "class_labels": torch.arange(batch),
        }
        with torch.no_grad():
            expected = network(**inputs, return_dict=False)[0]
            if to is to_onnx:
                result = session(done.path).run(["prediction"], {k: v.numpy() for k, v in inputs.items()})[0]
            else:
                result = torch.export.load(done.path).module()(*inputs.values())
        assert_agrees(result, expected)


@pytest.mark.parametrize("kind", ["timestep", "identity"])
def test_a_denoiser_whose_class_labels_are_numbers_or_vectors(kind: str, tmp_path: Path) -> None:
    heads = {"diffusion": {"out_channels": 3}}
    conditioning = {"timestep": True, "attention_levels": []}
    unet = build(**CLASSIC, conditioning=conditioning, heads=heads, imported={"class_embed_type": kind})
    done = to_torch_export(unet, tmp_path / "net.pt2")
    assert done.inputs["class_labels"] == (["batch"] if kind == "timestep" else ["batch", 32])
    labels = torch.tensor([3, 8]) if kind == "timestep" else random(2, 32)
    inputs = (random(2, 3, 8, 10), torch.tensor([4, 700]), None, labels)
    with torch.no_grad():
        expected = unet(*inputs).sample
        assert not torch.equal(unet(*inputs[:3]).sample, expected)
        assert_agrees(torch.export.load(done.path).module()(*inputs), expected)


def test_images_fixed_sizes_opset_and_metadata(tmp_path: Path) -> None:
    unet = build(**CLASSIC)
    metadata = {"classes": list("abcde"), "size": [20, 31]}
    done = to_onnx(unet, tmp_path / "net.onnx", size=(20, 31), batch=1, opset=18, preprocess=True, metadata=metadata)
    model = session(done.path)
    assert model.get_inputs()[0].shape == [1, 20, 31, 3]
    assert model.get_outputs()[0].shape == [1, CLASSES, 20, 31]
    image = np.random.default_rng(0).integers(0, 256, (1, 20, 31, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = unet.segment(torch.from_numpy(image).permute(0, 3, 1, 2) / 127.5 - 1)
    assert_agrees(model.run(None, {"pixels": image})[0], expected)
    notes = {key: json.loads(value) for key, value in model.get_modelmeta().custom_metadata_map.items()}
    assert {key: notes[key] for key in metadata} == metadata
    assert notes["inputs"] == {"pixels": [1, 20, 31, 3]} and "0 to 255" in notes["pixels"]
    assert [o.version for o in onnx.load(done.path).opset_import if o.domain == ""] == [18]


def test_notes_of_a_torch_program_and_a_network_in_bf16_that_trains(tmp_path: Path) -> None:
    unet = build(**CLASSIC).to(torch.bfloat16).train()
    statistics = {name: buffer.clone() for name, buffer in unet.named_buffers()}
    done = to_torch_export(unet, tmp_path / "net.pt2", metadata={"classes": ["a", "b"]})
    notes = {"unetdiff.json": ""}
    program = torch.export.load(done.path, extra_files=notes).module()
    assert json.loads(notes["unetdiff.json"])["classes"] == ["a", "b"]
    assert program(random(2, 3, 9, 11)).dtype == torch.float32
    assert unet.training and unet.dtype == torch.bfloat16 and all(p.requires_grad for p in unet.parameters())
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in unet.named_buffers())


def test_a_file_that_does_not_agree_is_refused_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unet = build(**CLASSIC)
    (tmp_path / "net.onnx").write_text("what was there")
    monkeypatch.setattr(files, "TOLERANCE", 1e-9)
    with pytest.raises(UserError, match=r"net.onnx: must match the network's outputs to 1e-09 of the largest"):
        to_onnx(unet, tmp_path / "net.onnx")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("net.onnx", "what was there")]


def test_a_network_whose_answer_is_not_finite_is_refused(tmp_path: Path) -> None:
    unet = build(**CLASSIC)
    with torch.no_grad():
        unet.heads["segmentation"].conv.bias[0] = float("nan")
    with pytest.raises(UserError, match="must match the network.s outputs .*Nothing was written"):
        to_torch_export(unet, tmp_path / "net.pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "diffusion"}, "head=diffusion: must be one of this UNet.s heads \\(segmentation\\)."),
        ({"size": (1, 64)}, r"size=\[1, 64\]: must be \[height, width\] of at least 2 each."),
        ({"batch": 0}, "batch=0: must be at least 1."),
        ({"opset": 17}, r"opset=17: must be in \[18, 23\]."),
        ({"path": "net.pb"}, r"output=.*net.pb: must be a path that ends in .onnx"),
        (
            {"path": "nowhere/net.onnx"},
            "output=.*net.onnx: must be in an existing directory. Create '.*nowhere' first.",
        ),
    ],
)
def test_refusals(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / options.pop("path", "net.onnx")
    with pytest.raises(UserError, match=message):
        to_onnx(build(**CLASSIC), path, **options)
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "find_spec", lambda name: None if name == "onnxruntime" else True)
    with pytest.raises(UserError, match=r"format=onnx: requires onnxruntime. Run `pip install 'unetdiff\[export\]'`"):
        to_onnx(build(**CLASSIC), tmp_path / "net.onnx")


def test_a_segmenter_of_latents_is_exported_with_its_autoencoder_and_class_tokens(vae: Path, tmp_path: Path) -> None:
    unet = build(
        in_channels=4,
        encoder={"channels": [8]},
        residual=RESIDUAL["residual"],
        conditioning={**CONDITIONED, "attention_levels": [0]},
        heads={"segmentation": {"num_classes": CLASSES, "pyramid": 8, "attention_maps": True}},
    )
    context = SegmentationContext(CLASSES, CONTEXT)
    torch.nn.init.normal_(context.text)
    segmenter = Segmenter(unet, NetworkInput(7), LatentCodec.from_pretrained(vae), context)
    written = to_onnx(segmenter, tmp_path / "s.onnx", preprocess=True)
    assert written.inputs == {"pixels": ["batch", "height", "width", 3]}
    session = onnxruntime.InferenceSession(written.path, providers=["CPUExecutionProvider"])
    for batch, height, width in ((1, 21, 34), (9, 16, 15)):  # more images than the autoencoder encodes at once
        images = np.random.default_rng(0).integers(0, 256, (batch, height, width, 3)).astype(np.uint8)
        logits = session.run(["logits"], {"pixels": images})[0]
        with torch.no_grad():
            expected = segmenter(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1)
        np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4 * float(expected.abs().max()))
    with pytest.raises(UserError, match="segmentation.noised=true: must be false in an export"):
        to_onnx(Segmenter(unet, NetworkInput(7, (0.9, 0.1))), tmp_path / "n.onnx")
