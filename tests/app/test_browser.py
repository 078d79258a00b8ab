"""Every tab is used once in a real browser, at the widths of a desk and of a phone, without an error in its console."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gradio", reason="the page needs gradio")
pytest.importorskip("playwright", reason="the browser is driven by playwright")

from PIL import Image
from playwright.sync_api import TimeoutError as StillWaiting
from playwright.sync_api import sync_playwright

from tests.contrast import contrast
from unetdiff.app import sampling
from unetdiff.app.runs import AppRun
from unetdiff.app.segment_tab import POINTER

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
SECONDS = 120
"""Of patience: the machine may be busy."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as driver:
        options = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield chromium
        chromium.close()


class Visit:
    """A visit of the page."""

    def __init__(self, browser: Any, address: str, width: int) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.page.set_default_timeout(1000 * SECONDS)
        self.errors: list[str] = []
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self._require_local)
        self.page.goto(address)

    def _require_local(self, request: Any) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            self.errors.append(f"loads {request.url}")

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name, exact=True).filter(visible=True).last.click()

    def visible(self, selector: str) -> Any:
        return self.page.locator(selector).filter(visible=True)

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).filter(visible=True).first.click()

    def number(self, label: str, value: int) -> None:
        field = self.page.get_by_label(f"number input for {label}").filter(visible=True).first
        field.fill(str(value))
        field.press("Enter")

    def wait(self, text: str) -> None:
        self.page.get_by_text(text).filter(visible=True).first.wait_for()

    def point(self, x: float, y: float, text: str) -> None:
        """Click the image, and once more where a segmentation that was under way took the answer away."""
        for _ in range(SECONDS // 10):
            self.visible(".image-frame img").first.click(position={"x": x, "y": y})
            try:
                self.page.get_by_text(text).filter(visible=True).first.wait_for(timeout=10_000)
                return
            except StillWaiting:
                continue
        self.wait(text)

    def stroke(self) -> None:
        """Paint a line across the middle of the canvas that is visible."""
        canvas = self.visible(".painting canvas").first
        canvas.wait_for()
        canvas.scroll_into_view_if_needed()
        self.page.wait_for_timeout(1000)  # until it has its size
        box = canvas.bounding_box()
        x, y = box["x"], box["y"] + box["height"] / 2
        self.page.mouse.move(x + 0.4 * box["width"], y)
        self.page.mouse.down()
        self.page.mouse.move(x + 0.6 * box["width"], y, steps=4)
        self.page.mouse.up()

    def require_order(self, *texts: str) -> None:
        """These texts stand under each other."""
        places = [self.page.get_by_text(text, exact=True).filter(visible=True).first for text in texts]
        tops = [place.bounding_box()["y"] for place in places]
        assert tops == sorted(tops)

    def require_contrast(self, selector: str) -> None:
        """The border of an element stands out from its ground as WCAG 2.1, 1.4.11, asks of a control: 3 to 1."""
        read = "e => [getComputedStyle(e).borderTopColor, getComputedStyle(e).backgroundColor]"
        colors = self.visible(selector).first.evaluate(read)
        border, ground = ([int(part) for part in re.findall(r"\d+", color)[:3]] for color in colors)
        assert contrast(border, ground) >= 3

    def end(self) -> None:
        assert not self.errors
        assert self.page.evaluate("document.documentElement.scrollWidth") <= self.page.viewport_size["width"]
        self.page.close()


def test_a_desk(
    browser: Any, serve: Callable[..., str], runs: dict[str, AppRun], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    visit = Visit(browser, serve(runs["joint"], runs["layout"]), 1280)
    visit.wait("no noise")
    (tmp_path / "text.png").write_text("no image")
    visit.page.set_input_files("input[type=file]", tmp_path / "text.png")
    visit.wait("text.png: must be an image")
    assert not visit.visible(".image-frame img").count() and not visit.visible("text=32 × 32 pixels").count()
    assert not visit.visible("button:has-text('Download')").count() and not visit.visible(".toast-wrap *").count()
    file = tmp_path / "two colors.png"
    Image.fromarray(np.repeat(np.eye(40, 60, dtype=np.uint8)[..., None] * 255, 3, axis=2)).save(file)
    visit.page.set_input_files("input[type=file]", file)
    visit.wait("two colors.png · 60 × 40 pixels")
    visit.wait("Segmentation of two colors.png")
    assert not visit.visible("text=must be an image").count()
    assert visit.visible("button:has-text('Download')").count() == 2  # not the links that they press
    visit.number("Noise (%)", 40)
    visit.wait("40 % noise (timestep 400)")
    visit.point(2, 2, "Pixel (0, 0)")
    with visit.page.expect_download() as download:
        visit.press("Download mask")
    assert download.value.suggested_filename == "two colors-mask.png"
    download.value.save_as(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as mask:
        assert (mask.mode, mask.size) == ("P", (60, 40))

    visit.tab("Generate")
    visit.number("Steps", 2)
    visit.press("Generate")
    visit.wait("2 steps, seed 0")
    visit.tab("layout")
    visit.stroke()
    visit.number("Steps", 3)
    given: list[dict[str, Any]] = []
    arguments_of = sampling._arguments

    def recorded(pipeline: Any, condition: dict[str, Any], *rest: Any) -> dict[str, Any]:
        given.append(condition)
        return arguments_of(pipeline, condition, *rest)

    monkeypatch.setattr(sampling, "_arguments", recorded)
    visit.press("Generate")
    visit.wait("3 steps, seed 0")
    assert set(np.unique(given[0]["layout"])) == {0, 1} and given[0]["layout"][16, 16] == 1  # the stroke is its class

    visit.tab("Compare")
    visit.number("Noise (%)", 60)
    visit.wait("60 % noise")
    visit.end()


def test_a_phone_in_the_dark(browser: Any, serve: Callable[..., str], runs: dict[str, AppRun]) -> None:
    visit = Visit(browser, serve(runs["joint"], runs["segmenter"]) + "?__theme=dark", 390)
    visit.wait("no noise")
    visit.require_order("Drop an image", POINTER, "Tiles and flips")
    visit.require_contrast("input[type=radio]:not(:checked)")
    visit.visible(".examples button").nth(1).click()
    visit.wait("32 × 32 pixels")
    visit.tab("Generate")
    visit.wait("Noisy input")
    visit.require_order("Class", "Noisy input", "Sampling")
    assert not visit.visible("button:has-text('Download images')").count()  # there is none yet
    visit.visible(".label-wrap").get_by_text("Start from an image").click()
    visit.visible(".examples button").first.click()
    visit.stroke()
    visit.number("Steps", 2)
    visit.press("Generate")
    visit.wait("2 steps, seed 0")
    visit.wait("Download images")
    visit.tab("Compare")
    visit.wait("30 % noise · the segmenters agree on")
    visit.end()
