"""A section of the page for each experiment: what the record says, marked where it is better, in one file."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unetdiff.cli.main import main
from unetdiff.errors import UserError
from unetdiff.reports.charts import spaced
from unetdiff.reports.record import Chart, Column, Gallery, Heatmap, Line, Record, Table, Value, write_record
from unetdiff.reports.report import write_report
from unetdiff.reports.samples import Budget

HOSTILE = '<b onclick="x">&"\'</b> $x^{$ </script><style>'


class Page(HTMLParser):
    """The page as the tests look at it: rows of tables by section, what loads something, ids, links, text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: dict[str, list[list[tuple[str, set[str]]]]] = {}
        self.text: dict[str, str] = {}
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.images: dict[str, str] = {}
        self.attributes: set[str] = set()
        self._section, self._cell = "", False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        given = {key: value or "" for key, value in attrs}
        self.attributes |= set(given)
        self.loads += [given[key] for key in ("src", "srcset", "data", "poster", "xlink:href") if key in given]
        self.ids += [given["id"]] if "id" in given else []
        if tag in ("a", "link") and "href" in given:
            (self.links if tag == "a" else self.loads).append(given["href"])
        if tag == "img":
            self.images[given.get("alt", "")] = given.get("src", "")
        if tag in ("section", "header"):
            self._section = given.get("id", tag)
        if tag == "tr":
            self.rows.setdefault(self._section, []).append([])
        self._cell = tag in ("td", "th") or (self._cell and tag in ("span", "i"))
        if tag in ("td", "th"):
            self.rows[self._section][-1].append(("", set(given.get("class", "").split())))

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data):
        self.text[self._section] = self.text.get(self._section, "") + data
        if self._cell:
            text, classes = self.rows[self._section][-1][-1]
            self.rows[self._section][-1][-1] = (text + data, classes)

    def row(self, section: str, name: str) -> list[tuple[str, set[str]]]:
        """The cells of the first row of that name, without it."""
        return next(row[1:] for row in self.rows[section] if row and row[0][0] == name)


def make_record(folder: Path, name: str = "probe", hostile: str = "") -> Record:
    """A record with a part of each kind, written into a new folder."""
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    Image.fromarray(pixels[:, ::-1]).save(folder / "b.png")
    table = Table(
        f"Scores{hostile}",
        [Column(f"mIoU{hostile}", "higher", "fraction", f"the note{hostile}"), Column("time", "lower", "minutes"),
         Column("weights", "neither", "count"), Column("loss", "lower")],
        [(f"alone{hostile}", [Value(0.8712, 0.0043, 3), Value(1.31, 0.2, 3), Value(1203456.0), Value(None)]),
         ("joint", [Value(0.8531, 0.0061, 2), Value(5.12, 0.1, 3), Value(1208432.0), Value(0.0833)])],
        f"a note{hostile}",
    )  # fmt: skip
    chart = Chart(
        f"Labels{hostile}", f"share of labels{hostile}", f"mIoU{hostile}",
        [Line(f"pre-trained{hostile}", [0.01, 0.2, 1.0], [Value(0.42, 0.05, 3), Value(0.777, 0.01, 3), Value(0.871)]),
         Line("random start", [0.01, 1.0], [Value(0.31), Value(None)])],
        "higher", log_x=True,
    )  # fmt: skip
    heatmap = Heatmap(
        f"Map{hostile}", f"block{hostile}", "timestep", [f"middle{hostile}", "last"], ["0", "100"],
        [[0.413, 0.791], [None, 0.512]], "higher",
    )  # fmt: skip
    gallery = Gallery(
        f"Images{hostile}", [f"conditioned on{hostile}", "drawn"],
        [(f"one{hostile}", ["a.png", "b.png"]), ("two", ["b.png", ""])], legend=[(f"digit{hostile}", "#dc322f")],
    )  # fmt: skip
    record = Record(
        name, f"The title{hostile}", f"What of it{hostile}?", [f"First finding{hostile}: 0.871.", "Second finding."],
        [table, chart, heatmap, gallery], [f"Measured so{hostile}."], f"Paper 2022{hostile}", f"unetdiff x{hostile}",
        [0, 1, 2], f"scenes{hostile}", {f"alone{hostile}": f"task: segmentation  # {hostile}\n"},
        {"device": "cpu", "threads": 1, "versions": {"torch": "2.0"}}, 14.25,
    )  # fmt: skip
    write_record(record, folder)
    return record


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> tuple[Page, str, dict, Record]:
    root = tmp_path_factory.mktemp("shown")
    record = make_record(root / "probe")
    page = write_report([], root / "report.html", experiments=[root / "probe"])
    html = page.read_text()
    return Page(html), html, json.loads(page.with_suffix(".json").read_text()), record


def test_better_values_are_the_marked_ones(shown) -> None:
    page, _, _, _ = shown
    section = "experiment-probe"
    assert page.row(section, "alone") == [
        ("0.871 ± 0.004", {"best"}), ("1.3 min ± 0.2", {"best"}), ("1,203,456", set()), ("–", {"none"}),
    ]  # fmt: skip
    assert page.row(section, "joint") == [
        ("0.853 ± 0.006n = 2", set()), ("5.1 min ± 0.1", set()), ("1,208,432", set()), ("0.083", set()),
    ]  # fmt: skip
    assert "standard deviation over 3 seeds" in page.text[section]
    assert page.row(section, "middle") == [("0.413", set()), ("0.791", {"strong", "best"})]
    assert page.row(section, "last") == [("–", {"none"}), ("0.512", set())]


def test_every_figure_of_the_record_is_there(shown) -> None:
    page, html, report, record = shown
    section = "experiment-probe"
    assert page.row(section, "pre-trained") == [("0.420 ± 0.050", set()), ("0.777 ± 0.010", set()), ("0.871", set())]
    assert page.row(section, "random start") == [("0.310", set()), ("", set()), ("–", set())]
    heads = [text for row in page.rows[section] for text, _ in row]
    assert {"0.01", "0.2", "1"} <= set(heads) and "mIoU\xa0↑the note" in heads
    text = page.text[section]
    for said in (record.title, record.question, *record.findings, *record.method, record.source, "0, 1, 2", "14.2 min"):
        assert said in text
    assert record.command in page.text["reproduce"] and record.configs["alone"] in page.text["reproduce"]
    assert "torch 2.0" in page.text["reproduce"]
    (raw,) = report["experiments"]
    assert raw["parts"][0]["rows"][0][1][0] == {"mean": 0.8712, "spread": 0.0043, "n": 3}
    assert raw["parts"][2]["values"] == [[0.413, 0.791], [None, 0.512]] and raw["minutes"] == 14.25


def test_first_screen_names_the_first_finding_and_leads_to_it(shown) -> None:
    page, _, _, record = shown
    assert record.findings[0] in page.text["header"] and record.findings[1] not in page.text["header"]
    assert "#experiment-probe" in page.links
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)


@pytest.mark.parametrize(("number", "folded"), [(6, 0), (7, 2), (9, 4)])
def test_many_findings_are_folded(tmp_path, number, folded) -> None:
    write_record(replace(make_record(tmp_path / "x"), findings=[f"finding {i}" for i in range(number)]), tmp_path / "x")
    html = write_report([], tmp_path / "report.html", experiments=[tmp_path / "x"]).read_text()
    _, _, inside = html.partition('<details class="more">')
    assert inside.partition("</details>")[0].count("<li>finding ") == folded
    assert (f"{folded} more findings" in html) == bool(folded) and f"finding {number - 1}" in html


def test_self_contained(shown) -> None:
    page, html, _, _ = shown
    assert all(load.startswith(("data:", "#")) for load in page.loads)
    assert "@import" not in html and not re.search(r"url\((?!#)", html)
    assert not re.search(r"https?://(?!www\.w3\.org/(2000/svg|1999/xlink))", html)
    assert len(page.ids) == len(set(page.ids))


def test_images_are_the_files_pixel_for_pixel(shown, tmp_path: Path) -> None:
    page, html, _, _ = shown
    make_record(tmp_path / "again")
    uri = page.images["Images: one, drawn"]
    embedded = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert np.array_equal(np.asarray(embedded), np.asarray(Image.open(tmp_path / "again" / "b.png")))
    assert 'data-caption="Images: two, conditioned on"' in html and 'class="pixels"' in html
    assert "Images: two, drawn" not in page.images  # none there


def test_names_are_text_not_markup(tmp_path: Path) -> None:
    make_record(tmp_path / "bad", name=HOSTILE, hostile=HOSTILE)
    html = write_report([], tmp_path / "report.html", experiments=[tmp_path / "bad"]).read_text()
    page = Page(html)
    assert "onclick" not in page.attributes
    assert html.count("<style>") == 1 and html.count("</script>") == 1
    assert "<b onclick" not in html
    (section,) = [name for name in page.text if name.startswith("experiment-")]
    assert re.fullmatch(r"[a-z0-9-]+", section)
    assert page.row(section, f"alone{HOSTILE}")[0][1] == {"best"}
    assert f"First finding{HOSTILE}" in page.text["header"]


def test_the_same_experiment_twice_has_two_sections(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    for folder in folders:
        make_record(folder)
    page = Page(write_report([], tmp_path / "report.html", experiments=folders).read_text())
    assert [name for name in page.text if name.startswith("experiment-")] == [
        "experiment-probe", "experiment-probe-2", "experiment-probe-3",
    ]  # fmt: skip
    assert len(page.ids) == len(set(page.ids))
    with pytest.raises(UserError, match="must be listed once"):
        write_report([], tmp_path / "twice.html", experiments=[folders[0], folders[0] / "."])


def test_beside_runs(make_run, tmp_path: Path) -> None:
    make_record(tmp_path / "probe")
    run = make_run("only", task="segmentation", weights=False)
    html = write_report([run], tmp_path / "report.html", budget=Budget(rows=1), experiments=[tmp_path / "probe"])
    page = Page(html.read_text())
    assert {"network", "metrics", "experiment-probe", "reproduce"} <= set(page.text)
    assert "First finding" in page.text["header"] and "best validation mIoU" in page.text["header"]


@pytest.mark.parametrize(
    "change",
    [
        {"log_x": True, "lines": [Line("a", [0.0, 1.0], [Value(1.0), Value(2.0)])]},
        {"log_y": True, "lines": [Line("a", [0.0, 1.0], [Value(-1.0), Value(2.0, 3.0, 2)])]},
        {"log_y": True, "lines": [Line("a", [1.0, 2.0], [Value(0.1, 0.2, 2), Value(0.2, 0.01, 2)])]},
        {"lines": [Line("a", [1.0], [Value(0.5)])]},
        {"lines": [Line("a", [1.0, 2.0], [Value(None), Value(None)])]},
        {"lines": []},
        {"lines": [Line(f"a name of many words, number {i}", [0.0, 1.0], [Value(i), Value(2 * i)]) for i in range(12)]},
        {"lines": [Line("a", list(range(100)), [Value(x / 7, 0.1, 3) for x in range(100)])]},
    ],
)
@pytest.mark.filterwarnings("error")
def test_charts_of_any_kind(tmp_path: Path, change: dict) -> None:
    record = make_record(tmp_path / "probe")
    chart = replace(record.parts[1], **{"log_x": False, **change})
    write_record(replace(record, parts=[chart]), tmp_path / "probe")
    html = write_report([], tmp_path / "report.html", experiments=[tmp_path / "probe"]).read_text()
    svg = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert not re.search(r"#[0-9a-f]{6}", svg), "a colour that the page does not know"
    assert all(line.name in html for line in chart.lines)
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))


def test_names_beside_a_chart_do_not_touch() -> None:
    places = spaced([0.5, 0.52, 0.98, 0.0], [0.1, 0.1, 0.2, 0.1])
    assert places == pytest.approx([0.5, 0.6, 0.9, 0.05])
    assert spaced([1.0, 1.0, 1.0], [0.2, 0.2, 0.2]) == pytest.approx([0.5, 0.7, 0.9])


def test_wide_heatmaps_have_their_values_in_tooltips(tmp_path: Path) -> None:
    record = make_record(tmp_path / "probe")
    values = [[row / 10 + column / 1000 for column in range(30)] for row in range(2)]
    wide = Heatmap("Wide", "block", "timestep", ["x", "y"], [str(i) for i in range(30)], values, "lower")
    write_record(replace(record, parts=[wide]), tmp_path / "probe")
    html = write_report([], tmp_path / "report.html", experiments=[tmp_path / "probe"]).read_text()
    assert 'title="y, 7: 0.107"' in html and 'title="x, 0: 0.000, best value"' in html
    cells = Page(html).row("experiment-probe", "x")
    assert cells[0] == ("0.000", {"best"}) and {text for text, _ in cells[1:]} == {""}


def test_on_the_command_line(tmp_path: Path, capsys) -> None:
    make_record(tmp_path / "probe")
    page = tmp_path / "page.html"
    assert main(["compare", "--experiments", str(tmp_path / "probe"), "--output", str(page)]) == 0
    assert capsys.readouterr().out.strip() == str(page)
    assert f"unetdiff compare --experiments {tmp_path / 'probe'} --output {page}" in page.read_text()
    assert main(["compare"]) == 2
    assert "--experiments DIR" in capsys.readouterr().err
    assert main(["compare", "--experiments", str(tmp_path), "--output", str(tmp_path / "none.html")]) == 2
    assert "has no record.json" in capsys.readouterr().err and not (tmp_path / "none.html").exists()


def test_a_image_that_is_none(tmp_path: Path) -> None:
    make_record(tmp_path / "probe")
    (tmp_path / "probe" / "a.png").write_text("not an image")
    with pytest.raises(UserError, match="a.png: must be an image .* Run the experiment again"):
        write_report([], tmp_path / "report.html", experiments=[tmp_path / "probe"])
