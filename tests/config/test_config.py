"""The config at the door: every refusal is one line with the key, the value and the nearest right one."""

from __future__ import annotations

import typing
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path

import pytest
import yaml

from unetdiff.config.command_line import build_parser
from unetdiff.config.reading import from_yaml, load, parse, to_yaml
from unetdiff.config.schema import KEYS, LEAVES, RunConfig, nearest_key
from unetdiff.config.validation.run import validate
from unetdiff.errors import UserError
from unetdiff.models.config import SegmentationHeadConfig
from unetdiff.models.unet import UNet
from unetdiff.reports.quickstart import BACKBONE
from unetdiff.training.config import TrainingConfig
from unetdiff.training.optimizer import LearningRate

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*/*.yaml"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("task: segmentation\ntraining: {steps: 5, optimizer: {lr: 1e-3}}\n")
    return path


def refusal(*args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        load(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def every_field(cls: type, prefix: str = "") -> list[tuple[str, type, str]]:
    """(dotted key, class that holds it, its name), found without unetdiff.config.parsing."""
    found = []
    hints = typing.get_type_hints(cls)
    for item in fields(cls):
        hint = hints[item.name]
        inner = [h for h in (hint, *typing.get_args(hint)) if is_dataclass(h)]
        if inner:
            found += every_field(inner[0], f"{prefix}{item.name}.")
        else:
            found.append((prefix + item.name, cls, item.name))
    return found


def test_every_key_is_known_and_helped() -> None:
    text = " ".join(build_parser().format_help().split())
    expected = [key for key, _, _ in every_field(RunConfig)]
    assert expected == LEAVES
    for key in expected:
        if key.startswith(
            ("model.heads.", "segmentation.ohem.")
        ):  # an optional section is one option, which names the section's keys itself
            continue
        assert f"--{key} " in text, key
    # the words of an attribute docstring, two levels down
    assert "The half-life is at most this share of the images seen so far (EDM2)." in text
    assert "Contrast of the background's texture, 0 (plain) to 1." in text


def test_file_overrides_and_back(file: Path, tmp_path: Path) -> None:
    words = [
        "--training.steps=7",
        "--data.augment.crop",
        "[8, 16]",
        "--training.compile",
        "--model.encoder.norm",
        "group",
    ]
    config = load(file, words)
    assert config.training.optimizer.lr == 1e-3  # YAML itself reads 1e-3 as text
    assert config.training.steps == 7
    assert config.data.augment.crop == [8, 16]
    assert config.training.compile is True
    assert config == load(
        file,
        {"training": {"steps": 7, "compile": True}, "data.augment.crop": (8, 16), "model.encoder.norm": "group"},
    )
    (tmp_path / "back.yaml").write_text(to_yaml(config))
    assert from_yaml(tmp_path / "back.yaml") == config
    assert asdict(config).keys() == yaml.safe_load(to_yaml(config)).keys()


def test_defaults_are_those_of_the_classes() -> None:
    assert parse() == RunConfig()


def test_losses_are_added_on_the_command_line_and_replaced_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("segmentation: {losses: {dice: 2}}\n")
    assert parse(path).segmentation.losses == {"dice": 2.0}
    assert parse(path, ["--segmentation.losses.focal", "1"]).segmentation.losses == {"dice": 2.0, "focal": 1.0}


def test_overrides_leave_the_defaults_alone(file: Path) -> None:
    load(file, ["--segmentation.losses.focal", "1"])
    assert RunConfig().segmentation.losses == {"cross_entropy": 1.0, "dice": 1.0}


@pytest.mark.parametrize(
    ("given", "right"),
    [
        ("training.lr", "training.optimizer.lr"),
        ("lr", "training.optimizer.lr"),
        ("learning_rate", "training.optimizer.lr"),
        ("training.batchsize", "training.batch_size"),
        ("model.encoder.famly", "model.encoder.name"),
        ("encoder.name", "model.encoder.name"),
        ("data.augmentation.flip", "data.augment.flip"),
        ("diffusion.predction_type", "diffusion.prediction_type"),
        ("model.heads.segmentation.num_clases", "model.heads.segmentation.num_classes"),
    ],
)
def test_nearest_key(given: str, right: str, tmp_path: Path) -> None:
    assert nearest_key(given) == right
    assert refusal(None, [f"--{given}", "3"]) == f"unknown option --{given}; nearest: --{right}"
    tree: typing.Any = 3
    for part in reversed(given.split(".")):
        tree = {part: tree}
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(tree))
    assert refusal(path) == f"unknown key '{given}' (value 3) in {path}; nearest: {right}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--training.optimizer.lr", "fast"], "training.optimizer.lr: 'fast' is not right; it must be a number"),
        (["--training.steps", "1.5"], "training.steps: '1.5' is not right; it must be an integer or null"),
        (["--training.resume", "maybe"], "training.resume: 'maybe' is not right; it must be true or false"),
        (["--data.size", "[x,3]"], "data.size: '[x,3]' is not right; it must be a list of integers or null"),
        (["--training.optimizer.lr=null"], "training.optimizer.lr: 'null' is not right; it must be a number"),
        (
            ["--data.name", "scene"],
            "data.name: 'scene' is not right; it must be one of scenes, voc, voc_folder, image_folder, "
            "captioned_folder, parquet, fashion_mnist, cifar10 (nearest: scenes)",
        ),
        (
            ["--model.heads.segmentation.num_classes", "x"],
            "model.heads.segmentation: 'num_classes=x' is not right; it must be a section with num_classes (an "
            "integer), kernel_size (an integer) or null",
        ),
        (
            ["--segmentation.losses", "3"],
            "segmentation.losses: '3' is not right; it must be a mapping of names to numbers",
        ),
        (["--training.steps"], "--training.steps needs a value: an integer or null"),
        (["--training", "3"], "--training is a section; give its keys one by one, such as --training.output_dir"),
        (["other.yaml"], "unexpected 'other.yaml': the config file comes first, then --key value"),
    ],
)
def test_wrong_value_on_the_command_line(file: Path, words: list[str], message: str) -> None:
    assert refusal(file, words) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: 5", "training: 5 in FILE is no section; it holds keys such as training.output_dir"),
        ("training:", "training: None in FILE is no section; it holds keys such as training.output_dir"),
        ("training: {optimizer: {lr: }}", "training.optimizer.lr: None is not right in FILE; it must be a number"),
        ("training: {optimizer: {lr: [1]}}", "training.optimizer.lr: [1] is not right; it must be a number"),
        ("training: {steps: true}", "training.steps: True is not right; it must be an integer or null"),
        ("data: {root: 3}", "data.root: 3 is not right; it must be a text or null"),
        (
            "- 3",
            "FILE: a config file holds sections (task, model, data, segmentation, diffusion, joint, training), not [3]",
        ),
    ],
)
def test_wrong_value_in_a_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    assert refusal(path) == message.replace("FILE", str(path))


def test_files_that_are_none(tmp_path: Path, file: Path) -> None:
    assert refusal(tmp_path / "rum.yaml") == f"config file {tmp_path}/rum.yaml does not exist; nearest: {file}"
    (tmp_path / "b.yaml").write_text("a: [")
    assert f"config file {tmp_path}/b.yaml is not YAML" in refusal(tmp_path / "b.yaml")
    assert "line 1" in refusal(tmp_path / "b.yaml")
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    assert f"config file {tmp_path}/c.yaml cannot be read" in refusal(tmp_path / "c.yaml")
    assert refusal(file, None, "diffusion") == (
        f"task: 'segmentation' in {file}, but 'diffusion' was asked for; ask for segmentation"
    )


# (task, overrides, what the one line must hold)
ONLY_LOVASZ = {"segmentation.losses": {"lovasz": 1.0, "cross_entropy": 0.0, "dice": 0.0}}
IMPOSSIBLE = [
    ("segmentation", {"training.steps": None}, ["training.steps: None", "training.epochs null", "set one of the two"]),
    (
        "segmentation",
        {"training.epochs": 2},
        ["training.steps: 5", "training.epochs 2.0", "set one of the two to null"],
    ),
    ("segmentation", {"training.steps": 0}, ["training.steps: 0", "use 1 or more"]),
    ("segmentation", {"model.encoder.name": "resnet52"}, ["model.encoder.name: 'resnet52'", "nearest is resnet50"]),
    ("segmentation", {"model.encoder.weights": "imagenet"}, ["model.encoder.weights: 'imagenet'", "torchvision trunk"]),
    ("segmentation", {"model.encoder.channels": []}, ["model.encoder.channels: []", "e.g. [32, 64]"]),
    ("segmentation", {"model.encoder.norm": "batch"}, ["model.encoder.norm: 'batch'", "residual"]),
    ("segmentation", {"model.encoder.padding": "valid"}, ["model.encoder.padding: 'valid'", "classic"]),
    ("segmentation", {"model.in_channels": 1}, ["model.in_channels: 1", "use 3"]),
    (
        "diffusion",
        {"model.encoder.name": "classic", "model.encoder.padding": "valid"},
        ["model.encoder.padding: 'valid'", "diffusion"],
    ),
    (
        "joint",
        {"model.encoder.name": "resnet18", "model.encoder.norm": "batch"},
        ["model.encoder.norm: 'batch'", "use frozen or group"],
    ),
    (
        "joint",
        {"model.encoder.name": "resnet18", "model.decoder.norm": "batch"},
        ["model.decoder.norm: 'batch'", "use frozen or group"],
    ),
    ("diffusion", {"model.conditioning.timestep": False}, ["model.conditioning.timestep: false", "timestep"]),
    ("diffusion", {"model.conditioning.attention_levels": [4]}, ["model.conditioning.attention_levels: [4]", "0..3"]),
    (
        "diffusion",
        {"model.conditioning.cross_attention_dim": None},
        ["model.conditioning.cross_attention_dim: None", "such as 64", "diffusion.condition"],
    ),
    (
        "diffusion",
        {"diffusion.prediction_type": "epsilon", "diffusion.noise.zero_terminal_snr": True},
        ["diffusion.prediction_type: 'epsilon'", "zero_terminal_snr", "use v_prediction"],
    ),
    ("diffusion", {"diffusion.preview_steps": 2000}, ["diffusion.preview_steps: 2000", "use 1 to 1000"]),
    ("diffusion", {"diffusion.condition_dropout": 1.5}, ["diffusion.condition_dropout: 1.5", "use 0 to 1"]),
    ("diffusion", {"diffusion.offset_noise": -0.1}, ["diffusion.offset_noise: -0.1", "is no strength", "e.g. 0.1"]),
    ("diffusion", {"diffusion.offset_noise": ".inf"}, ["diffusion.offset_noise: inf", "is no strength"]),
    ("diffusion", {"diffusion.snr_gamma": 0}, ["diffusion.snr_gamma: 0.0", "5.0"]),
    ("diffusion", {"diffusion.snr_gamma": ".inf"}, ["diffusion.snr_gamma: inf", "5.0"]),
    (
        "diffusion",
        {"diffusion.weighting": "clamped_snr", "diffusion.snr_gamma": 0.5},
        ["diffusion.snr_gamma: 0.5", "clamped_snr", "use 5.0"],
    ),
    ("diffusion", {"model.sample_size": 64}, ["model.sample_size: 64", "[32, 32]", "use 32"]),
    ("diffusion", {"model.sample_size": [32, 48]}, ["model.sample_size: [32, 48]", "[32, 32]", "use 32"]),
    (
        "diffusion",
        {"model.conditioning.class_embed_type": "timestep"},
        ["model.conditioning.class_embed_type: 'timestep'", "is not trained here", "use null"],
    ),
    ("diffusion", {"model.residual.attention_heads": [2, 2]}, ["model.residual.attention_heads: [2, 2]", "4 values"]),
    (
        "diffusion",
        {"model.residual.transformer_depth": [1, 2]},
        ["model.residual.transformer_depth: [1, 2]", "4 values"],
    ),
    (
        "diffusion",
        {"data.name": "voc_folder", "data.root": ".", "data.size": [64, 64]},
        ["diffusion.condition: 'class'", "voc_folder", "use none"],
    ),
    (
        "diffusion",
        {"data.name": "voc_folder", "data.root": ".", "diffusion.condition": "none"},
        ["data.size: None", "voc_folder", "[height, width]"],
    ),
    (
        "segmentation",
        {"segmentation.losses": {"focl": 1.0}},
        ["segmentation.losses.focl: 1.0", "segmentation.losses.focal"],
    ),
    ("segmentation", {"segmentation.losses": {"dice": 0.0}}, ["segmentation.losses: {'dice': 0.0}", "weighs nothing"]),
    ("segmentation", {"segmentation.losses": {"dice": -1.0}}, ["segmentation.losses.dice: -1.0", "0 or more"]),
    ("joint", {"joint.diffusion_weight": 0}, ["joint.diffusion_weight: 0.0", "positive"]),
    ("joint", {"joint.segmentation_fraction": 0}, ["joint.segmentation_fraction: 0.0", "use 1 or less"]),
    ("joint", {"joint.log_gradients": -1}, ["joint.log_gradients: -1", "use 0 or more"]),
    (
        "joint",
        {"joint.weighting": "gradnorm"},
        ["joint.weighting: 'gradnorm'", "fixed, uncertainty, gradient_norm", "nearest: gradient_norm"],
    ),
    (
        "joint",
        {"joint.weighting": "gradient_norm", "training.compile": True},
        ["training.compile: True", "joint.weighting gradient_norm", "use false"],
    ),
    (
        "joint",
        {"joint.log_gradients": 5, "training.compile": True},
        ["training.compile: True", "joint.log_gradients 5", "use false"],
    ),
    (
        "joint",
        {"joint.weighting": "gradient_norm", "training.mixed_precision": "fp16"},
        ["training.mixed_precision: 'fp16'", "gradient_norm", "use bf16 or no"],
    ),
    (
        "segmentation",
        {"data.name": "fashion_mnist", "data.root": "."},
        ["data.name: 'fashion_mnist'", "no masks", "scenes, voc, voc_folder"],
    ),
    ("segmentation", {"data.name": "voc_folder"}, ["data.root: None", "voc_folder", "give the folder"]),
    ("segmentation", {"data.name": "voc", "data.root": "."}, ["data.size: None", "voc", "[height, width]"]),
    ("diffusion", {"data.name": "image_folder", "data.root": "."}, ["data.size: None", "image_folder"]),
    ("joint", {"data.name": "voc", "data.root": ".", "data.augment.crop": [32, 32]}, ["data.size: None", "one size"]),
    ("diffusion", {"data.name": "parquet", "data.root": "."}, ["data.size: None", "parquet"]),
    (
        "diffusion",
        {"data.name": "captioned_folder", "data.root": ".", "diffusion.condition": "none"},
        ["data.size: None", "captioned_folder"],
    ),
    ("segmentation", {"data.caption_column": "text"}, ["data.caption_column: 'text'", "captioned_folder and parquet"]),
    ("diffusion", {"data.scenes.held_out_pairs": ["blu 3"]}, ["data.scenes.held_out_pairs: 'blu 3'", "nearest: blue"]),
    ("segmentation", {"data.download": True}, ["data.download: True", "scenes", "voc, fashion_mnist, cifar10"]),
    ("segmentation", {"data.num_classes": 4}, ["data.num_classes: 4", "only voc_folder"]),
    ("segmentation", {"data.augment.crop": [32]}, ["data.augment.crop: [32]", "two positive integers"]),
    ("segmentation", {"data.augment.scale": [2.0, 0.5]}, ["data.augment.scale: [2.0, 0.5]", "e.g. [0.5, 2.0]"]),
    (
        "segmentation",
        {
            "data": {"name": "voc_folder", "root": ".", "num_classes": 4},
            "segmentation.class_weights": [1.0, 2.0],
        },
        ["segmentation.class_weights: [1.0, 2.0]", "2 weights", "give 4"],
    ),
    (
        "segmentation",
        {"segmentation.class_weights": [1.0, -1.0]},
        ["segmentation.class_weights: [1.0, -1.0]", "finite numbers"],
    ),
    (
        "segmentation",
        {"segmentation.class_weights": [0.0, 0.0]},
        ["segmentation.class_weights: [0.0, 0.0]", "positive"],
    ),
    (
        "segmentation",
        {"segmentation.class_weights_anneal_until": 0.5},
        ["segmentation.class_weights_anneal_until: 0.5", "weights that are not there"],
    ),
    (
        "segmentation",
        {"segmentation.class_weights": "median_frequency", "segmentation.class_weights_anneal_until": 0.0},
        ["segmentation.class_weights_anneal_until: 0.0", "0 to 1"],
    ),
    (
        "segmentation",
        {"segmentation.class_weights": "computd"},
        ["segmentation.class_weights: 'computd'", "nearest: computed"],
    ),
    (
        "segmentation",
        {"segmentation.class_weights": "median_frequency", **ONLY_LOVASZ},
        ["segmentation.class_weights: 'computed'", "without cross_entropy or focal", "use null"],
    ),
    ("segmentation", {"segmentation.label_smoothing": 1.0}, ["segmentation.label_smoothing: 1.0", "e.g. 0.1"]),
    (
        "segmentation",
        {"segmentation.label_smoothing": 0.1, **ONLY_LOVASZ},
        ["segmentation.label_smoothing: 0.1", "without cross_entropy", "use 0"],
    ),
    (
        "segmentation",
        {"segmentation.ohem": {"threshold": 0.5}, **ONLY_LOVASZ},
        ["segmentation.ohem: {'threshold': 0.5, 'min_fraction': 0.2}", "without cross_entropy", "use null"],
    ),
    ("segmentation", {"segmentation.noise": 1.5}, ["segmentation.noise: 1.5", "use 0 to 1"]),
    ("joint", {"segmentation.noise": 0.5}, ["segmentation.noise: 0.5", "task joint", "use 0.0, or task segmentation"]),
    (
        "segmentation",
        {
            "segmentation.noise": 0.5,
            "diffusion.noise.zero_terminal_snr": True,
            "diffusion.prediction_type": "epsilon",
        },
        ["diffusion.prediction_type: 'epsilon'", "pure noise"],
    ),
    (
        "segmentation",
        {"segmentation.noise": 0.5, "diffusion.noise.num_train_timesteps": 1},
        ["diffusion.noise.num_train_timesteps: 1", "use 2 or more"],
    ),
    ("segmentation", {"segmentation.ohem": {"threshold": 1.5}}, ["segmentation.ohem.threshold: 1.5", "use 0 to 1"]),
    (
        "segmentation",
        {"segmentation.ohem": {"min_fraction": -1}},
        ["segmentation.ohem.min_fraction: -1.0", "use 0 to 1"],
    ),
    (
        "segmentation",
        {"segmentation.ohem": {"threshold": 0, "min_fraction": 0}},
        ["segmentation.ohem.threshold: 0.0", "min_fraction 0.0 keep no pixel", "0.7"],
    ),
    ("segmentation", {"segmentation.ohem.treshold": 1}, ["segmentation.ohem.treshold", "segmentation.ohem.threshold"]),
    (
        "segmentation",
        {"training.resume": True, "training.overwrite": True},
        ["training.resume: True", "training.overwrite"],
    ),
    (
        "segmentation",
        {"training.gradient_accumulation_steps": 5},
        ["training.gradient_accumulation_steps: 5", "batch_size 32", "nearest that does: 4"],
    ),
    ("segmentation", {"training.optimizer.lr": 0}, ["training.optimizer.lr: 0.0", "positive number"]),
    ("segmentation", {"training.optimizer.betas": [0.9]}, ["training.optimizer.betas: [0.9]", "[0.9, 0.999]"]),
    ("segmentation", {"training.schedule.warmup_ratio": -0.1}, ["training.schedule.warmup_ratio: -0.1", "use 0 to 1"]),
    ("segmentation", {"training.max_nonfinite": 0}, ["training.max_nonfinite: 0", "use 1 or more"]),
]


@pytest.mark.parametrize(("task", "overrides", "parts"), IMPOSSIBLE, ids=lambda value: str(value)[:60])
def test_impossible_combination(task, overrides: dict, parts: list[str]) -> None:
    base = {"training.steps": 5, "model.conditioning.cross_attention_dim": 8}
    load(None, base, task)  # fit to train without the override
    message = refusal(None, {**base, **overrides}, task)
    for part in parts:
        assert part in message


def test_files_that_are_named_must_be_there(tmp_path: Path) -> None:
    base = {"training.steps": 5, "data.name": "voc_folder", "data.root": str(tmp_path / "no")}
    assert refusal(None, base) == f"data.root: '{tmp_path}/no' does not exist; give the place of the set"
    trunk = {"training.steps": 5, "model.encoder.name": "resnet18", "model.encoder.weights": "no.safetensors"}
    assert refusal(None, trunk).startswith("model.encoder.weights: 'no.safetensors' does not exist")


def test_a_root_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "voc").mkdir()
    load(None, {"training.steps": 5, "data.name": "voc_folder", "data.root": "~/voc", "data.size": [32, 32]})


def test_half_precision_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = {"training.steps": 5, "training.mixed_precision": "fp16"}
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert refusal(None, overrides) == "training.mixed_precision: 'fp16' needs a GPU; use auto, bf16 or no"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    load(None, overrides)


def test_validate_looks_at_nothing_but_the_config(tmp_path: Path) -> None:
    config = RunConfig(training=TrainingConfig(steps=1, output_dir=str(tmp_path / "run")))
    config.data.name, config.data.root = "voc_folder", str(tmp_path / "not-there")
    before = asdict(config)
    validate(config)
    assert asdict(config) == before
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_shipped_configs(path: Path) -> None:
    config = parse(path)
    validate(config)
    assert config.task == path.parent.name
    if path.stem == "scenes":
        assert config.model == BACKBONE  # three objectives, one definition, the quickstart's


def test_all_configs_are_shipped() -> None:
    assert [f"{path.parent.name}/{path.stem}" for path in CONFIGS] == [
        "diffusion/captioned_folder",
        "diffusion/cifar10",
        "diffusion/cifar10_gpu",
        "diffusion/fashion_mnist",
        "diffusion/image_folder",
        "diffusion/scenes",
        "diffusion/scenes_text",
        "diffusion/voc_layout",
        "joint/camvid",
        "joint/scenes",
        "segmentation/camvid_mobilenet_v2",
        "segmentation/scenes",
        "segmentation/voc_mobilenet_v2",
        "segmentation/voc_resnet50",
        "segmentation/voc_resnet50_reference",
    ]
    assert "joint.diffusion_weight" in KEYS


def test_the_reference_is_the_published_one() -> None:
    """Geometry, statistics, losses, optimizer and schedule; the golden learning rates at 1,464 images."""
    config = next(parse(path) for path in CONFIGS if path.stem == "voc_resnet50_reference")
    given = config.training
    config.model.encoder.weights = None
    config.model.heads.segmentation = SegmentationHeadConfig(num_classes=21)
    unet = UNet(**{name: getattr(config.model, name) for name in ("encoder", "decoder", "heads")})
    assert sum(p.numel() for p in unet.parameters()) / 1e6 == pytest.approx(43.93, abs=0.005)
    assert unet.encoder.scale.unique().tolist() == [0.5] and unet.encoder.shift.unique().tolist() == [0.5]  # [0, 1]
    assert config.segmentation.losses == {"cross_entropy": 1.0, "dice": 1.0}
    assert (given.epochs, given.optimizer.weight_decay, given.optimizer.max_grad_norm) == (50, 0, 0)
    assert given.optimizer.lr == given.optimizer.encoder_lr and not given.ema.enabled
    steps = round(50 * 1464 / given.batch_size)
    rate = LearningRate(given.schedule, steps, steps * given.batch_size / 1464)
    for epoch, value in {0: 1e-5, 1: 2.44e-5, 2: 6.76e-5, 3: 9.997e-5, 25: 5.05e-5, 48: 1e-6, 49: 1e-6}.items():
        step = round(epoch * 1464 / given.batch_size)
        assert rate.at(step, given.optimizer.lr) == pytest.approx(value, rel=5e-4)
