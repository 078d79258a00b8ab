"""Files of the Hugging Face Hub: a model's name, and its files in the Hub's cache."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, Unpack

from unetdiff.errors import UserError
from unetdiff.files.hub_errors import hub_reason

NAME = re.compile(r"[\w.-]+/[\w.-]+")
"""owner/model."""
MODEL_FILES = ("README.md", "*.json", "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.model")
"""Files of a model directory of ours; weights that lie next to the folders of a pipeline are another program's."""
CACHED = "models--"
"""Before the name of a model's folder in the cache."""


class HubOptions(TypedDict, total=False):
    """Options of `huggingface_hub.snapshot_download`."""

    revision: str | None
    """Branch, tag or commit; None: the main branch."""
    cache_dir: str | Path | None
    """None: the Hub's own cache."""
    token: str | bool | None
    """None: the one of `hf auth login`."""
    local_files_only: bool
    """Read the cache alone."""
    force_download: bool
    """Download files that are in the cache again."""


def resolved(source: str | Path, patterns: Sequence[str], **options: Unpack[HubOptions]) -> Path:
    """A directory, or the snapshot of a model on the Hub with the files that match, downloaded if they are not cached.

    A name that is a `Path`, exists, or is not of the form owner/model is a directory.

    Args:
        source: a directory, or owner/model.
        patterns: of the files' names ("unet/config.json", "*.safetensors").
        options: of the Hub.

    Raises:
        UserError: no such model or revision, no connection, or a revision of a directory.
    """
    if isinstance(source, Path) or Path(source).exists() or NAME.fullmatch(source) is None:
        if options.get("revision") is not None:
            raise UserError(f"revision={options['revision']}: must be None with a directory ({source}).")
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(source, allow_patterns=list(patterns), **options))
    except (OSError, ValueError, RuntimeError, HfHubHTTPError) as error:
        revision = f", revision={options['revision']}" if options.get("revision") else ""
        reason = hub_reason(error)
        raise UserError(f"{source}{revision}: must be a directory or a model on the Hub ({reason}).") from None


def shown_name(path: Path) -> str:
    """The name of a model's directory for people: owner/model of a snapshot in the Hub's cache, else its last part."""
    path = path.resolve()
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith(CACHED):
        return path.parent.parent.name.removeprefix(CACHED).replace("--", "/", 1)
    return path.name
