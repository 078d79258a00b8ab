"""A text encoder so small that tests and benchmarks write it in a moment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
MAX_TOKENS = 12


def write_text_encoder(folder: Path, words: Sequence[str]) -> None:
    """Write a BERT of width 8 with random weights and a tokenizer of these words, as transformers does."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = [*SPECIAL.values(), *words]
    rules = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    rules.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    rules.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(tokenizer_object=rules, model_max_length=MAX_TOKENS, **SPECIAL).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=MAX_TOKENS, **sizes)).save_pretrained(
        folder
    )
