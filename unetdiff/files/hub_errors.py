"""Why the Hugging Face Hub did not answer, in one clause: its own messages are paragraphs with addresses."""

from __future__ import annotations

import re

MAX_CHARS = 200
"""Of another library's sentence."""


def hub_reason(error: Exception) -> str:
    """The reason of an error of huggingface_hub, diffusers or datasets, without a period: "no such model there"."""
    from huggingface_hub import constants, errors

    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)

    def is_any(*kinds: type[BaseException]) -> bool:
        return any(isinstance(one, kinds) for one in causes)

    if is_any(errors.GatedRepoError):
        return "gated: accept its conditions on its page, then run `hf auth login`"
    if is_any(errors.RepositoryNotFoundError):
        return "nothing of this name there, or it is private: `hf auth login` stores a token"
    if is_any(errors.RevisionNotFoundError):
        return "no such revision there"
    if is_any(errors.OfflineModeIsEnabled) or (is_any(errors.LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE):
        return "offline, as HF_HUB_OFFLINE is set, and not in the Hub's cache"
    statuses = [getattr(getattr(one, "response", None), "status_code", None) for one in causes]
    status = next((number for number in statuses if number is not None), None)
    if status is not None:
        return f"the Hub refuses with status {status}" + (": run `hf auth login`" if status in (401, 403) else "")
    if is_any(errors.LocalEntryNotFoundError):
        return "no connection to the Hub, and not in its cache"
    return first_sentence(str(error)) or type(error).__name__


def first_sentence(text: str) -> str:
    """The first sentence of another library's message on one line, without addresses and its period."""
    plain = " ".join(re.sub(r"\(?\bhttps?://\S+", "", text).split())
    sentence = re.split(r"(?<=[.!?])\s", plain, maxsplit=1)[0].rstrip(".:")
    return sentence if len(sentence) <= MAX_CHARS else f"{sentence[:MAX_CHARS].rpartition(' ')[0]} ..."
