"""A record comes back as it was written, what is not one is refused, and figures are written as by hand."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from unetdiff.errors import UserError
from unetdiff.reports.record import (
    Chart,
    Column,
    Gallery,
    Heatmap,
    Line,
    Record,
    Table,
    Unit,
    Value,
    read_record,
    write_record,
)
from unetdiff.reports.record_text import as_text, best_cells, best_rows, format_parts, record_text

TABLE = Table(
    "Scores",
    [Column("mIoU", "higher", "fraction", "validation"), Column("time", "lower", "minutes"), Column("weights")],
    [("a", [Value(0.5, 0.01, 3), Value(2.0), Value(10.0)]), ("b", [Value(None), Value(1.0), Value(11.0)])],
    "a note",
)
CHART = Chart("Curve", "images", "mIoU", [Line("a", [1.0, 2.0], [Value(0.1), Value(None)])], "higher", log_x=True)
MAP = Heatmap("Map", "block", "timestep", ["x", "y"], ["0", "1", "2"], [[0.1, None, 0.3], [0.4, 0.5, 0.2]], "higher")
GALLERY = Gallery("Images", ["image", "mask"], [("one", ["a.png", ""])], legend=[("cat", "#00ff7F")])


@pytest.fixture
def record(tmp_path: Path) -> Record:
    """A record with a part of each kind; its image lies in tmp_path."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    return Record(
        "probe", "A probe", "Where?", ["Here."], [TABLE, CHART, MAP, GALLERY], ["So."], "Paper 2022", "unetdiff …",
        seeds=[0, 1], dataset_name="scenes", configs={"a": "task: joint\n"}, machine={"threads": 1}, minutes=1.5,
    )  # fmt: skip


def test_round_trip(record: Record, tmp_path: Path) -> None:
    file = write_record(record, tmp_path)
    assert file == tmp_path / "record.json"
    assert read_record(tmp_path) == record  # equal as dataclasses: every part typed again
    assert [path.name for path in tmp_path.iterdir() if "writing" in path.name] == []


def test_a_figure_that_json_does_not_have_is_not_measured(record: Record, tmp_path: Path) -> None:
    table = replace(TABLE, rows=[("a", [Value(math.nan), Value(math.inf), Value(1.0)])])
    write_record(replace(record, parts=[table]), tmp_path)
    part = read_record(tmp_path).parts[0]
    assert isinstance(part, Table) and [value.mean for value in part.rows[0][1]] == [None, None, 1.0]


@pytest.mark.parametrize(
    ("part", "says"),
    [
        (replace(TABLE, rows=[("short", [Value(1.0)])]), "“Scores”.: row 'short' must"),
        (replace(GALLERY, rows=[("short", ["a.png"])]), "“Images”.: row 'short' must"),
        (replace(GALLERY, rows=[("one", ["a.png", "gone.png"])]), "gone.png: no such file"),
        (replace(GALLERY, legend=[("cat", "url(https://example.org)")]), "must be #rrggbb"),
        (replace(CHART, lines=[Line("odd", [1.0], [])]), "“Curve”.: line 'odd'"),
        (replace(MAP, values=[[0.1, 0.2, 0.3]]), "must be 2 x 3"),
        (replace(MAP, values=[[0.1], [0.2]]), "must be 2 x 3"),
    ],
)
def test_parts_that_do_not_hold_together(record: Record, tmp_path: Path, part, says: str) -> None:
    with pytest.raises(UserError, match=says):
        write_record(replace(record, parts=[part]), tmp_path)
    assert not (tmp_path / "record.json").exists()


def test_a_image_that_went_missing(record: Record, tmp_path: Path) -> None:
    write_record(record, tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match="a.png: no such file or directory. Run the experiment again"):
        read_record(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        json.dumps({"parts": [{"kind": "film"}]}),
        json.dumps({"parts": [], "name": "a"}),
        json.dumps({"parts": [{"kind": "table", "title": "t", "columns": [{"nome": "x"}], "rows": []}]}),
    ],
)
def test_a_file_that_is_no_record(tmp_path: Path, content: str) -> None:
    (tmp_path / "record.json").write_text(content)
    with pytest.raises(UserError, match=r"record.json: .*Run the experiment again."):
        read_record(tmp_path)


def test_no_record(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "gone"):
        with pytest.raises(UserError, match="has no record.json. Pass the --output"):
            read_record(place)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="has no record.json"):
        read_record(tmp_path / "file")


def test_spread_by_hand() -> None:
    # mean 4, deviations -2 0 2, their squares 8, over n - 1 = 2: 4
    assert Value.of([2.0, 4.0, 6.0]) == Value(4.0, 2.0, 3)
    figures = [0.81, 0.84, 0.79, 0.86]
    value = Value.of([*figures, math.nan])
    assert value.mean == pytest.approx(statistics.mean(figures)) and value.n == 4
    assert value.spread == pytest.approx(statistics.stdev(figures))
    assert Value.of([0.5]) == Value(0.5, None, 1)
    assert Value.of([math.nan]) == Value.of([]) == Value(None, None, 0)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (Value(0.91249, 0.0041, 3), "fraction", "0.912 ± 0.004"),
        (Value(0.9125, 0.0041, 3), "percent", "91.2 % ± 0.4"),
        (Value(1234567.0), "count", "1,234,567"),
        (Value(12.345, 0.2, 3), "decibel", "12.35 dB ± 0.20"),
        (Value(3.14), "minutes", "3.1 min"),
        (Value(0.0113, 0.0004, 3), "seconds", "0.011 s ± 0.0004"),  # a time below 1 keeps two figures
        (Value(0.5), "seconds", "0.50 s"),
        (Value(1.31, 0.02, 3), "minutes", "1.3 min ± 0.02"),  # a spread is not written as none
        (Value(0.9, 0.0, 3), "fraction", "0.900 ± 0.000"),  # one that is none is
        (Value(0.00012), "number", "1.20e-04"),
        (Value(45678.0, 12.0, 2), "number", "4.57e+04 ± 1.2e+01"),
        (Value(0.0), "number", "0.000"),
        (Value(121.4512, 9.698, 2), "number", "121.5 ± 9.7"),
        (Value(-0.0004), "fraction", "0.000"),
        (Value(0.991, 0.00006, 2), "fraction", "0.991 ± <0.0001"),
        (Value(-0.25), "number", "-0.250"),
        (Value(None), "percent", "–"),
        (Value(math.nan), "fraction", "–"),
    ],
)
def test_written(value: Value, unit: Unit, text: str) -> None:
    assert as_text(value, unit) == text == str(format_parts(value, unit))


def one_column(means: list[float | None], better) -> Table:
    return Table("t", [Column("c", better, "fraction")], [(str(i), [Value(mean)]) for i, mean in enumerate(means)])


@pytest.mark.parametrize(
    ("means", "better", "rows"),
    [
        ([0.5, 0.7, 0.6], "higher", {1}),
        ([0.5, 0.7, 0.6], "lower", {0}),
        ([0.5, 0.7, 0.6], "neither", set()),
        ([None, 0.7, 0.6], "lower", {2}),
        ([None, 0.7], "higher", set()),  # nothing to compare with
        ([math.nan, 0.7], "higher", set()),
        ([0.70011, 0.70049, 0.6], "higher", {0, 1}),  # written alike
        ([0.7, 0.7], "higher", set()),  # all alike
        ([-0.1, 0.0], "higher", {1}),
    ],
)
def test_best_rows(means: list[float | None], better, rows: set[int]) -> None:
    assert best_rows(one_column(means, better), 0) == rows


def test_best_cells() -> None:
    assert best_cells(MAP) == {(1, 1)}
    assert best_cells(replace(MAP, better="lower")) == {(0, 0)}
    assert best_cells(replace(MAP, better="neither")) == set()
    assert best_cells(replace(MAP, rows=[], values=[])) == set()


def test_record_text(record: Record) -> None:
    lines = record_text(record).splitlines()
    assert lines[:3] == ["A probe", "", "- Here."]
    assert lines[-3].split() == ["mIoU", "time", "weights"]
    assert lines[-2] == "a  0.500 ± 0.010  2.0 min   10.000"
    assert lines[-1].split()[1] == "–"
