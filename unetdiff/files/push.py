"""Uploading model directories to the Hugging Face Hub."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unetdiff.errors import UserError, config_error
from unetdiff.files.hub import NAME
from unetdiff.files.hub_errors import hub_reason
from unetdiff.files.model_card import CARD, Card
from unetdiff.files.writing import file_errors


def upload(
    folder: Path,
    name: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    token: str | bool | None = None,
) -> str:
    """Upload a folder as a model; returns its address.

    Args:
        folder: with the files.
        name: OWNER/NAME; created if it does not exist.
        private: of a new repository; None: as its owner's are.
        revision: the branch, created if it does not exist; None: the main one.
        commit_message: None: one by the library.
        token: None: the one of `hf auth login`.

    Raises:
        UserError: a name that is not OWNER/NAME, no login, no permission, no connection.
    """
    require_name(name)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(library_name="unetdiff", token=token)
    try:
        address = str(api.create_repo(name, private=private, exist_ok=True))
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        message = commit_message or "Upload with unetdiff"
        api.upload_folder(repo_id=name, folder_path=folder, revision=revision, commit_message=message)
    except (OSError, ValueError, RuntimeError, HfHubHTTPError) as error:
        remedy = "Check the connection, and log in with `hf auth login`."
        constraint = f"a model that can be written on the Hub ({hub_reason(error)})"
        raise config_error("name", name, constraint, remedy) from None
    return address


def require_name(name: str) -> None:
    """UserError for a name that is not OWNER/NAME."""
    if NAME.fullmatch(name) is None:
        raise config_error("name", name, "OWNER/NAME", "OWNER is your user name or organization on the Hub.")


@contextmanager
def staged(source: Path, target: Path | None) -> Iterator[Path]:
    """A copy of a model directory: at a path that does not exist, or without one, until the context ends.

    Raises:
        FileError: e.g. a full disk.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = target or Path(temporary) / "model"
        with file_errors(folder, "Free space on the disk, or run the command elsewhere."):
            shutil.copytree(source, folder)
        yield folder


class PushMixin:
    """`push_to_hub` of networks and pipelines: `save_pretrained` into a folder, a model card, and the upload."""

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        **options: Any,
    ) -> str:
        """Upload to the Hugging Face Hub; returns the address. `from_pretrained(repo_id)` loads it.

        Args:
            repo_id: OWNER/NAME.
            commit_message, private, token, revision: see `unetdiff.files.push.upload`.
            options: of `save_pretrained`.

        Raises:
            UserError: as of `upload` and of `save_pretrained`.
        """
        require_name(repo_id)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **options)  # type: ignore[attr-defined]
            if not (Path(folder) / CARD).is_file():
                Card(repo_id, **self.card_facts()).write(Path(folder))
            return upload(
                Path(folder), repo_id, private=private, revision=revision, commit_message=commit_message, token=token
            )

    def card_facts(self) -> dict[str, Any]:
        """Arguments of `Card` but its name."""
        raise UserError(f"{type(self).__name__} has no model card.")
