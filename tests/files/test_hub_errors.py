"""What the Hub's client says, in one clause without addresses, never cut in mid-sentence."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from huggingface_hub import constants, errors

from unetdiff.errors import UserError
from unetdiff.files.hub import resolved
from unetdiff.files.hub_errors import first_sentence, hub_reason

LONG = (
    "An error happened while trying to locate the files on the Hub and we cannot find the appropriate snapshot folder "
    "for the specified revision on the local disk. Please check your internet connection and try again."
)


def test_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as error:
        resolved("owner/none", ("*.json",), cache_dir=tmp_path)
    assert str(error.value) == (
        "owner/none: must be a directory or a model on the Hub "
        "(offline, as HF_HUB_OFFLINE is set, and not in the Hub's cache)."
    )


def test_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert hub_reason(errors.LocalEntryNotFoundError(LONG)) == "no connection to the Hub, and not in its cache"
    assert first_sentence(LONG).endswith("on the local disk")
    assert first_sentence("404 Not Found (https://some.where/x?y=1) for it. More.") == "404 Not Found for it"
    assert len(first_sentence("word " * 100)) <= 204 and first_sentence("word " * 100).endswith("word ...")
    response = httpx.Response(404, request=httpx.Request("GET", "https://some.where"))
    for kind, part in (
        (errors.RepositoryNotFoundError, "nothing of this name there"),
        (errors.GatedRepoError, "gated"),
        (errors.RevisionNotFoundError, "no such revision"),
        (errors.HfHubHTTPError, "the Hub refuses with status 404"),
    ):
        reason = hub_reason(kind("a page of words https://some.where", response=response))
        assert reason.startswith(part) and "http" not in reason
