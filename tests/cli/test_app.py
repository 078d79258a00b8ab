"""`unetdiff app`: its errors are one line, before the page is served."""

from __future__ import annotations

import importlib.util
import socket
import sys
from pathlib import Path

import pytest

from unetdiff.cli.main import main


def test_without_gradio(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app", str(run)]) == 2
    error = capsys.readouterr().err
    assert error == "unetdiff: The page needs gradio. Run `pip install 'unetdiff[app]'`.\n"


@pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="the page needs gradio")
def test_says_at_once_that_it_loads(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from unetdiff.app import page, runs

    heard = []
    monkeypatch.setattr(runs, "load_runs", lambda *_: heard.append(capsys.readouterr().out))
    monkeypatch.setattr(page, "build_page", lambda _: None)
    monkeypatch.setattr(page, "launch", lambda *_: "http://127.0.0.1:7860/")
    monkeypatch.setattr(page.time, "sleep", _interrupted)
    with pytest.raises(AttributeError, match="close"):  # of the page that is none
        main(["app", str(run)])
    assert heard == [f"Loading {run} …\n"]
    assert capsys.readouterr().out == "http://127.0.0.1:7860 (open it in a browser; stop with Ctrl-C)\n"


@pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="the page needs gradio")
def test_a_taken_port_is_refused_before_anything_is_loaded(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert main(["app", str(run), "--port", str(port)]) == 2
    captured = capsys.readouterr()
    remedy = "Leave it out to take the first free one from 7860."
    assert (captured.out, captured.err) == ("", f"unetdiff: --port={port}: must be a free port (in use). {remedy}\n")


def _interrupted(_: float) -> None:
    raise KeyboardInterrupt


@pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="the page needs gradio")
def test_invalid_arguments(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, part in (
        ([], "missing RUN"),
        ([str(tmp_path / "nowhere")], "does not exist"),
        ([str(run), "--port", "0"], "--port=0: must be at least 1"),
        ([str(run), "--device", "gpu"], "--device=gpu: must be available"),
    ):
        assert main(["app", *words]) == 2
        error = capsys.readouterr().err
        assert part in error and error.count("\n") == 1
