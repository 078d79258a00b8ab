"""What tests of several folders need: a tiny set in VOC's layout, a text encoder with its tokenizer, an autoencoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unetdiff.data.prompt import COLORS, DIGITS


@pytest.fixture
def voc_layout(tmp_path: Path) -> Callable[..., Path]:
    """voc_layout(classes, {split: {name: mask}}, images=True): a new folder, with random images of that size."""

    def make(classes: list[str], splits: dict[str, dict[str, np.ndarray]], images: bool = True) -> Path:
        root = tmp_path / "voc"
        for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
            (root / folder).mkdir(parents=True)
        (root / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
        random = np.random.default_rng(0)
        for split, masks in splits.items():
            (root / "ImageSets/Segmentation" / f"{split}.txt").write_text("".join(f"{name}\n" for name in masks))
            for name, mask in masks.items():
                Image.fromarray(mask).save(root / "SegmentationClass" / f"{name}.png")
                if images:
                    pixels = random.integers(0, 255, (*mask.shape, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg")
        return root

    return make


@pytest.fixture(scope="session")
def text_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT and a tokenizer that knows the words of the scenes."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("text_encoder")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "and", *COLORS, *DIGITS]
    rules = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    rules.pre_tokenizer = pre_tokenizers.Whitespace()
    rules.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=rules, model_max_length=12, **names).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=12, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny autoencoder: four channels of latents, a cell for 2 x 2 pixels, with a shift and a scale."""
    from diffusers import AutoencoderKL

    folder = tmp_path_factory.mktemp("vae")
    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        scaling_factor=0.6,
        shift_factor=0.3,
    ).save_pretrained(folder)
    return folder
