"""The documentation builds as a site without a warning, needs no other host, and its references are complete."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

from unetdiff.cli import data
from unetdiff.cli.main import COMMANDS
from unetdiff.config.schema import LEAVES
from unetdiff.config.shipped import shipped_configs
from unetdiff.experiments import EXPERIMENTS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a broken link, a missing anchor or a page without a place in the navigation ends the build."""
    folder = tmp_path_factory.mktemp("site")
    before = set(sys.modules)
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
    options = config.plugins["mkdocstrings"].config.handlers["python"]["options"]
    options["separate_signature"] = False  # else ruff is started for each signature: half of the build's time
    build(config)
    for name in set(sys.modules) - before:
        if name.startswith("docs/hooks/"):
            del sys.modules[name]
    return folder


def ids(page: Path) -> set[str]:
    return set(re.findall(r'\bid="([^"]+)"', page.read_text(encoding="utf-8")))


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 15
    loads = r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(https?:)?//|<link\b[^>]*\bhref=[\"']?(https?:)?//"
    for page in pages:
        found = re.search(loads, re.sub(r'<link rel="canonical"[^>]*>', "", page.read_text(encoding="utf-8")))
        assert found is None, f"{page.name}: {found}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//|@import [\"'](https?:)?//", style.read_text(encoding="utf-8"))


def test_options_do_not_break_after_their_hyphens(site: Path) -> None:
    """No word of a command or of code within a text begins with a hyphen outside of an element that does not wrap."""
    for name in ("recipes.html", "reference/commands.html", "reference/configuration.html"):
        html = (site / name).read_text(encoding="utf-8")
        codes = re.findall(r'<div class="language-bash highlight">.*?</div>', html, re.DOTALL)
        codes += re.findall(r'<div class="language-text usage highlight">.*?</div>', html, re.DOTALL)
        codes += re.findall(r"(?<!</span>)<code>(?!<span id).*?</code>", html)
        assert any('<span class="option">--' in code for code in codes)
        for code in codes:
            text = re.sub(r"<[^>]*>", "", re.sub(r'<span class="option">[^<]*</span>', "", code))
            assert not re.search(r"(?<![^\s\[])--?[A-Za-z]", text), code


def test_every_config_key_is_in_the_reference(site: Path) -> None:
    missing = set(LEAVES) - ids(site / "reference" / "configuration.html")
    assert not missing


def test_every_command_is_in_the_reference(site: Path) -> None:
    anchors = ids(site / "reference" / "commands.html")
    commands = {name for name in COMMANDS if name not in ("data", "experiment")}
    commands |= {f"data-{action}" for action in data.ACTIONS} | {f"experiment-{name}" for name in EXPERIMENTS}
    assert commands <= anchors
    assert {"sample-guidance_scale", "train-output_dir", "predict-tile", "data-check-quick"} <= anchors


def test_the_api_has_the_public_names_with_their_shapes(site: Path) -> None:
    models = (site / "api" / "models.html").read_text(encoding="utf-8")
    names = ids(site / "api" / "models.html")
    assert {f"unetdiff.models.unet.UNet.{name}" for name in ("forward", "segment", "features", "add_head")} <= names
    assert "Logits (B, num_classes, H, W) of pixels in [-1, 1]" in models
    assert "unetdiff.segmentation.metrics.ConfusionMatrix" in ids(site / "api" / "segmentation.html")
    assert "unetdiff.diffusion.pipeline.GenerationPipeline" in ids(site / "api" / "diffusion.html")
    assert "unetdiff.training.trainer.train" in ids(site / "api" / "training.html")


def test_every_shipped_config_is_on_its_page(site: Path) -> None:
    anchors = ids(site / "reference" / "configs.html")
    assert {name.replace("/", "-") for name, _ in shipped_configs()} <= anchors


def test_search_finds_keys_and_pages(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    texts = {entry["location"]: f"{entry['title']} {entry['text']}" for entry in index["docs"]}
    assert "cosine" in texts["reference/configuration.html#training.schedule"]
    assert any(location.startswith("three_changes.html") for location in texts)


def test_links_to_files_of_the_repository_work_or_are_plain_text(site: Path) -> None:
    page = (site / "three_changes.html").read_text(encoding="utf-8")
    assert re.search(r'href="minimal_unet.html#L29"[^>]*><code>class DoubleConv</code>', page)
    assert 'href="api/models.html#unetdiff.models.blocks.DoubleConv"' in page
    assert 'id="L29"' in (site / "minimal_unet.html").read_text(encoding="utf-8")
    assert 'href="../' not in page
