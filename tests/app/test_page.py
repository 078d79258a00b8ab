"""The page as a browser and `gradio_client` see it."""

from __future__ import annotations

import json
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="the page needs gradio")

from gradio_client import Client, handle_file
from PIL import Image

from unetdiff.app.page import build_page, launch, missing_tabs
from unetdiff.app.runs import AppRun
from unetdiff.app.segment_tab import example_sources
from unetdiff.errors import UserError

Serve = Callable[..., str]


def client_of(address: str) -> Client:
    return Client(address, verbose=False, download_files=False)


def test_segment(serve: Serve, runs: dict[str, AppRun], tmp_path: Path) -> None:
    run = runs["segmenter"]
    client = client_of(serve(run))
    source = example_sources(run)[1]
    file = tmp_path / "my street.png"
    Image.fromarray(source.image.permute(1, 2, 0).numpy()).save(file)
    client.predict(handle_file(file), api_name="/segment_upload")
    options = {"tile": 0, "overlap": 0.25, "flip": False, "prompt": "", "opacity": 0.5, "kind": "overlay"}
    facts = [client.predict(noise=noise, **options, api_name="/segment")[1] for noise in (0, 60)]
    assert all("my street.png · 32 × 32 pixels" in text for text in facts)
    assert "no noise" in facts[0] and "timestep 599" in facts[1] and facts[0] != facts[1]
    assert file.is_file()
    names = [path.name for path in (tmp_path / "page").rglob("*street*")]
    assert not names  # uploads are not kept


def test_bad_uploads_are_answered_as_predict_does(serve: Serve, runs: dict[str, AppRun], tmp_path: Path) -> None:
    client = client_of(serve(runs["segmenter"]))
    whole = tmp_path / "whole.png"
    Image.new("RGB", (64, 64), "red").save(whole)
    contents = {"text.png": b"no image", "empty.jpg": b"", "cut.png": whole.read_bytes()[:70], "a.mp4": b"\0" * 50}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError) as expected:
            runs["segmenter"].segmentation.load_image(tmp_path / name)  # type: ignore[union-attr]
        with pytest.raises(Exception, match="must be|cannot be") as answer:
            client.predict(handle_file(tmp_path / name), api_name="/segment_upload")
        assert str(answer.value) == str(expected.value).replace(str(tmp_path / name), name)
    client.predict(handle_file(whole), api_name="/segment_upload")  # and the page still works


def test_served_on_this_machine_without_the_web(serve: Serve, runs: dict[str, AppRun]) -> None:
    address = serve(runs["segmenter"])
    assert address.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(address) as answer:
        page = answer.read().decode()
    with urllib.request.urlopen(f"{address}config") as answer:
        config = json.load(answer)
    assert config["analytics_enabled"] is False
    assert "fonts.googleapis" not in page
    with pytest.raises(UserError, match="--port=.*: must be a free port"):
        launch(build_page([runs["segmenter"]]), int(address.rstrip("/").rpartition(":")[2]))
    host = socket.gethostbyname(socket.gethostname())
    if not host.startswith("127."):
        with pytest.raises(OSError):
            urllib.request.urlopen(address.replace("127.0.0.1", host), timeout=2)


def test_generate(serve: Serve, runs: dict[str, AppRun]) -> None:
    client = client_of(serve(runs["joint"]))
    job = client.submit("three", "(none)", 2, 3, 2.0, "ddim", 5, None, 0.6, api_name="/generate")
    *_, legend = job.result(60)
    texts = [output[2] for output in job.outputs()]
    assert "3 steps, seed 5" in texts[-1] and len(texts) >= 3
    assert 'class="legend"' in legend
    with pytest.raises(Exception, match=r"seed=4294967296: must be an integer in \[0, 4,294,967,295\]"):
        client.predict("three", "(none)", 1, 3, 2.0, "ddim", 2**32, None, 0.6, api_name="/generate")
    with pytest.raises(Exception, match="seed=null: must be an integer"):
        client.predict("three", "(none)", 1, 3, 2.0, "ddim", None, None, 0.6, api_name="/generate")


def test_compare(serve: Serve, runs: dict[str, AppRun], tmp_path: Path) -> None:
    client = client_of(serve(runs["joint"], runs["denoiser"], runs["segmenter"]))
    file = tmp_path / "x.png"
    Image.new("RGB", (48, 40), "green").save(file)
    client.predict(handle_file(file), api_name="/compare_upload")
    answer = client.predict(noise=50, api_name="/compare")
    assert "50 % of the timesteps · the segmenters agree on" in answer[0]
    assert all("x.png · 48 × 40 pixels · timestep 500" in text for text in (answer[3], answer[6]))
    sampled = client.predict("two", "(none)", 1, 2, 2.0, "ddim", 0, api_name="/compare_sample")
    assert "Finished, seed 0" in sampled[0]


def test_tabs_and_why_one_is_missing(runs: dict[str, AppRun]) -> None:
    def tabs(*names: str) -> list[str]:
        blocks = build_page([runs[name] for name in names]).blocks.values()
        return [block.label for block in blocks if type(block).__name__ == "Tab"]

    assert tabs("segmenter") == ["Segment"]
    assert tabs("denoiser", "joint") == ["Segment", "Generate", "denoiser", "joint", "Compare"]
    alone = missing_tabs([runs["denoiser"]])
    assert alone[0] == "No Segment: denoiser has no segmentation head." and alone[1].startswith("No Compare: ")
    assert missing_tabs([runs["segmenter"]])[0] == "No Generate: segmenter has no diffusion head."
    assert missing_tabs([runs["joint"], runs["denoiser"]]) == []
