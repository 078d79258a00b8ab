"""A frozen text encoder of transformers, and a cache of the features of a dataset's captions on disk."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from unetdiff.console import progress_bar
from unetdiff.diffusion.quiet import errors_only
from unetdiff.errors import FileError, UserError
from unetdiff.files.folders import cache_folder, files_in
from unetdiff.files.hub import NAME
from unetdiff.files.hub_errors import hub_reason
from unetdiff.files.pipeline_parts import part
from unetdiff.files.records import read_object
from unetdiff.files.tensors import PICKLES, conversion, open_tensors, read_header, write_tensors
from unetdiff.files.writing import file_errors, write_into_directory
from unetdiff.models.loading import require_finite

TEXT_ENCODER = "text_encoder"  # its folder in a pipeline's
BATCH = 64  # captions encoded at once
PART = 4096  # captions in a file of the cache
DEFAULT_MAX_TOKENS = 512  # for a model without a limit on the length of texts


class TextEncoder:
    """Captions to the last hidden states of a frozen text encoder.

    Args:
        model: a transformers text encoder.
        tokenizer: its tokenizer.
        max_tokens: tokens per caption; longer captions are truncated, with one warning per call.
        padded: the padding is encoded like other tokens, as Stable Diffusion was trained; False: it is masked, and its
            features are zeros.
    """

    def __init__(self, model: Any, tokenizer: Any, max_tokens: int, padded: bool = False) -> None:
        self.model, self.tokenizer, self.max_tokens = model.eval().requires_grad_(False), tokenizer, max_tokens
        self.padded = padded

    @classmethod
    def from_pretrained(cls, name: str, max_tokens: int | None = None, padded: bool = False) -> TextEncoder:
        """A hub name or a folder with a tokenizer and a text encoder: CLIP, T5, BERT or any other `AutoModel`.

        Args:
            name: e.g. "openai/clip-vit-large-patch14", or a pipeline folder with text_encoder/ and tokenizer/.
            max_tokens: None: the encoder's maximum.
            padded: as of the constructor.

        Raises:
            UserError: it cannot be loaded, or its maximum is smaller.
        """
        try:
            is_pipeline = part(Path(name), TEXT_ENCODER).is_dir()
            model, tokenizer = saved_model(Path(name)) if is_pipeline else load_encoder(name, name)
        except FileError as error:
            reason = error.reason
            raise UserError(
                f"diffusion.text.encoder={name}: must be a name on the hub or a folder with a transformers model and "
                f"tokenizer (got {reason})."
            ) from error
        limit = max_length(model, tokenizer)
        if max_tokens is not None and not 1 <= max_tokens <= limit:
            raise UserError(f"diffusion.text.max_tokens={max_tokens}: must be in 1..{limit}, the maximum of {name}.")
        return cls(model, tokenizer, max_tokens or limit, padded)

    @property
    def width(self) -> int:
        """Width of the features."""
        return int(self.model.config.hidden_size)

    def lengths(self, captions: Sequence[str]) -> list[int]:
        """Number of tokens of each caption, without truncation."""
        return [len(ids) for ids in self.tokenizer(list(captions), truncation=False, verbose=False)["input_ids"]]

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """(B, max_tokens, width) float32 on the CPU; zeros after a caption's last token, unless it is `padded`.

        Warns:
            UserWarning: a caption has more than `max_tokens` tokens; the warning quotes the first.
        """
        self.warn_truncated(captions)
        return self.features(captions)

    @torch.inference_mode()
    def features(self, captions: Sequence[str]) -> Tensor:
        """As a call, without the warning."""
        if self.padded:
            return self._padded_features(captions)
        tokens = self.tokenizer(
            list(captions), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.model.device)
        mask = tokens["attention_mask"]  # (B, n)
        hidden = self.model(input_ids=tokens["input_ids"], attention_mask=mask).last_hidden_state  # (B, n, width)
        hidden = (hidden * mask[:, :, None]).float().cpu()
        return torch.nn.functional.pad(hidden, (0, 0, 0, self.max_tokens - hidden.shape[1])).clone()

    def _padded_features(self, captions: Sequence[str]) -> Tensor:
        """As `StableDiffusionPipeline.encode_prompt`; only some text encoders of SD 2 mask their padding."""
        tokens = self.tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.model.device)
        is_masked = self.model.config.to_dict().get("use_attention_mask")
        mask = tokens["attention_mask"] if is_masked else None
        return (
            self.model(tokens["input_ids"], attention_mask=mask, return_dict=True)[0].float().cpu().clone()
        )  # (B, n, width)

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


def load_encoder(model: str | Path, tokenizer: str | Path) -> tuple[Any, Any]:
    """The text tower and the tokenizer in folders or on the hub: transformers' own classes, without a pickle.

    Raises:
        FileError: missing or damaged, without safetensors, or of a class that would need code of its own.
    """
    from transformers import AutoConfig, AutoTokenizer
    from transformers.utils import logging

    try:
        known = _latent_diffusions(Path(model))
        config = (AutoConfig if known is None else known.config_class).from_pretrained(model, trust_remote_code=False)
        _inspect(Path(model), config)
        with errors_only(logging):  # its table of missing tensors, which are refused in one line
            tower, info = (known or _tower(config)).from_pretrained(
                model, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
        words = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
        words(["a"], truncation=False, verbose=False)["input_ids"]
    except FileError:
        raise
    except Exception as error:  # transformers' readers of many formats: a damaged file raises anything
        is_hub = NAME.fullmatch(str(model)) is not None and not Path(model).exists()
        own = " ".join(str(error).strip().split("\n")[0].split()) or type(error).__name__
        reason = hub_reason(error) if is_hub else own
        raise FileError.of(model, f"cannot be loaded as a text encoder ({reason})") from error
    missing = [name for name in info["missing_keys"] if "pooler" not in name]  # not used, and often not saved
    if missing:
        raise FileError.of(model, f"has {len(missing)} missing tensors: {missing[0]}, …")
    require_finite(tower.state_dict(), str(model))
    return tower, words


def _inspect(folder: Path, config: Any) -> None:
    """FileError for a folder with an adapter, code on the hub, a pickle, or more layers than tensors."""
    if not folder.is_dir():
        return
    if (folder / "adapter_config.json").exists():
        raise FileError.of(folder, "must be a text encoder (got an adapter)", "Merge the adapter into its model.")
    for key, value in read_object(folder / "config.json").items():
        if "attn_implementation" in key and value not in (None, "eager", "sdpa"):  # may name a kernel on the hub
            raise FileError.of(folder / "config.json", f"{key}={value!r:.80}: must be null, eager or sdpa")
    count = 0
    for file in files_in(folder, {".safetensors"}):
        header = read_header(file)
        count += len(header)
        for name, entry in header.items():  # position_ids are whole numbers
            if len(entry.shape) > 1 and name.endswith("weight") and not entry.dtype.startswith(("F", "BF")):
                raise FileError.of(file, f"'{name}' must be of a floating-point type (got {entry.dtype})")
    if not count:
        pickles = [file for file in files_in(folder) if file.suffix in PICKLES]
        remedy = conversion(pickles[0]) if pickles else ""
        raise FileError.of(folder, "must hold the weights as safetensors", remedy)
    for key, value in config.to_dict().items():
        if "layers" in key and isinstance(value, int) and value > count:
            raise FileError.of(folder / "config.json", f"{key}={value}: must be at most {count}, as of the weights")


def _latent_diffusions(folder: Path) -> Any:
    """The class of Latent Diffusion's text encoder, which is diffusers' own, if a folder holds one; else None."""
    if not (folder / "config.json").is_file() or read_object(folder / "config.json").get("model_type") != "ldmbert":
        return None
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertModel

    return LDMBertModel


def _tower(config: Any) -> Any:
    """The class of a text encoder; for CLIP and T5, of the text encoder alone."""
    from transformers import AutoModel, CLIPTextModel, T5EncoderModel

    towers: dict[str, Any] = {"clip": CLIPTextModel, "clip_text_model": CLIPTextModel, "t5": T5EncoderModel}
    return towers.get(config.model_type, AutoModel)


def saved_model(directory: Path) -> tuple[Any, Any]:
    """The text encoder and the tokenizer of a model directory (text_encoder/, tokenizer/).

    Raises:
        FileError: missing or damaged folders.
    """
    folders = part(directory, TEXT_ENCODER), directory / "tokenizer"
    if not folders[0].is_dir() or not folders[1].is_dir():
        raise FileError.of(directory, "must hold text_encoder/ and tokenizer/ for a text-conditional model")
    return load_encoder(*folders)


def max_length(model: Any, tokenizer: Any) -> int:
    """The maximal number of tokens of a text."""
    positions = model.config.to_dict().get("max_position_embeddings") or DEFAULT_MAX_TOKENS  # T5 has no such limit
    return int(min(positions, tokenizer.model_max_length, DEFAULT_MAX_TOKENS))


class SavedFeatures:
    """The padded text encoder of a model directory, loaded when it is first called. Its copies are itself."""

    def __init__(self, directory: Path, max_tokens: int) -> None:
        self.directory, self.max_tokens = directory, max_tokens

    def __deepcopy__(self, memo: dict[int, Any]) -> SavedFeatures:
        return self

    @cached_property
    def encoder(self) -> TextEncoder:
        """The text encoder; FileError for missing or damaged files."""
        return TextEncoder(*saved_model(self.directory), self.max_tokens, padded=True)

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """(B, max_tokens, width) float32."""
        return self.encoder(captions)


class CachedFeatures:
    """A text encoder with a cache on disk.

    The folder holds the features of a dataset's captions and is named by a hash of the encoder's weights, the number of
    tokens and the captions: in float16 without the padding, or, of a padded encoder, all of them in float32, exactly
    what the network was pretrained on. Other captions are encoded on the fly. A copy of a conditioner (for its EMA)
    shares the cache.
    """

    def __init__(self, encoder: TextEncoder, captions: Iterable[str] = (), folder: Path | None = None) -> None:
        self.encoder = encoder
        self.locations: dict[str, tuple[Path, int, int]] = {}
        self.open_files: dict[Path, Any] = {}
        distinct = list(dict.fromkeys(captions))
        if not distinct:
            return
        target = (folder or cache_folder("captions")) / self._fingerprint(distinct)
        with PartialState().main_process_first(), file_errors(target, "Set another diffusion.text.cache_dir."):
            if not self._read(target, distinct):
                self._write(target, distinct)
                self._read(target, distinct)

    def __deepcopy__(self, memo: dict[int, Any]) -> CachedFeatures:
        return self

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """(B, max_tokens, width) float32; zeros after a caption's last token, unless the encoder is padded."""
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
            self.open_files[path] = open_tensors(path, "Delete the folder, and it is made again.")
        return self.open_files[path].get_slice("features")

    def _fingerprint(self, captions: Sequence[str]) -> str:
        """A hash of the encoder's weights (their sums), the number of tokens, and the captions."""
        weights = [
            f"{name} {tensor.double().sum().item()!r}" for name, tensor in self.encoder.model.state_dict().items()
        ]
        kind = [str(self.encoder.max_tokens), *(["padded"] if self.encoder.padded else [])]
        words = "\n".join([*weights, *kind, *captions])
        return hashlib.sha256(words.encode()).hexdigest()[:16]

    def _read(self, target: Path, captions: Sequence[str]) -> bool:
        """Read the location of each caption's features; False if the cache is incomplete or damaged."""
        locations: dict[str, tuple[Path, int, int]] = {}
        try:
            for path in files_in(target, {".safetensors"}) if target.is_dir() else []:
                with open_tensors(path) as file:
                    ends = file.get_tensor("ends").tolist()
                    names = json.loads(file.metadata()["captions"])
                locations |= {
                    name: (path, start, stop) for name, start, stop in zip(names, [0, *ends[:-1]], ends, strict=True)
                }
        except (OSError, KeyError, ValueError, TypeError):
            return False
        if set(locations) != set(captions):
            return False
        self.locations = locations
        return True

    def _write(self, target: Path, captions: Sequence[str]) -> None:
        self.encoder.warn_truncated(captions)
        encoder = self.encoder
        with progress_bar(total=len(captions), desc="encoding captions", unit="caption") as bar:
            for part in range(0, len(captions), PART):
                chosen = captions[part : part + PART]
                rows: list[Tensor] = []
                for at in range(0, len(chosen), BATCH):
                    batch = chosen[at : at + BATCH]
                    features = encoder.features(batch)
                    lengths = (features.abs().amax(dim=2) > 0).sum(dim=1).tolist()
                    features = features if encoder.padded else features.half()
                    rows += [feature[:length] for feature, length in zip(features, lengths, strict=True)]
                    bar.update(len(batch))
                ends = torch.tensor([len(row) for row in rows]).cumsum(0)
                tensors, captions_of = {"features": torch.cat(rows), "ends": ends}, json.dumps(list(chosen))
                name = f"{part // PART:05d}.safetensors"
                write_into_directory(
                    target,
                    lambda aside: write_tensors(tensors, aside / name, {"captions": captions_of}),  # noqa: B023
                )
