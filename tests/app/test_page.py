"""The page as a browser and `gradio_client` see it."""

from __future__ import annotations

import json
import re
import socket
import urllib.request
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="the page needs gradio")

from gradio import http_server
from gradio_client import Client, handle_file
from PIL import Image

from tests.contrast import contrast
from unetdiff.app.page import CSS, build_page, launch, missing_tabs
from unetdiff.app.runs import AppRun
from unetdiff.app.segment_tab import example_sources
from unetdiff.errors import UserError
from unetdiff.segmentation import inference

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
    assert "no noise" in facts[0] and "60 % noise" in facts[1] and facts[0] != facts[1]
    assert file.is_file()
    names = [path.name for path in (tmp_path / "page").rglob("*street*")]
    assert not names  # uploads are not kept


OPTIONS = {"noise": 0, "tile": 0, "overlap": 0.25, "flip": False, "prompt": "", "opacity": 0.5, "kind": "overlay"}


def test_a_bad_upload_takes_the_place_of_the_result(serve: Serve, runs: dict[str, AppRun], tmp_path: Path) -> None:
    client = client_of(serve(runs["segmenter"]))
    whole = tmp_path / "whole.png"
    Image.new("RGB", (64, 64), "red").save(whole)
    contents = {"text.png": b"no image", "empty.jpg": b"", "cut.png": whole.read_bytes()[:70], "a.mp4": b"\0" * 50}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError) as expected:
            runs["segmenter"].segmentation.load_image(tmp_path / name)  # type: ignore[union-attr]
        client.predict(handle_file(tmp_path / name), api_name="/segment_upload")
        image, facts, pointer, message = client.predict(**OPTIONS, api_name="/segment")
        assert message["visible"] and name in message["value"]
        assert unescape(message["value"]).count(str(expected.value).replace(str(tmp_path / name), name)) == 1
        assert (image["value"], image["visible"], facts, pointer) == (None, False, "", "")
    client.predict(handle_file(whole), api_name="/segment_upload")  # and the page still works
    image, facts, _, message = client.predict(**OPTIONS, api_name="/segment")
    assert image["visible"] and image["label"] == "Segmentation of whole.png" and "whole.png · 64 × 64" in facts
    assert not message["visible"]


def test_an_image_that_needs_tiles(
    serve: Serve, runs: dict[str, AppRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "MAX_WHOLE", 1000)
    client = client_of(serve(runs["segmenter"]))
    Image.new("RGB", (64, 64), "red").save(tmp_path / "large.png")
    client.predict(handle_file(tmp_path / "large.png"), api_name="/segment_upload")
    image, *_, message = client.predict(**OPTIONS, api_name="/segment")
    assert image["value"] is None and "Set the side of the tiles" in message["value"]
    assert "resize or crop the image" in message["value"]
    image, *_, message = client.predict(**OPTIONS | {"tile": 32}, api_name="/segment")
    assert image["visible"] and not message["visible"]


def test_served_on_this_machine_without_the_web(serve: Serve, runs: dict[str, AppRun]) -> None:
    address = serve(runs["segmenter"])
    assert address.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(address) as answer:
        page = answer.read().decode()
    with urllib.request.urlopen(f"{address}config") as answer:
        config = json.load(answer)
    assert config["analytics_enabled"] is False
    assert "fonts.googleapis" not in page
    taken = r"--port=\d+: must be a free port \(in use\)\. Leave it out to take the first free one from 7860\.$"
    with pytest.raises(UserError, match=taken):
        launch(build_page([runs["segmenter"]]), int(address.rstrip("/").rpartition(":")[2]))
    host = socket.gethostbyname(socket.gethostname())
    if not host.startswith("127."):
        with pytest.raises(OSError):
            urllib.request.urlopen(address.replace("127.0.0.1", host), timeout=2)


def test_no_port_left(runs: dict[str, AppRun], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(http_server, "INITIAL_PORT_VALUE", server.getsockname()[1])
        monkeypatch.setattr(http_server, "TRY_NUM_PORTS", 1)
        with pytest.raises(UserError, match="^--port: must be given, as 7860 and the ports after it are in use.$"):
            launch(build_page([runs["segmenter"]]))


def test_generate(serve: Serve, runs: dict[str, AppRun]) -> None:
    client = client_of(serve(runs["joint"]))
    job = client.submit("three", "(none)", 2, 3, 2.0, "ddim", 5, None, 0.6, api_name="/generate")
    *_, legend = job.result(60)
    texts = [output[2] for output in job.outputs()]
    assert "3 steps, seed 5" in texts[-1] and len(texts) >= 3
    assert 'class="legend"' in legend
    for seed, message in (
        (2**32, "seed=4294967296: must be an integer in [0, 4,294,967,295]"),
        (None, "seed=null: must be an integer"),
    ):
        answer = client.predict("three", "(none)", 1, 3, 2.0, "ddim", seed, None, 0.6, api_name="/generate")
        assert message in answer[2] and 'class="error"' in answer[2]
        assert answer[:2] == (None, None) and not answer[4]  # nothing of the last images


def test_compare(serve: Serve, runs: dict[str, AppRun], tmp_path: Path) -> None:
    client = client_of(serve(runs["joint"], runs["denoiser"], runs["segmenter"]))
    file = tmp_path / "x.png"
    Image.new("RGB", (48, 40), "green").save(file)
    client.predict(handle_file(file), api_name="/compare_upload")
    answer = client.predict(noise=50, api_name="/compare")
    assert "50 % noise · the segmenters agree on" in answer[0]
    assert "x.png · 48 × 40 pixels · 50 % noise (timestep 500)" in answer[3]
    assert "x.png · 48 × 40 pixels · 50 % noise<" in answer[6]  # a segmenter that does not know of timesteps
    file.write_text("no image")
    client.predict(handle_file(file), api_name="/compare_upload")
    message, *images = client.predict(noise=50, api_name="/compare")
    assert "x.png: must be an image" in message and not any(images)
    sampled = client.predict("two", "(none)", 1, 2, 2.0, "ddim", 0, api_name="/compare_sample")
    assert "Finished, seed 0" in sampled[0]


def test_tabs_and_why_one_is_missing(runs: dict[str, AppRun]) -> None:
    def tabs(*names: str) -> list[str]:
        blocks = build_page([runs[name] for name in names]).blocks.values()
        return [block.label for block in blocks if type(block).__name__ == "Tab"]

    assert tabs("segmenter") == ["Segment"]
    assert tabs("denoiser", "joint") == ["Segment", "Generate", "denoiser", "joint", "Compare"]
    alone = missing_tabs([runs["denoiser"]])
    assert alone[0] == "No tab “Segment”: denoiser has no segmentation head." and alone[1].startswith("To compare")
    assert missing_tabs([runs["segmenter"]])[0] == "No tab “Generate”: segmenter has no diffusion head."
    assert missing_tabs([runs["joint"], runs["denoiser"]]) == []
    blocks = list(build_page([runs["segmenter"]]).blocks.values())
    places = {getattr(block, "label", None) or str(getattr(block, "value", "")): at for at, block in enumerate(blocks)}
    note = next(at for text, at in places.items() if "No tab" in text)
    assert note > places["Drop an image"]


def test_noise_is_folded_away_for_a_segmenter_that_never_saw_it(runs: dict[str, AppRun]) -> None:
    def noise(*names: str) -> list[tuple[bool, float]]:
        blocks = list(build_page([runs[name] for name in names]).blocks.values())
        folds = [block.open for block in blocks if type(block).__name__ == "Accordion" and block.label == "Noise"]
        values = [block.value for block in blocks if getattr(block, "label", None) == "Noise (%)"]
        return list(zip(folds, values, strict=True))

    assert noise("segmenter") == [(False, 0)]
    assert noise("joint") == [(True, 0)]
    assert noise("segmenter", "joint") == [(False, 0), (True, 0), (True, 30)]  # of each, and to compare


def test_a_white_and_a_black_class_are_seen_in_both_themes() -> None:
    css = CSS.read_text()
    edge = bytes.fromhex(re.findall(r"--edge: #(\w{6})", css)[0])
    assert min(contrast(edge, ground) for ground in ((0, 0, 0), (255, 255, 255))) >= 3
    for rule in (r"\.legend i, \.chip i", r"\.legend \.bar span", r"::-webkit-slider-thumb", r"::-moz-range-thumb"):
        assert re.search(rule + r" {[^}]*var\(--edge\)", css)
