"""The port of the page; free of gradio and torch, so that a taken one is refused before any model is loaded."""

from __future__ import annotations

import errno
import socket

from unetdiff.errors import config_error

HOST = "127.0.0.1"
FIRST_PORT = 7860
"""Of those that gradio tries without --port."""


def require_free_port(port: int) -> None:
    """UserError for a port that another program listens on, or that this user may not open."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            reason = "in use" if error.errno == errno.EADDRINUSE else (error.strerror or "cannot be opened").lower()
            remedy = f"Leave it out to take the first free one from {FIRST_PORT}."
            raise config_error("--port", port, f"a free port ({reason})", remedy) from None
