"""Captions to tokens: what the encoder says, padding that stays zero, the null token, the cache, what is cut."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from unetdiff.diffusion.conditioning.load import load_conditioner
from unetdiff.diffusion.conditioning.text import TextConditioner
from unetdiff.diffusion.conditioning.text_encoder import CachedFeatures, TextEncoder
from unetdiff.errors import UserError

CAPTIONS = ["a red three", "a blue one", "two"]


@pytest.fixture
def encoder(text_encoder: Path) -> TextEncoder:
    return TextEncoder.from_pretrained(str(text_encoder), max_tokens=6)


@pytest.fixture
def conditioner(encoder: TextEncoder) -> TextConditioner:
    torch.manual_seed(0)
    conditioner = TextConditioner(16, encoder.width, encoder.max_tokens)
    conditioner.features = encoder
    return conditioner


def test_features_are_the_encoders_and_padding_is_zero(encoder: TextEncoder, text_encoder: Path) -> None:
    model, tokenizer = AutoModel.from_pretrained(text_encoder).eval(), AutoTokenizer.from_pretrained(text_encoder)
    features = encoder(CAPTIONS)
    assert features.shape == (3, 6, 8)
    assert not torch.equal(features[0, 1], features[1, 1])  # the tokenizer knows the words
    for caption, row in zip(CAPTIONS, features, strict=True):
        tokens = tokenizer([caption], return_tensors="pt")
        length = tokens["input_ids"].shape[1]
        with torch.no_grad():
            alone = model(**tokens).last_hidden_state[0]
        torch.testing.assert_close(row[:length], alone, atol=1e-5, rtol=1e-4)  # whatever it was padded with
        assert not row[length:].any()


def test_tokens_are_projected_and_padding_says_nothing(conditioner: TextConditioner) -> None:
    conditions = conditioner.encode(["two"])
    tokens = conditioner(conditions).tokens
    assert tokens.shape == (1, 6, 16)
    expected = conditioner.projection(torch.nn.functional.layer_norm(conditions[0, 0], (8,)))
    torch.testing.assert_close(tokens[0, 0], expected)
    assert tokens[0, :3].any(dim=1).all() and not tokens[0, 3:].any()


def test_nothing_and_the_empty_prompt_are_the_null_token(conditioner: TextConditioner) -> None:
    for conditions in (conditioner.null_condition(1), conditioner.encode(""), conditioner.encode(["  "])):
        tokens = conditioner(conditions).tokens[0]
        assert torch.equal(tokens[0], conditioner.null_token) and not tokens[1:].any()


def test_drop_takes_whole_captions(conditioner: TextConditioner) -> None:
    conditions = conditioner.encode(CAPTIONS).repeat(100, 1, 1)
    dropped = conditioner.drop(conditions, 0.3, torch.Generator().manual_seed(0))
    null = ~dropped.flatten(1).any(dim=1)
    assert 0.2 < null.float().mean() < 0.4
    assert torch.equal(dropped[~null], conditions[~null])


def test_long_captions_are_truncated_with_a_warning(encoder: TextEncoder) -> None:
    with pytest.warns(
        UserWarning, match=r"2 captions have been truncated to max_tokens=6; the first has 9 tokens: 'a red three a b"
    ):
        features = encoder(["a red three a blue one a", "two", "a a a a a"])
    assert features.shape == (3, 6, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder(CAPTIONS)


def test_the_cache_gives_the_same_features_without_the_encoder(
    encoder: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = CachedFeatures(encoder, CAPTIONS * 3, tmp_path)
    expected = encoder(CAPTIONS)
    torch.testing.assert_close(fresh(CAPTIONS), expected, atol=2e-3, rtol=2e-3)  # kept as float16

    def never(self: TextEncoder, captions: list[str]) -> torch.Tensor:
        raise AssertionError(captions)

    with monkeypatch.context() as patch:
        patch.setattr(TextEncoder, "features", never)
        again = CachedFeatures(encoder, CAPTIONS, tmp_path)
        assert torch.equal(again(CAPTIONS[::-1]), fresh(CAPTIONS[::-1]))
    assert copy.deepcopy(fresh) is fresh
    other = fresh(["a green two", "two"])  # one that is not there
    torch.testing.assert_close(other[:1], encoder(["a green two"]))
    torch.testing.assert_close(other[1:], fresh(["two"]))


def test_another_encoder_set_or_length_has_another_cache(encoder: TextEncoder, tmp_path: Path) -> None:
    CachedFeatures(encoder, CAPTIONS, tmp_path)
    CachedFeatures(encoder, CAPTIONS[:2], tmp_path)
    encoder.max_tokens = 5
    CachedFeatures(encoder, CAPTIONS[:2], tmp_path)
    torch.nn.init.normal_(encoder.model.embeddings.word_embeddings.weight)
    CachedFeatures(encoder, CAPTIONS[:2], tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_damaged_cache_is_made_again(encoder: TextEncoder, tmp_path: Path) -> None:
    CachedFeatures(encoder, CAPTIONS, tmp_path)
    file = next(tmp_path.glob("*/*.safetensors"))
    file.write_bytes(file.read_bytes()[:40])
    torch.testing.assert_close(
        CachedFeatures(encoder, CAPTIONS, tmp_path)(CAPTIONS), encoder(CAPTIONS), atol=2e-3, rtol=2e-3
    )


def test_a_cache_of_several_files(encoder: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unetdiff.diffusion.conditioning.text_encoder.PART", 2)
    monkeypatch.setattr("unetdiff.diffusion.conditioning.text_encoder.BATCH", 1)
    cached = CachedFeatures(encoder, CAPTIONS, tmp_path)
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 2
    torch.testing.assert_close(cached(CAPTIONS), encoder(CAPTIONS), atol=2e-3, rtol=2e-3)


def test_what_cannot_be_loaded_is_named(tmp_path: Path, text_encoder: Path) -> None:
    with pytest.raises(UserError, match=r"diffusion.text.encoder=.*nowhere: must be a name on the hub"):
        TextEncoder.from_pretrained(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"diffusion.text.max_tokens=13: must be in 1\.\.12"):
        TextEncoder.from_pretrained(str(text_encoder), max_tokens=13)
    assert TextEncoder.from_pretrained(str(text_encoder)).max_tokens == 12


def test_without_an_encoder_a_prompt_is_refused() -> None:
    with pytest.raises(UserError, match="prompt: must be set with the model's text encoder loaded"):
        TextConditioner(4, 8, 6).encode("two")


def test_save_and_load(conditioner: TextConditioner, tmp_path: Path) -> None:
    conditioner.save_pretrained(tmp_path)
    loaded = load_conditioner(tmp_path)
    assert isinstance(loaded, TextConditioner) and loaded.max_tokens == 6
    features = conditioner.encode(CAPTIONS)
    assert torch.equal(loaded(features).tokens, conditioner(features).tokens)
