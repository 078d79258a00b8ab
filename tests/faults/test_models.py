"""Model directories that contradict themselves, or would run code; images and arguments that models cannot take."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from PIL import Image
from safetensors.torch import load_file, save_file

from unetdiff.cli.main import main
from unetdiff.config.model_directory import model_directory
from unetdiff.diffusion.codecs import LatentCodec
from unetdiff.diffusion.conditioning.classes import ClassConditioner
from unetdiff.diffusion.conditioning.text import TextConditioner
from unetdiff.diffusion.conditioning.text_encoder import TextEncoder
from unetdiff.diffusion.guidance import Guidance
from unetdiff.diffusion.pipeline import GenerationPipeline
from unetdiff.errors import UserError
from unetdiff.export.stock import to_diffusers
from unetdiff.models.pretrained import load_pretrained_encoder
from unetdiff.models.unet import UNet
from unetdiff.segmentation import inference
from unetdiff.segmentation.config import InferenceConfig
from unetdiff.segmentation.pipeline import SegmentationPipeline, saved_inference
from unetdiff.segmentation.plots import draw_confusion

WEIGHTS = "diffusion_pytorch_model.safetensors"
TINY: dict[str, Any] = {"encoder": {"channels": [8, 16]}, "residual": {"layers_per_block": 1, "norm_num_groups": 2}}
DENOISER = {**TINY, "sample_size": 8, "heads": {"diffusion": {"out_channels": 3}}}
SEGMENTER = {"encoder": {"name": "classic", "channels": [4, 8]}, "heads": {"segmentation": {"num_classes": 3}}}
Edit = Callable[[dict[str, Any]], object]


def edited(path: Path, edit: Edit) -> None:
    """Change a JSON file."""
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def at(content: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        content = content[section]
    content[last] = value


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmenter (segmenter/), a denoiser with classes (denoiser/) and one without (plain/)."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("saved")
    SegmentationPipeline(UNet(**SEGMENTER), ["a", "b", "c"]).save_pretrained(root / "segmenter")
    unet = UNet(**DENOISER, conditioning={"cross_attention_dim": 4, "attention_head_dim": 4})
    scheduler = DDIMScheduler(timestep_spacing="trailing", prediction_type="v_prediction")
    GenerationPipeline(unet, scheduler, ClassConditioner(3, 4, labels=["x", "y", "z"])).save_pretrained(
        root / "denoiser"
    )
    GenerationPipeline(UNet(**DENOISER), scheduler).save_pretrained(root / "plain")
    return root


@pytest.fixture
def models(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "models")
    return tmp_path / "models"


def refused(load: Callable[..., object], *arguments: Any, says: str) -> None:
    """One line, quickly."""
    start = time.perf_counter()
    with pytest.raises(UserError, match=says) as error:
        load(*arguments)
    assert "\n" not in str(error.value) and time.perf_counter() - start < 10


# ------------------------------------------------------------------------------------- A19, B8: the network


@pytest.mark.parametrize("kind", ["pipe", "loop", "folder"])
@pytest.mark.parametrize("file", ["unet/config.json", "segmentation.json"])
def test_b8_what_cannot_be_read_is_not_taken_for_missing(models: Path, file: str, kind: str) -> None:
    """A damaged best/ does not give way to latest/, nor a damaged segmentation.json to a model without one."""
    run = models / "run"
    for name in ("best", "latest"):
        shutil.copytree(models / "segmenter", run / name)
    path = run / "best" / file
    path.unlink()
    {"pipe": os.mkfifo, "loop": lambda p: p.symlink_to(p), "folder": Path.mkdir}[kind](path)  # type: ignore[operator]
    assert model_directory(run) == run / "best"
    refused(SegmentationPipeline.from_pretrained, run / "best", says=Path(file).name)
    if file == "segmentation.json":
        refused(saved_inference, run / "best", says=file)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.to(torch.int8), "of another dtype: .* I8 instead of float32"),
        (lambda t: t * float("nan"), "must be finite"),
        (lambda t: t[:1], "of another shape"),
        (None, "1 missing"),
    ],
    ids=["int8", "nan", "cut", "missing"],
)
def test_a19_weights_are_compared_with_the_config(models: Path, change: Any, says: str) -> None:
    file = models / "segmenter" / "unet" / WEIGHTS
    state = load_file(file)
    name = max(state, key=lambda key: state[key].numel())
    tensor = state.pop(name)
    if change is not None:
        state[name] = change(tensor).contiguous()
    save_file(state, file)
    refused(SegmentationPipeline.from_pretrained, models / "segmenter", says=f"{WEIGHTS}.*{says}")


def test_a19_complex_weights_are_refused(models: Path) -> None:
    file = models / "segmenter" / "unet" / WEIGHTS
    save_file({name: tensor.to(torch.complex64) for name, tensor in load_file(file).items()}, file)
    refused(UNet.from_pretrained, file.parent, says="must be a safetensors file of real numbers")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("encoder.channels", [10**9, 8], r"encoder.channels=.*must be in \[1, 65536\]"),
        ("encoder.channels", [60000, 60000], "of another shape"),
        ("encoder.channels", [4] * 40, "at most 16 values"),
        ("encoder.channels", "many", "encoder.channels=many: must be a list of integers or null"),
        ("residual.layers_per_block", -1, "residual.layers_per_block=-1"),
        ("residual.norm_num_groups", 0, "residual.norm_num_groups=0"),
        ("residual.dropout", float("nan"), "residual.dropout=nan"),
        ("patch_size", 1000, "patch_size=1000"),
        ("in_channels", True, "in_channels=true: must be an integer"),
        ("heads.segmentation.num_classes", 10**9, "num_classes=1000000000"),
        ("encoder", None, "'encoder' must be an object"),
        ("encoder.later", 1, "'encoder.later' is not a key of this version"),
    ],
)
def test_b8_config_json_is_checked_before_memory_is_taken(models: Path, key: str, value: Any, says: str) -> None:
    path = models / "segmenter" / "unet" / "config.json"
    edited(path, lambda content: at(content, key, value))
    refused(UNet.from_pretrained, path.parent, says=f"(config.json|{WEIGHTS}).*{says}")


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe{", b"[]", b'{"_class_name": "UNet"}', b"[" * 10**5])
def test_b8_broken_files_are_named(models: Path, content: bytes) -> None:
    for name in ("segmenter/unet/config.json", "segmenter/segmentation.json"):
        before = (models / name).read_bytes()
        (models / name).write_bytes(content)
        refused(SegmentationPipeline.from_pretrained, models / "segmenter", says=name.split("/")[-1])
        (models / name).write_bytes(before)
    for name in ("model_index.json", "scheduler/scheduler_config.json", "conditioner/config.json"):
        before = (models / "denoiser" / name).read_bytes()
        (models / "denoiser" / name).write_bytes(content)
        refused(GenerationPipeline.from_pretrained, models / "denoiser", says=f"denoiser/{name}")
        (models / "denoiser" / name).write_bytes(before)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("classes", ["a", "b", "b"], "different names"),
        ("classes", ["a", "b"], "one color per class"),
        ("palette", [[0, 0, 0]], "one color per class"),
        ("palette", [[0, 0, 300]] * 3, "0..255"),
        ("size", 10**9, "size must be"),
        ("ignore_index", 10**9, "ignore_index must be"),
        ("later", 1, "keys must be"),
        ("inference.scales", [1.0] * 10**5, "scales='100000 values': must be a list of 1 to 32"),
        ("inference.tile", [10**9, 10**9], "tile="),
        ("inference.batch_size", "8", "wrong type"),
    ],
)
def test_b8_segmentation_json(models: Path, key: str, value: Any, says: str) -> None:
    edited(models / "segmenter" / "segmentation.json", lambda content: at(content, key, value))
    refused(SegmentationPipeline.from_pretrained, models / "segmenter", says=f"segmentation.json: .*{says}")


def test_a6_class_names_are_compared_with_the_head(models: Path) -> None:
    def fewer(content: dict[str, Any]) -> None:
        content["classes"].pop()
        content["palette"].pop()

    edited(models / "segmenter" / "segmentation.json", fewer)
    refused(SegmentationPipeline.from_pretrained, models / "segmenter", says=r"got 2 for 3")


# ------------------------------------------------------------------------------------- pipelines of denoisers


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("num_train_timesteps", 10**9, "num_train_timesteps=1000000000"),
        ("num_train_timesteps", "many", "num_train_timesteps='many'"),
        ("timestep_spacing", "nonsense", "timestep_spacing=nonsense: must be one of leading"),
        ("beta_end", float("nan"), "beta_end=nan"),
        ("beta_end", 3.0, "noise levels in"),
        ("beta_schedule", "later", "describes no DDIMScheduler"),
        ("trained_betas", [0.1], "trained_betas"),
        ("prediction_type", "later", "prediction_type=later"),
        ("later", 1, "'later' is not a key"),
        ("_class_name", "EvilScheduler", "_class_name=EvilScheduler"),
        ("prediction_type", None, "must have the key 'prediction_type'"),
    ],
)
def test_b8_a20_the_scheduler_is_read_strictly(models: Path, key: str, value: Any, says: str) -> None:
    path = models / "denoiser" / "scheduler" / "scheduler_config.json"
    edited(path, lambda content: content.update({key: value}) if value is not None else content.pop(key))
    refused(GenerationPipeline.from_pretrained, models / "denoiser", says=f"scheduler_config.json: .*{says}")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("num_classes", 10**9, "num_classes=1000000000"),
        ("num_classes", 4, "must be 4 different names"),
        ("dim", -1, "dim=-1"),
        ("labels", [1, 2, 3], "labels="),
        ("later", 1, "'later' is not a key"),
    ],
)
def test_b8_the_conditioners_config(models: Path, key: str, value: Any, says: str) -> None:
    edited(models / "denoiser" / "conditioner" / "config.json", lambda content: content.update({key: value}))
    refused(GenerationPipeline.from_pretrained, models / "denoiser", says=f"conditioner/config.json: .*{says}")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"unet": ["evil", "Network"]}, "'unet' must be one of .*got evil.Network"),
        ({"unet": ["unetdiff.models.loading", "UNet"]}, "'unet' must be one of"),
        ({"scheduler": ["os", "system"]}, "'scheduler' must be one of"),
        ({"text_encoder": ["evil", "BertModel"]}, "'text_encoder' must be one of"),
        ({"later": ["evil", "Part"]}, "'later' is not a part"),
        ({"_class_name": ["pipeline", "Evil"]}, "_class_name="),
        ({"_class_name": "StableDiffusionXLPipeline"}, "_class_name=StableDiffusionXLPipeline"),
        ({"unet": None}, "must have the key 'unet'"),
        ({"unet": 5}, "'unet' must be .library, class."),
        ({"masks": {"classes": ["a", "a", "b"], "palette": [[0, 0, 0]] * 3}}, "masks.classes must be different"),
        ({"masks": {"classes": ["a"]}}, "'masks' must be an object"),
        ({"masks": {"classes": ["a", "b"], "palette": [[0, 0, 0]] * 2}}, "out_channels must be 2, .*masks .got 3"),
    ],
)
def test_d1_no_class_is_loaded_because_a_file_names_it(
    models: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], says: str
) -> None:
    for folder in (models, models / "denoiser", models / "denoiser" / "unet"):
        for name in ("evil.py", "pipeline.py", "Network.py"):
            (folder / name).write_text("from pathlib import Path\nPath('executed').touch()\nraise SystemExit")
    monkeypatch.chdir(models)
    monkeypatch.syspath_prepend(str(models))
    edited(models / "denoiser" / "model_index.json", lambda content: content.update(change))
    refused(GenerationPipeline.from_pretrained, models / "denoiser", says=says)
    assert not (models / "executed").exists()


def text_model(folder: Path, text_encoder: Path) -> Path:
    """A denoiser conditioned on text."""
    encoder = TextEncoder.from_pretrained(str(text_encoder), 6)
    unet = UNet(**DENOISER, conditioning={"cross_attention_dim": 4, "attention_head_dim": 4})
    conditioner = TextConditioner(4, encoder.width, 6)
    GenerationPipeline(unet, DDIMScheduler(), conditioner, encoder.model, encoder.tokenizer).save_pretrained(folder)
    return folder


def test_d1_d2_text_encoders_run_no_code_and_read_no_pickle(
    tmp_path: Path, text_encoder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("transformers").addHandler(caplog.handler)
    directory = text_model(tmp_path / "model", text_encoder)
    assert GenerationPipeline.from_pretrained(directory)(prompt="a red one", num_inference_steps=1).images
    config, weights = directory / "text_encoder" / "config.json", directory / "text_encoder" / "model.safetensors"
    tokenizer = directory / "tokenizer" / "tokenizer_config.json"
    originals = {path: path.read_bytes() for path in (config, weights, tokenizer)}
    (directory / "text_encoder" / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")

    def custom(content: dict[str, Any]) -> None:
        content |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}

    def mend() -> None:
        for path, content in originals.items():
            path.write_bytes(content)

    for says, spoil in (
        ("cannot be loaded as a text encoder", lambda: edited(config, custom)),
        ("text_encoder/config.json: must be JSON", lambda: config.write_text("{")),
        ("cannot be loaded as a text encoder", lambda: tokenizer.write_text("[]")),
        ("cannot be loaded as a text encoder", lambda: edited(config, lambda c: c.update(hidden_size=10**6))),
        ("_attn_implementation=", lambda: edited(config, lambda c: c.update(_attn_implementation="evil/kernel"))),
        ("num_hidden_layers=1000000000", lambda: edited(config, lambda c: c.update(num_hidden_layers=10**9))),
        ("model.safetensors: must be a complete", lambda: weights.write_bytes(originals[weights][:500])),
        ("missing tensors", lambda: save_file(dict(list(load_file(weights).items())[:2]), weights, {"format": "pt"})),
    ):
        spoil()
        refused(GenerationPipeline.from_pretrained, directory, says=says)
        mend()
    logging.getLogger("transformers").removeHandler(caplog.handler)
    assert "REPORT" not in caplog.text
    weights.unlink()
    torch.save({"x": torch.zeros(1)}, directory / "text_encoder" / "pytorch_model.bin")
    refused(GenerationPipeline.from_pretrained, directory, says="Pickles are never loaded; convert it")
    shutil.rmtree(directory / "tokenizer")
    refused(GenerationPipeline.from_pretrained, directory, says="must hold text_encoder/ and tokenizer/")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [("block_out_channels", [10**9, 4]), ("layers_per_block", 10**9), ("latent_channels", 60000), ("later", "x")],
)
def test_b8_an_autoencoders_config(vae: Path, tmp_path: Path, key: str, value: Any) -> None:
    shutil.copytree(vae, tmp_path / "vae")
    edited(tmp_path / "vae" / "config.json", lambda content: content.update({key: value}))
    if key == "later":  # diffusers ignores what it does not know
        LatentCodec.from_pretrained(tmp_path / "vae")
    else:
        refused(LatentCodec.from_pretrained, tmp_path / "vae", says="latent.vae=.*config")


def test_c_stock_directories_are_sampled(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to_diffusers(models / "plain", tmp_path / "exported")
    stock = UNet2DModel(8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=2, attention_head_dim=4,
                        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)  # fmt: skip
    DDIMPipeline(stock, DDIMScheduler()).save_pretrained(tmp_path / "stock")
    for name in ("exported", "stock"):
        output = tmp_path / f"{name}-samples"
        words = ["--num_images", "1", "--num_inference_steps", "2", "--output", str(output)]
        assert main(["sample", str(tmp_path / name), *words]) == 0
        capsys.readouterr()
        words = ["--data.scenes.train_images", "4", "--data.scenes.val_images", "2", "--samples_per_class", "0"]
        assert main(["evaluate", str(tmp_path / name), *words, "--num_neighbors", "0"]) == 0
        assert "diffusion/loss " in capsys.readouterr().out
    ours = GenerationPipeline.from_pretrained(models / "plain")
    again = GenerationPipeline.from_pretrained(tmp_path / "exported")
    latents = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    pixels = [p(latents=latents, num_inference_steps=2, output_type="pt").images for p in (ours, again)]
    assert torch.allclose(*pixels, atol=1e-5)


def test_c_diffusers_ema_is_loaded(tmp_path: Path) -> None:
    unet = UNet(**DENOISER)
    ema = EMAModel(unet.parameters(), decay=0.5, model_cls=UNet, model_config=unet.config)
    ema.step(unet.parameters())
    ema.save_pretrained(tmp_path)
    again = EMAModel.from_pretrained(tmp_path, UNet)
    assert again.decay == 0.5 and again.optimization_step == 1
    assert all(torch.equal(a, b) for a, b in zip(again.shadow_params, ema.shadow_params, strict=True))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"guidance_scale": float("nan")}, "guidance_scale=nan"),
        ({"num_inference_steps": -1}, "num_inference_steps=-1"),
        ({"num_inference_steps": 1.5}, "num_inference_steps=1.5"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"height": -8, "width": 8}, "height=-8"),
        ({"height": 10**9}, "height=1000000000"),
        ({"generator": [torch.Generator()] * 3, "batch_size": 2}, "generator: must be one"),
        ({"generator": 5}, "generator: must be torch.Generator"),
        ({"latents": torch.zeros(1, 5, 8, 8)}, "latents: must be a tensor of shape .B, 3"),
        ({"latents": torch.zeros(1, 3, 8, 8, dtype=torch.int64)}, "latents: must be finite floating"),
        ({"conditions": torch.zeros(1, 4, dtype=torch.int64)}, "conditions: must have the shape"),
        ({"conditions": torch.zeros(1, 1)}, "conditions: must have the dtype"),
    ],
)
def test_c_arguments_of_the_pipeline(saved: Path, options: dict[str, Any], says: str) -> None:
    pipeline = GenerationPipeline.from_pretrained(saved / "denoiser")
    refused(lambda: pipeline(**{"num_inference_steps": 1, **options}), says=says)


def test_c_guidance_that_is_no_number() -> None:
    refused(lambda: Guidance(rescale=2.0), says="guidance_rescale=2.0")


# ------------------------------------------------------------------------------------- images


KINDS: dict[str, dict[str, Any]] = {
    "classic": {"encoder": {"name": "classic", "channels": [4, 8, 8, 16]}},
    "valid": {"encoder": {"name": "classic", "channels": [4, 8, 8], "padding": "valid"}},
    "patch": {"encoder": {"name": "classic", "channels": [4, 8]}, "patch_size": 4},
    "residual": {"encoder": {"channels": [32, 32]}, "residual": {"layers_per_block": 1}},
    "resample": {**TINY, "imported": {"resample": "resnet"}},
    "resnet18": {"encoder": {"name": "resnet18"}, "decoder": {"channels": [4] * 5}},
    "convnext_tiny": {"encoder": {"name": "convnext_tiny"}, "decoder": {"channels": [4] * 5}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_c_images_of_any_size_are_segmented(kind: str) -> None:
    unet = UNet(**KINDS[kind], heads={"segmentation": {"num_classes": 3}}).eval()
    pipeline = SegmentationPipeline(unet, ["a", "b", "c"])
    sizes = [(1, 1), (2, 2), (1, 37), (3, 2), *([(5000, 40)] if kind == "classic" else [])]
    images = [np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8) for size in sizes]
    if kind != "valid":
        for size in sizes:
            assert unet.segment(torch.zeros(1, 3, *size)).shape == (1, 3, *size)
    for options in (InferenceConfig(tile=[64, 64]), InferenceConfig(scales=[0.5, 1], batch_size=1)):
        assert [out.mask.shape for out in pipeline(images, inference=options)] == sizes
    pipeline.optimize_for_inference()
    assert [out.mask.shape for out in pipeline(images)] == sizes


def test_c_networks_of_one_and_four_channels() -> None:
    gray = UNet(**SEGMENTER, in_channels=1).eval()
    image = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    expected = np.asarray(Image.fromarray(image).convert("L"))
    logits = inference.predict_logits(gray, image)
    assert torch.allclose(logits, gray.segment(torch.tensor(expected)[None, None] / 127.5 - 1)[0], atol=0.02)
    bands = SegmentationPipeline(UNet(**SEGMENTER, in_channels=4), ["a", "b", "c"])
    refused(lambda: bands(image), says="it has 3 channels, the dataset 4")
    assert bands(np.zeros((8, 8, 4), np.uint8)).mask.shape == (8, 8)


def test_c_large_images_need_tiles(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "MAX_WHOLE", 1000)
    pipeline = SegmentationPipeline.from_pretrained(saved / "segmenter")
    image = np.zeros((40, 40, 3), np.uint8)
    refused(lambda: pipeline(image), says="inference.tile=null: must be set .*--tile 512")
    assert pipeline(image, inference=InferenceConfig(tile=[16, 16])).mask.shape == (40, 40)


def test_c_dollar_in_class_name(tmp_path: Path) -> None:
    for count in (3, 40):
        draw_confusion(
            tmp_path / "confusion.png", np.eye(count, dtype=np.int64), ["$x", "$a_$", "x$^"] + ["b"] * (count - 3)
        )
        assert Image.open(tmp_path / "confusion.png").width > 100


def test_c_confusion_of_many_classes(tmp_path: Path) -> None:
    start = time.process_time()
    draw_confusion(tmp_path / "confusion.png", np.eye(200, dtype=np.int64), [f"class {i}" for i in range(200)])
    assert time.process_time() - start < 10  # 58 s with a layout that measures every name


def test_c_imagenet_weights_without_a_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("<urlopen error [Errno -2] Name or service not known>")

    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    refused(load_pretrained_encoder, "resnet18", "imagenet", says="=imagenet: .*--model.encoder.weights null")
    assert capsys.readouterr() == ("", "")  # the refusal is all that is said


def test_c_videos_of_two_pixels(saved: Path, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    from unetdiff.segmentation.video import segment_video

    with av.open(str(tmp_path / "small.avi"), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = 2, 2, "bgr0"
        for _ in range(2):
            frame = av.VideoFrame.from_ndarray(np.zeros((2, 2, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    pipeline = SegmentationPipeline.from_pretrained(saved / "segmenter")
    assert segment_video(pipeline, tmp_path / "small.avi", tmp_path / "out.mp4", tmp_path / "masks") == 2
    assert Image.open(tmp_path / "masks" / "000001.png").size == (2, 2)
