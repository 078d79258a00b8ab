"""How a config is rejected."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from unetdiff.config.reading import load
from unetdiff.errors import UserError


@pytest.fixture
def error_of() -> Callable[..., str]:
    """The one-line message of `load` with these arguments."""

    def call(*args, **kwargs) -> str:
        with pytest.raises(UserError) as caught:
            load(*args, **kwargs)
        message = str(caught.value)
        assert "\n" not in message
        return message

    return call
