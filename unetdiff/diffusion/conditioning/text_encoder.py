"""A frozen text encoder of transformers, and a cache of the features of a dataset's captions on disk."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from unetdiff.errors import UserError
from unetdiff.files.tensors import write_tensors

BATCH = 64  # captions encoded at once
PART = 4096  # captions in a file of the cache
DEFAULT_MAX_TOKENS = 512  # for a model without a limit on the length of texts


class TextEncoder:
    """Captions to the last hidden states of a frozen text encoder.

    Args:
        model: a transformers text encoder.
        tokenizer: its tokenizer.
        max_tokens: tokens per caption; longer captions are truncated, with one warning per call.
    """

    def __init__(self, model: Any, tokenizer: Any, max_tokens: int) -> None:
        self.model, self.tokenizer, self.max_tokens = model.eval().requires_grad_(False), tokenizer, max_tokens

    @classmethod
    def from_pretrained(cls, name: str, max_tokens: int | None = None) -> TextEncoder:
        """A hub name or a folder with a tokenizer and a text encoder: CLIP, T5, BERT or any other `AutoModel`.

        Args:
            name: e.g. "openai/clip-vit-large-patch14".
            max_tokens: None: the encoder's maximum.

        Raises:
            UserError: it cannot be loaded, or its maximum is smaller.
        """
        try:
            model, tokenizer = load_encoder(name)
        except (OSError, ValueError, ImportError, KeyError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"diffusion.text.encoder={name}: must be a name on the hub or a folder with a transformers model and "
                f"tokenizer (got {reason})."
            ) from error
        limit = max_length(model, tokenizer)
        if max_tokens is not None and not 1 <= max_tokens <= limit:
            raise UserError(f"diffusion.text.max_tokens={max_tokens}: must be in 1..{limit}, the maximum of {name}.")
        return cls(model, tokenizer, max_tokens or limit)

    @property
    def width(self) -> int:
        """Width of the features."""
        return int(self.model.config.hidden_size)

    def lengths(self, captions: Sequence[str]) -> list[int]:
        """Number of tokens of each caption, without truncation."""
        return [len(ids) for ids in self.tokenizer(list(captions), truncation=False, verbose=False)["input_ids"]]

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """(B, max_tokens, width) float32 on the CPU; zeros after a caption's last token.

        Warns:
            UserWarning: a caption has more than `max_tokens` tokens; the warning quotes the first.
        """
        self.warn_truncated(captions)
        return self.features(captions)

    @torch.inference_mode()
    def features(self, captions: Sequence[str]) -> Tensor:
        """As a call, without the warning."""
        tokens = self.tokenizer(
            list(captions), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.model.device)
        mask = tokens["attention_mask"]  # (B, n)
        hidden = self.model(input_ids=tokens["input_ids"], attention_mask=mask).last_hidden_state  # (B, n, width)
        hidden = (hidden * mask[:, :, None]).float().cpu()
        return torch.nn.functional.pad(hidden, (0, 0, 0, self.max_tokens - hidden.shape[1])).clone()

    def warn_truncated(self, captions: Sequence[str]) -> None:
        """Warn of captions longer than `max_tokens`."""
        long = [
            (n, caption) for n, caption in zip(self.lengths(captions), captions, strict=True) if n > self.max_tokens
        ]
        if long:
            n, caption = long[0]
            quoted = caption if len(caption) <= 80 else f"{caption[:77]}..."
            many = f"{len(long)} captions have" if len(long) > 1 else "a caption has"
            warnings.warn(
                f"{many} been truncated to max_tokens={self.max_tokens}; the first has {n} tokens: {quoted!r}",
                UserWarning,
                stacklevel=2,
            )


def load_encoder(name: str) -> tuple[Any, Any]:
    """The text tower and the tokenizer in a folder or on the hub."""
    from transformers import AutoConfig, AutoTokenizer

    tower = _tower(AutoConfig.from_pretrained(name))
    return tower.from_pretrained(name, use_safetensors=True), AutoTokenizer.from_pretrained(name)


def _tower(config: Any) -> Any:
    """The class of a text encoder; for CLIP and T5, of the text encoder alone."""
    from transformers import AutoModel, CLIPTextModel, T5EncoderModel

    towers: dict[str, Any] = {"clip": CLIPTextModel, "clip_text_model": CLIPTextModel, "t5": T5EncoderModel}
    return towers.get(config.model_type, AutoModel)


def saved_encoder(directory: Path, max_tokens: int) -> TextEncoder:
    """The text encoder of a model directory, as its pipeline saved it (text_encoder/, tokenizer/).

    Raises:
        UserError: missing folders.
    """
    from transformers import AutoConfig, AutoTokenizer

    if not (directory / "text_encoder").is_dir() or not (directory / "tokenizer").is_dir():
        raise UserError(f"{directory}: must hold text_encoder/ and tokenizer/ for a text-conditional model.")
    config = AutoConfig.from_pretrained(directory / "text_encoder")
    tokenizer = AutoTokenizer.from_pretrained(directory / "tokenizer")
    return TextEncoder(_tower(config).from_pretrained(directory / "text_encoder"), tokenizer, max_tokens)


def max_length(model: Any, tokenizer: Any) -> int:
    """The maximal number of tokens of a text."""
    positions = model.config.to_dict().get("max_position_embeddings") or DEFAULT_MAX_TOKENS  # T5 has no such limit
    return int(min(positions, tokenizer.model_max_length, DEFAULT_MAX_TOKENS))


class CachedFeatures:
    """A text encoder with a cache on disk.

    The folder holds the features of a dataset's captions (float16, without padding), and is named by a hash of the
    encoder's weights, the number of tokens and the captions. Other captions are encoded on the fly. A copy of a
    conditioner (for its EMA) shares the cache.
    """

    def __init__(self, encoder: TextEncoder, captions: Iterable[str] = (), folder: Path | None = None) -> None:
        self.encoder = encoder
        self.locations: dict[str, tuple[Path, int, int]] = {}
        self.open_files: dict[Path, Any] = {}
        distinct = list(dict.fromkeys(captions))
        if not distinct:
            return
        target = (folder or cache_folder()) / self._fingerprint(distinct)
        with PartialState().main_process_first():
            if not self._read(target, distinct):
                self._write(target, distinct)
                self._read(target, distinct)

    def __deepcopy__(self, memo: dict[int, Any]) -> CachedFeatures:
        return self

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """(B, max_tokens, width) float32; zeros after a caption's last token."""
        features = torch.zeros(len(captions), self.encoder.max_tokens, self.encoder.width)
        missing = [i for i, caption in enumerate(captions) if caption not in self.locations]
        if missing:
            features[missing] = self.encoder([captions[i] for i in missing])
        for i, caption in enumerate(captions):
            if caption in self.locations:
                path, start, stop = self.locations[caption]
                features[i, : stop - start] = self._slice(path)[start:stop].float()
        return features

    def _slice(self, path: Path) -> Any:
        if path not in self.open_files:
            self.open_files[path] = safe_open(path, framework="pt")
        return self.open_files[path].get_slice("features")

    def _fingerprint(self, captions: Sequence[str]) -> str:
        """A hash of the encoder's weights (their sums), the number of tokens, and the captions."""
        weights = [
            f"{name} {tensor.double().sum().item()!r}" for name, tensor in self.encoder.model.state_dict().items()
        ]
        words = "\n".join([*weights, str(self.encoder.max_tokens), *captions])
        return hashlib.sha256(words.encode()).hexdigest()[:16]

    def _read(self, target: Path, captions: Sequence[str]) -> bool:
        """Read the location of each caption's features; False if the cache is incomplete or damaged."""
        locations: dict[str, tuple[Path, int, int]] = {}
        try:
            for path in sorted(target.glob("*.safetensors")):
                with safe_open(path, framework="pt") as file:
                    ends = file.get_tensor("ends").tolist()
                    names = json.loads(file.metadata()["captions"])
                locations |= {
                    name: (path, start, stop) for name, start, stop in zip(names, [0, *ends[:-1]], ends, strict=True)
                }
        except (SafetensorError, OSError, KeyError, ValueError, TypeError):
            return False
        if set(locations) != set(captions):
            return False
        self.locations = locations
        return True

    def _write(self, target: Path, captions: Sequence[str]) -> None:
        target.mkdir(parents=True, exist_ok=True)
        self.encoder.warn_truncated(captions)
        encoder = self.encoder
        with tqdm(total=len(captions), desc="encoding captions", unit="caption", disable=None) as bar:
            for part in range(0, len(captions), PART):
                chosen = captions[part : part + PART]
                rows: list[Tensor] = []
                for at in range(0, len(chosen), BATCH):
                    batch = chosen[at : at + BATCH]
                    features = encoder.features(batch)
                    lengths = (features.abs().amax(dim=2) > 0).sum(dim=1).tolist()
                    rows += [feature[:length].half() for feature, length in zip(features, lengths, strict=True)]
                    bar.update(len(batch))
                ends = torch.tensor([len(row) for row in rows]).cumsum(0)
                path = target / f"{part // PART:05d}.safetensors"
                aside = path.with_suffix(f".{os.getpid()}")
                write_tensors(
                    {"features": torch.cat(rows), "ends": ends}, aside, {"captions": json.dumps(list(chosen))}
                )
                aside.replace(path)


def cache_folder() -> Path:
    """The default folder of the cache, in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unetdiff" / "captions"
