"""Combinations of keys that cannot be trained are rejected with `key=value: must be ...`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from unetdiff.config.reading import load
from unetdiff.config.schema import RunConfig
from unetdiff.config.training import TrainingConfig
from unetdiff.config.validation.masks import ONLY_FOR
from unetdiff.config.validation.run import validate
from unetdiff.data.capabilities import WITH_MASKS

BASE = {"training.steps": 5, "model.conditioning.cross_attention_dim": 8}
# (task, overrides, the message; the network's own messages: how they begin)
INVALID = [
    (
        "segmentation",
        {"training.steps": None},
        "training.steps=null: must be set if training.epochs is null. Set one of the two.",
    ),
    (
        "segmentation",
        {"training.epochs": 2},
        "training.steps=5: must be null with training.epochs=2.0. Set one of the two to null.",
    ),
    ("segmentation", {"training.steps": 0}, "training.steps=0: must be at least 1."),
    ("segmentation", {"model.encoder.name": "resnet52"}, "model.encoder.name"),
    ("segmentation", {"model.encoder.weights": "imagenet"}, "model.encoder.weights"),
    (
        "segmentation",
        {"model.encoder.channels": []},
        "model.encoder.channels=[]: must be a list of positive integers. Give e.g. [32, 64].",
    ),
    ("segmentation", {"model.encoder.norm": "batch"}, "model.encoder.norm"),
    ("segmentation", {"model.encoder.padding": "valid"}, "model.encoder.padding"),
    (
        "segmentation",
        {"model.in_channels": 1},
        "model.in_channels=1: must be 3, its default. "
        "The network's channels follow from the images; set data.channels to read them otherwise.",
    ),
    ("diffusion", {"model.encoder.name": "classic", "model.encoder.padding": "valid"}, "model.encoder.padding"),
    ("joint", {"model.encoder.name": "resnet18", "model.encoder.norm": "batch"}, "model.encoder.norm"),
    ("joint", {"model.encoder.name": "resnet18", "model.decoder.norm": "batch"}, "model.decoder.norm"),
    ("diffusion", {"model.conditioning.timestep": False}, "model.conditioning.timestep"),
    ("diffusion", {"model.conditioning.attention_levels": [4]}, "model.conditioning.attention_levels"),
    (
        "diffusion",
        {"model.conditioning.cross_attention_dim": None},
        "model.conditioning.cross_attention_dim=null: must be set with diffusion.condition=class, whose tokens "
        "enter by cross-attention. Give e.g. 64, or use diffusion.condition=none.",
    ),
    (
        "diffusion",
        {"diffusion.prediction_type": "epsilon", "diffusion.noise.zero_terminal_snr": True},
        "diffusion.prediction_type=epsilon: must be v_prediction or sample with "
        "diffusion.noise.zero_terminal_snr=true, whose last timestep is pure noise.",
    ),
    (
        "diffusion",
        {"diffusion.noise.process": "flow", "diffusion.prediction_type": "epsilon"},
        "diffusion.prediction_type=epsilon: must be v_prediction with diffusion.noise.process=flow, which predicts the "
        "velocity.",
    ),
    (
        "diffusion",
        {"diffusion.noise.process": "flow", "diffusion.noise.zero_terminal_snr": True},
        "diffusion.noise.zero_terminal_snr=true: must be false with diffusion.noise.process=flow, which does not read "
        "it. Use process=ddpm.",
    ),
    (
        "segmentation",
        {"segmentation.noise": 0.5, "diffusion.noise.flow.shift": 3.0},
        "diffusion.noise.flow.shift=3.0: must be 1.0 with diffusion.noise.process=ddpm, which does not read it. Use "
        "process=flow.",
    ),
    (
        "diffusion",
        {"diffusion.noise.process": "edm", "diffusion.prediction_type": "sample"},
        "diffusion.prediction_type=sample: must be v_prediction or epsilon with diffusion.noise.process=edm, whose "
        "preconditioning determines the target.",
    ),
    (
        "diffusion",
        {"diffusion.noise.process": "edm", "diffusion.noise.edm.sigma_min": 80.0},
        "diffusion.noise.edm.sigma_min=80.0: must be below diffusion.noise.edm.sigma_max=80.",
    ),
    (
        "segmentation",
        {"diffusion.noise.process": "edm"},
        "diffusion.noise.process=edm: must be ddpm or flow with task=segmentation, whose segmentation head sees clean "
        "images at timestep 0.",
    ),
    (
        "joint",
        {"diffusion.noise.process": "edm"},
        "diffusion.noise.process=edm: must be ddpm or flow with task=joint, whose segmentation head sees clean images "
        "at timestep 0.",
    ),
    (
        "diffusion",
        {"diffusion.noise.beta_end": 0.012},
        "diffusion.noise.beta_end=0.012: must be 0.02 with diffusion.noise.beta_schedule=squaredcos_cap_v2, which "
        "does not read it. Use linear or scaled_linear.",
    ),
    (
        "diffusion",
        {"diffusion.noise.beta_schedule": "linear", "diffusion.noise.beta_start": 0.03},
        "diffusion.noise.beta_start=0.03: must be at most diffusion.noise.beta_end=0.02.",
    ),
    (
        "diffusion",
        {"diffusion.preview_steps": 2000},
        "diffusion.preview_steps=2000: must be in 1..1000 (diffusion.noise.num_train_timesteps).",
    ),
    ("diffusion", {"diffusion.condition_dropout": 1.5}, "diffusion.condition_dropout=1.5: must be in [0, 1]."),
    (
        "diffusion",
        {"diffusion.offset_noise": -0.1},
        "diffusion.offset_noise=-0.1: must be at least 0.",
    ),
    (
        "diffusion",
        {"diffusion.offset_noise": float("inf")},
        "diffusion.offset_noise=inf: must be a finite number of at least 0.",
    ),
    ("diffusion", {"diffusion.snr_gamma": 0}, "diffusion.snr_gamma=0.0: must be a positive number. Min-SNR uses 5.0."),
    (
        "diffusion",
        {"diffusion.snr_gamma": float("inf")},
        "diffusion.snr_gamma=inf: must be a positive number. Min-SNR uses 5.0.",
    ),
    (
        "diffusion",
        {"diffusion.weighting": "clamped_snr", "diffusion.snr_gamma": 0.5},
        "diffusion.snr_gamma=0.5: must be at least 1 with diffusion.weighting=clamped_snr. Use 5.0.",
    ),
    (
        "diffusion",
        {"model.sample_size": 64},
        "model.sample_size=64: must be the size of the training images, [32, 32]. Use 32.",
    ),
    (
        "diffusion",
        {"model.sample_size": [32, 48]},
        "model.sample_size=[32, 48]: must be the size of the training images, [32, 32]. Use 32.",
    ),
    (
        "diffusion",
        {"model.imported.class_embed_type": "timestep"},
        "model.imported.class_embed_type=timestep: must be null: it describes imported networks and is not trained.",
    ),
    ("diffusion", {"model.imported.attention_heads": [2, 2]}, "model.imported.attention_heads"),
    ("diffusion", {"model.imported.transformer_depth": [1, 2]}, "model.imported.transformer_depth"),
    (
        "diffusion",
        {"data.name": "voc_folder", "data.root": ".", "data.size": [64, 64]},
        "diffusion.condition=class: must be none with data.name=voc_folder, which has no class labels. Or use "
        "data.name=scenes, image_folder, parquet, fashion_mnist, cifar10, custom.",
    ),
    (
        "diffusion",
        {"data.name": "voc_folder", "data.root": ".", "diffusion.condition": "none"},
        "data.size=null: must be set with data.name=voc_folder and task=diffusion, as a denoiser samples images "
        "of one size. Give [height, width]; data.augment.crop may cut smaller crops from them.",
    ),
    (
        "segmentation",
        {"segmentation.losses": {"focl": 1.0}},
        "segmentation.losses={focl: 1.0}: must be a mapping with keys among cross_entropy, focal, dice, lovasz. "
        "Did you mean focal?",
    ),
    (
        "segmentation",
        {"segmentation.losses": {"dice": 0.0}},
        "segmentation.losses={dice: 0.0}: must be a mapping with a positive weight. Give e.g. {cross_entropy: 1.0}.",
    ),
    (
        "segmentation",
        {"segmentation.losses": {"dice": -1.0}},
        "segmentation.losses.dice=-1.0: must be at least 0.",
    ),
    ("joint", {"joint.diffusion_weight": 0}, "joint.diffusion_weight=0.0: must be a positive number."),
    ("joint", {"joint.segmentation_fraction": 0}, "joint.segmentation_fraction=0.0: must be in (0, 1]."),
    (
        "segmentation",
        {"data.label_fraction": 0.5},
        "data.label_fraction=0.5: must be 1 with task=segmentation: a joint run's diffusion head learns without masks. "
        "Use data.train_fraction, or segmentation.pseudo_labels.",
    ),
    (
        "joint",
        {"data.label_fraction": 0.5},
        "joint.segmentation_fraction=1.0: must be less than 1 with data.label_fraction=0.5: the other images of a "
        "batch may have no mask. Give e.g. 0.25.",
    ),
    (
        "joint",
        {"data.unlabelled_root": "."},
        "data.unlabelled_root=.: must be null with data.name=scenes. Only folders, voc, voc_folder, coco, "
        "labelme, label_studio, cityscapes, ade20k, huggingface support it.",
    ),
    ("joint", {"joint.log_gradients": -1}, "joint.log_gradients=-1: must be at least 0."),
    ("joint", {"joint.segment_noise_below": 1.5}, "joint.segment_noise_below=1.5: must be in [0, 1]."),
    *(
        (
            "joint",
            {"joint.segment_noise_below": 0.2, key: value},
            f"joint.segment_noise_below=0.2: must be 0 with {key}={shown}: the maps that denoise an image are not "
            "those that segment it.",
        )
        for key, value, shown in (
            ("model.heads.segmentation.own_decoder_levels", 1, "1"),
            ("model.heads.segmentation.task_embedding", True, "true"),
            ("segmentation.context", "classes", "classes"),
        )
    ),
    (
        "joint",
        {"joint.log_gradients": 5, "joint.backbone_gradient": 0.0},
        "joint.log_gradients=5: must be 0 with joint.backbone_gradient=0, which leaves one gradient to compare.",
    ),
    (
        "joint",
        {"joint.weighting": "gradient_norm", "joint.backbone_gradient": 0.0},
        "joint.weighting=gradient_norm: must be fixed or uncertainty with joint.backbone_gradient=0, which leaves one "
        "gradient.",
    ),
    (
        "segmentation",
        {"model.heads": {"segmentation": {"own_decoder_levels": 1}}},
        "model.heads.segmentation.own_decoder_levels=1: must be 0 without a diffusion head to share the others with.",
    ),
    (
        "joint",
        {"joint.weighting": "gradnorm"},
        "joint.weighting=gradnorm: must be one of fixed, uncertainty, gradient_norm. Did you mean gradient_norm?",
    ),
    (
        "joint",
        {"joint.weighting": "gradient_norm", "training.compile": True},
        "training.compile=true: must be false with joint.weighting=gradient_norm, which computes the gradient of "
        "each loss.",
    ),
    (
        "joint",
        {"joint.log_gradients": 5, "training.compile": True},
        "training.compile=true: must be false with joint.log_gradients=5, which computes the gradient of each loss.",
    ),
    (
        "joint",
        {"joint.weighting": "gradient_norm", "training.mixed_precision": "fp16"},
        "training.mixed_precision=fp16: must be bf16 or no with joint.weighting=gradient_norm, whose gradients "
        "underflow in fp16.",
    ),
    (
        "segmentation",
        {"model.encoder": {"name": "classic", "padding": "valid"}, "segmentation.context": "empty"},
        "segmentation.context=empty: must be none with model.encoder.padding=valid. Use padding=same.",
    ),
    (
        "joint",
        {"joint.weighting": "gradient_norm", "training.lora.rank": 2},
        "joint.weighting=gradient_norm: must be fixed or uncertainty with training.lora.rank=2, which freezes the "
        "layer whose gradients it compares.",
    ),
    (
        "joint",
        {"joint.log_gradients": 5, "training.freeze_backbone": True},
        "joint.log_gradients=5: must be 0 with training.freeze_backbone=true, which leaves no shared layer to train.",
    ),
    (
        "segmentation",
        {"data.name": "voc", "data.root": ".", "data.size": [64, 64], "segmentation.context": "caption"},
        "data.name=voc: must be a dataset with captions for segmentation.context=caption: scenes, captioned_folder, "
        "parquet, custom.",
    ),
    (
        "segmentation",
        {"training.freeze_backbone": True},
        "training.freeze_backbone=true: must be false without model.pretrained, training.init_from or "
        "model.encoder.weights, as a backbone of random weights would stay random. Give the network to freeze.",
    ),
    (
        "segmentation",
        {"training.frozen_levels": 2},
        "training.frozen_levels=2: must be 0 without model.pretrained, training.init_from or model.encoder.weights, "
        "as levels would stay random. Give the weights to freeze, or training.frozen_levels=0.",
    ),
    (
        "joint",
        {"training.freeze_encoder": 0.5},
        "training.freeze_encoder=0.5: must be 0 without model.pretrained, training.init_from or "
        "model.encoder.weights, as the encoder would stay random. Give the weights to freeze, or "
        "training.freeze_encoder=0.",
    ),
    (
        "segmentation",
        {"data.name": "fashion_mnist", "data.root": "."},
        f"data.name=fashion_mnist: must be a dataset with masks for task=segmentation: {', '.join(WITH_MASKS)}.",
    ),
    (
        "segmentation",
        {"data.name": "voc_folder"},
        "data.root=null: must be set with data.name=voc_folder. Give the folder of the dataset.",
    ),
    (
        "segmentation",
        {"data.name": "voc", "data.root": "."},
        "data.size=null: must be set with data.name=voc. Give [height, width], or set data.augment.crop.",
    ),
    (
        "diffusion",
        {"data.name": "image_folder", "data.root": "."},
        "data.size=null: must be set with data.name=image_folder and task=diffusion, as a denoiser samples "
        "images of one size. Give [height, width]; data.augment.crop may cut smaller crops from them.",
    ),
    (
        "joint",
        {"data.name": "voc", "data.root": ".", "data.augment.crop": [32, 32]},
        "data.size=null: must be set with data.name=voc and task=joint, as a denoiser samples images of one "
        "size. Give [height, width]; data.augment.crop may cut smaller crops from them.",
    ),
    (
        "diffusion",
        {"data.name": "parquet", "data.root": "."},
        "data.size=null: must be set with data.name=parquet and task=diffusion, as a denoiser samples images of "
        "one size. Give [height, width]; data.augment.crop may cut smaller crops from them.",
    ),
    (
        "diffusion",
        {"data.name": "captioned_folder", "data.root": ".", "diffusion.condition": "none"},
        "data.size=null: must be set with data.name=captioned_folder and task=diffusion, as a denoiser samples "
        "images of one size. Give [height, width]; data.augment.crop may cut smaller crops from them.",
    ),
    (
        "segmentation",
        {"data.caption_column": "text"},
        "data.caption_column=text: must be null with data.name=scenes. Only captioned_folder and parquet have "
        "caption columns.",
    ),
    (
        "diffusion",
        {"data.scenes.held_out_pairs": ["blu 3"]},
        "data.scenes.held_out_pairs='blu 3': must be one of the colors red, green, blue, yellow, purple, white, "
        "and a digit. Did you mean blue?",
    ),
    (
        "segmentation",
        {"data.download": True},
        "data.download=true: must be false with data.name=scenes. Only voc, fashion_mnist, cifar10 can be downloaded.",
    ),
    (
        "segmentation",
        {"data.num_classes": 4},
        "data.num_classes=4: must be null with data.name=scenes. "
        f"Only {', '.join(ONLY_FOR['num_classes'])} support it.",
    ),
    (
        "segmentation",
        {"data.augment.crop": [32]},
        "data.augment.crop=[32]: must be [height, width], two integers from 8 to 16384. Give e.g. [256, 256].",
    ),
    (
        "segmentation",
        {"data.augment.scale": [2.0, 0.5]},
        "data.augment.scale=[2.0, 0.5]: must be [smallest, largest]. Give [0.5, 2.0].",
    ),
    (
        "segmentation",
        {"data": {"name": "voc_folder", "root": ".", "num_classes": 4}, "segmentation.class_weights": [1.0, 2.0]},
        "segmentation.class_weights=[1.0, 2.0]: must be a list of 4 numbers, one per class.",
    ),
    (
        "segmentation",
        {"segmentation.class_weights": [1.0, -1.0]},
        "segmentation.class_weights=[1.0, -1.0]: must be a list of finite numbers of at least 0, one of them positive.",
    ),
    (
        "segmentation",
        {"segmentation.class_weights": [0.0, 0.0]},
        "segmentation.class_weights=[0.0, 0.0]: must be a list of finite numbers of at least 0, one of them positive.",
    ),
    (
        "segmentation",
        {"segmentation.class_weights_anneal_until": 0.5},
        "segmentation.class_weights_anneal_until=0.5: must be null without segmentation.class_weights.",
    ),
    (
        "segmentation",
        {"segmentation.class_weights": "median_frequency", "segmentation.class_weights_anneal_until": 0.0},
        "segmentation.class_weights_anneal_until=0.0: must be in (0, 1]. Give e.g. 0.5.",
    ),
    (
        "segmentation",
        {"segmentation.class_weights": "median_freq"},
        "segmentation.class_weights=median_freq: must be a list of numbers or one of median_frequency, "
        "inverse_log or null. Did you mean median_frequency?",
    ),
    (
        "segmentation",
        {
            "segmentation.class_weights": "median_frequency",
            "segmentation.losses": {"lovasz": 1.0, "cross_entropy": 0.0, "dice": 0.0},
        },
        "segmentation.class_weights=median_frequency: must be null without cross_entropy or focal in "
        "segmentation.losses.",
    ),
    (
        "segmentation",
        {"segmentation.label_smoothing": 1.0},
        "segmentation.label_smoothing=1.0: must be in [0, 1). Give e.g. 0.1.",
    ),
    (
        "segmentation",
        {
            "segmentation.label_smoothing": 0.1,
            "segmentation.losses": {"lovasz": 1.0, "cross_entropy": 0.0, "dice": 0.0},
        },
        "segmentation.label_smoothing=0.1: must be 0 without cross_entropy in segmentation.losses. Or give "
        "cross_entropy a weight.",
    ),
    (
        "segmentation",
        {
            "segmentation.ohem": {"threshold": 0.5},
            "segmentation.losses": {"lovasz": 1.0, "cross_entropy": 0.0, "dice": 0.0},
        },
        "segmentation.ohem={threshold: 0.5, min_fraction: 0.2}: must be null without cross_entropy in "
        "segmentation.losses. Or give cross_entropy a weight.",
    ),
    ("segmentation", {"segmentation.noise": 1.5}, "segmentation.noise=1.5: must be in [0, 1]."),
    (
        "segmentation",
        {"segmentation.pseudo_labels": {"confidence": 0.9}},
        "segmentation.pseudo_labels={confidence: 0.9, weight: 1.0, max_noise: 0.5, labelled_fraction: 0.5}: must be "
        "null without images that have no masks. Give data.label_fraction or data.unlabelled_root.",
    ),
    (
        "segmentation",
        {
            "segmentation.pseudo_labels": {"weight": 2},
            "data.label_fraction": 0.5,
            "model.encoder.padding": "valid",
            "model.encoder.name": "classic",
            "model.encoder.channels": [8, 8],
            "data.size": None,
        },
        "segmentation.pseudo_labels={confidence: 0.95, weight: 2.0, max_noise: 0.5, labelled_fraction: 0.5}: must be "
        "null with model.encoder.padding=valid, whose logits are smaller than its images.",
    ),
    (
        "segmentation",
        {"segmentation.pseudo_labels": {"max_noise": 0}, "data.label_fraction": 0.5},
        "segmentation.pseudo_labels.max_noise=0.0: must be in (0, 1]. Give e.g. 0.5.",
    ),
    (
        "segmentation",
        {"segmentation.noise": 0.5, "diffusion.noise.zero_terminal_snr": True, "diffusion.prediction_type": "epsilon"},
        "diffusion.prediction_type=epsilon: must be v_prediction or sample with "
        "diffusion.noise.zero_terminal_snr=true, whose last timestep is pure noise.",
    ),
    (
        "segmentation",
        {"segmentation.noise": 0.5, "diffusion.noise.num_train_timesteps": 1},
        "diffusion.noise.num_train_timesteps=1: must be at least 2.",
    ),
    ("segmentation", {"segmentation.ohem": {"threshold": 1.5}}, "segmentation.ohem.threshold=1.5: must be in [0, 1]."),
    (
        "segmentation",
        {"segmentation.ohem": {"min_fraction": -1}},
        "segmentation.ohem.min_fraction=-1.0: must be in [0, 1].",
    ),
    (
        "segmentation",
        {"segmentation.ohem": {"threshold": 0, "min_fraction": 0}},
        "segmentation.ohem.threshold=0.0: must be positive with segmentation.ohem.min_fraction=0, or no pixel is "
        "kept. Give e.g. 0.7 and 0.2.",
    ),
    (
        "segmentation",
        {"segmentation.ohem.treshold": 1},
        "unknown option --segmentation.ohem.treshold. Did you mean --segmentation.ohem.threshold?",
    ),
    (
        "segmentation",
        {"training.resume": True, "training.overwrite": True},
        "training.resume=true: must be false with training.overwrite=true. Choose one of the two.",
    ),
    (
        "segmentation",
        {"training.gradient_accumulation_steps": 5},
        "training.gradient_accumulation_steps=5: must be a divisor of training.batch_size=32. The nearest is 4.",
    ),
    (
        "segmentation",
        {"training.optimizer.lr": 0},
        "training.optimizer.lr=0.0: must be a positive number. Give e.g. 1e-3.",
    ),
    (
        "segmentation",
        {"training.optimizer.betas": [0.9]},
        "training.optimizer.betas=[0.9]: must be two numbers in [0, 1). Give e.g. [0.9, 0.999].",
    ),
    (
        "segmentation",
        {"training.schedule.warmup_ratio": -0.1},
        "training.schedule.warmup_ratio=-0.1: must be in [0, 1].",
    ),
]


@pytest.mark.parametrize(("task", "overrides", "message"), INVALID, ids=lambda value: str(value)[:60])
def test_invalid_combination(task, overrides: dict, message: str, error_of) -> None:
    load(None, BASE, task)  # valid without the override
    found = error_of(None, {**BASE, **overrides}, task)
    assert found == message if "=" in message or " " in message else found.startswith(message)


def test_missing_files(tmp_path: Path, error_of) -> None:
    base = {"training.steps": 5, "data.name": "voc_folder", "data.root": str(tmp_path / "no")}
    assert error_of(None, base) == (
        f"data.root={tmp_path}/no: must be the existing folder or file of the dataset. "
        "Give its folder: --data.root DIR."
    )
    encoder = {"training.steps": 5, "model.encoder.name": "resnet18", "model.encoder.weights": "no.safetensors"}
    assert error_of(None, encoder) == (
        "model.encoder.weights=no.safetensors: must be an existing safetensors file, imagenet or null."
    )


def test_root_expands_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "voc").mkdir()
    load(None, {"training.steps": 5, "data.name": "voc_folder", "data.root": "~/voc", "data.size": [32, 32]})


def test_fp16_requires_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from unetdiff.errors import UserError
    from unetdiff.training.runtime import build_accelerator

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="^training.mixed_precision=fp16: must be auto, bf16 or no without a GPU.$"):
        build_accelerator(TrainingConfig(mixed_precision="fp16"))


def test_validate_reads_nothing_but_the_config(tmp_path: Path) -> None:
    config = RunConfig(training=TrainingConfig(steps=1, output_dir=str(tmp_path / "run")))
    config.data.name, config.data.root = "voc_folder", str(tmp_path / "not-there")
    before = asdict(config)
    validate(config)
    assert asdict(config) == before
    assert not list(tmp_path.iterdir())
