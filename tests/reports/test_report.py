"""The page is one file, says what report.json says, and holds for any runs."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.contrast import contrast
from unetdiff import reports
from unetdiff.errors import UserError
from unetdiff.reports.report import write_report
from unetdiff.reports.samples import Budget
from unetdiff.reports.table import METRICS, percent
from unetdiff.reports.templates import unbroken

TINY = Budget(images=10, steps=2, classifier_steps=3, rows=2)


class Page(HTMLParser):
    """What the tests look at: attributes that load something, table cells, visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.cells: dict[str, list[tuple[str, bool]]] = {}
        self.ids: list[str] = []
        self.text = ""
        self._cell: tuple[str, bool] | None = None
        self._value = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.loads += [
            given[key] for key in ("src", "href", "srcset", "data", "poster", "xlink:href") if given.get(key)
        ]
        if given.get("id"):
            self.ids.append(given["id"])
        if "data-metric" in given:
            self._cell = (given["data-metric"], "best" in given.get("class", "").split())
        self._value = tag == "span" and given.get("class") == "value"

    def handle_data(self, data):
        data = data.replace("\xa0", " ")
        self.text += data
        if self._cell and self._value:
            self.cells.setdefault(self._cell[0], []).append((data, self._cell[1]))
            self._value = False


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> tuple[Page, dict, str]:
    from importlib import util

    spec = util.spec_from_file_location("compare_conftest", Path(__file__).with_name("conftest.py"))
    assert spec is not None and spec.loader is not None
    conftest = util.module_from_spec(spec)
    spec.loader.exec_module(conftest)
    root = tmp_path_factory.mktemp("three")
    runs = [
        conftest.fake_run(root / "segmentation", task="segmentation", mean_iou=0.85, minutes=1.0),
        conftest.fake_run(root / "diffusion", task="diffusion", minutes=2.0),
        conftest.fake_run(root / "joint", task="joint", mean_iou=0.81, minutes=4.0),
    ]
    page = write_report(runs, root / "page" / "report.html", budget=TINY, facts={"budget": "eight minutes"})
    html = page.read_text()
    return Page(html), json.loads(page.with_suffix(".json").read_text()), html


def test_page_is_self_contained(three):
    page, _, html = three
    assert page.loads, "there are images"
    assert all(load.startswith(("data:", "#")) for load in page.loads)
    assert "@import" not in html and not re.search(r"url\((?!#)", html)
    assert not re.search(r"https?://(?!www\.w3\.org/(2000/svg|1999/xlink))", html)
    assert len(page.ids) == len(set(page.ids)), "two elements with one id"


def test_numbers_stay_with_their_units(three):
    _, _, html = three
    text = unbroken("10.0 % of 93.7 k, 4.0 points (n = 50), 3 minutes, 2 kinds")
    assert text == "10.0\xa0% of 93.7\xa0k, 4.0\xa0points (n\xa0=\xa050), 3 minutes, 2 kinds"
    sentences = re.findall(r'<div class="what">.*?</div><p>(.*?)</p>', html)
    assert len(sentences) >= 4 and not any(re.search(r"\d (%|(min|k|points)\b)", sentence) for sentence in sentences)


def test_numbers_of_the_page_are_those_of_the_json(three):
    page, report, _ = three
    as_text = {metric.key: metric.text for metric in METRICS} | {"diffusion.class_consistency": percent}
    keys = {key for run in report["runs"] for key in run["metrics"]}
    assert keys == set(page.cells) and len(keys) > 8
    for key in keys:
        for (text, best), run in zip(page.cells[key], report["runs"], strict=True):
            number = run["metrics"][key]
            assert text == ("–" if number is None else as_text[key](number)), key
            assert best == (key in run["best"]), key


def test_missing_heads_show_a_dash_and_the_best_value_is_marked(three):
    page, report, _ = three
    assert page.cells["segmentation.mean_iou"] == [("0.850", True), ("–", False), ("0.810", False)]
    assert page.cells["parameters.segmentation"][1][0] == "–"
    assert page.cells["diffusion.class_consistency"][0][0] == "–"
    assert report["runs"][0]["class_consistency"] is None
    assert report["runs"][1]["class_consistency"]["n"] == 10


def test_sentences_have_the_metrics(three):
    page, report, _ = three
    assert "Joint training 0.810, segmentation alone 0.850: the joint run is 4.0 points lower" in page.text
    joint = report["runs"][2]["parameters"]
    shared = sum(n for part, n in joint.items() if not part.startswith("head."))
    assert percent(shared / sum(joint.values())) in page.text
    classifier = report["classifiers"][0]
    assert f"Classifier accuracy on {classifier['n']} real images: {percent(classifier['accuracy'])}" in page.text
    assert "eight minutes" in page.text


def test_reproduction(three):
    page, report, _ = three
    for run in report["runs"]:
        assert run["summary"]["command"] in page.text
    assert report["command"] in page.text and "channels:" in page.text and "torch 2.0" in page.text


def test_light_and_dark_and_a_phone(three):
    _, _, html = three
    assert "prefers-color-scheme: dark" in html and 'content="width=device-width' in html
    assert html.count('<svg class="net ') == 2


def test_swatches_of_black_and_white_classes_are_seen_in_both_themes():
    css = "".join((Path(reports.__file__).with_name(name)).read_text() for name in ("page.css", "segmenter.css"))
    edge, *papers = map(bytes.fromhex, re.findall(r"--(?:swatch-edge|paper): #(\w{6})", css))
    assert len(papers) == 2
    assert all(contrast(edge, ground) >= 3 for ground in (*papers, (0, 0, 0), (255, 255, 255)))
    for rule in (r"\.palette i", r"\.classes th i"):
        assert re.search(rule + r" {[^}]*outline: 1px solid var\(--swatch-edge\)", css)


def test_one_segmenter_alone(make_run, tmp_path):
    page = write_report([make_run("only", task="segmentation")], tmp_path / "out", budget=TINY)
    assert page == tmp_path / "out" / "report.html"
    parsed = Page(page.read_text())
    assert "diffusion.loss" not in parsed.cells and not any(best for c in parsed.cells.values() for _, best in c)
    assert "Samples" not in parsed.text and "ground truth" in parsed.text


def test_notices_of_different_datasets_and_unfinished_runs(make_run, tmp_path):
    runs = [
        make_run("one", task="segmentation", digits=1, mean_iou=0.9),
        make_run("two", task="segmentation", digits=3, mean_iou=0.5, finished=False, weights=False),
    ]
    text = Page(write_report(runs, tmp_path / "report.html", budget=TINY).read_text()).text
    assert "different datasets" in text
    assert "“two” has not finished training" in text


def test_notice_of_different_sizes(make_run, tmp_path):
    sizes = {"small": [16, 16], "large": [32, 32]}
    runs = [make_run(name, task="diffusion", size=size, weights=False) for name, size in sizes.items()]
    text = Page(write_report(runs, tmp_path / "report.html", budget=TINY).read_text()).text
    assert "different sizes (small: 16×16, large: 32×32)" in text
    text = Page(write_report(runs[1:], tmp_path / "report.html", budget=TINY).read_text()).text
    assert "different sizes" not in text


def test_names_are_text_not_markup(make_run, tmp_path):
    run = make_run("<b onclick=x>bold", task="segmentation", weights=False)
    html = write_report([run], tmp_path / "report.html", title="a <i>title</i>", budget=TINY).read_text()
    assert "<b onclick" not in html and "&lt;b onclick" in html and "<i>title" not in html


@pytest.mark.parametrize("content", ['{"task": "segmentation", "runs": []}', "[1]", "no JSON"])
def test_foreign_json_is_not_overwritten(make_run, tmp_path, monkeypatch, content):
    monkeypatch.setattr("unetdiff.reports.report.sample_blocks", lambda *_: pytest.fail("sampled before the check"))
    run = make_run(task="segmentation", weights=False)
    (run / "summary.json").write_text(content)
    with pytest.raises(UserError, match=r"output=.*run/summary\.json: must not be .*another --output"):
        write_report([run], run / "summary.html", budget=TINY)
    assert (run / "summary.json").read_text() == content and not (run / "summary.html").exists()


def test_a_page_is_written_again(make_run, tmp_path):
    run = make_run(task="segmentation", weights=False)
    for title in ("first", "second"):
        page = write_report([run], tmp_path / "summary.html", title=title, budget=TINY)
        assert json.loads(page.with_suffix(".json").read_text())["title"] == title


def test_no_run_no_page(tmp_path):
    with pytest.raises(UserError, match="config.yaml"):
        write_report([tmp_path / "nothing"], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
