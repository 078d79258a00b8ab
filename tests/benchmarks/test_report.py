"""Tables, plot and fits from overhead numbers, and the whole command with tiny networks."""

from __future__ import annotations

import json
import pickle
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("segmentation_models_pytorch", exc_type=ImportError)

from suite import compare, plot, table  # noqa: E402
from suite.compare import Outcome, Row  # noqa: E402
from suite.growth import Growth, fit, power_law  # noqa: E402
from unetdiff.benchmark.timing import Quartiles  # noqa: E402

RUN = Path(__file__).parents[2] / "benchmarks" / "run.py"
MACHINE = {"device": "a machine", "threads": 2, "versions": {"torch": "2.15"}}
PEAK_FLOPS = {"float32": 100e9, "bf16": 800e9}


def outcome(name: str, precision: str, seconds: float, memory: int | None) -> Outcome:
    spread = Quartiles(0.9 * seconds, seconds, 1.1 * seconds)
    return Outcome(name, precision, 32_520_000, 40e9, spread, spread, 80e9 / seconds / PEAK_FLOPS[precision], memory)


def row(speed: float, memory: int | None = 800_000_000, agreement: dict | None = None) -> Row:
    unetdiff, peer = outcome("unetdiff 1", "bf16", 0.5, memory), outcome("peer 2", "float32", 1.0, 1_000_000_000)
    spread = Quartiles(speed - 0.1, speed, speed + 0.1)
    return Row(
        "training step",
        "defaults",
        unetdiff,
        peer,
        spread,
        spread,
        2.3,
        agreement or {},
        {"psnr": 50} if agreement else {},
    )


def growth(power: float) -> Growth:
    values = [64**2, 128**2, 256**2]
    unetdiff, peer = ([Quartiles.of([n**p / 1e6]) for n in values] for p in (power, 1.0))
    return Growth("training step, batch 2, best", "pixels", values, ("unetdiff 1", "peer 2"), unetdiff, peer)


def cells(text: str, start: str) -> list[list[str]]:
    """The rows of the table whose head starts so, without head and rule."""
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(f"| {start}"))
    rows = []
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_tables() -> None:
    rows = [row(2.5, agreement={"psnr": 61.25}), row(2.2, memory=950_000_000), row(2.3, memory=None)]
    text = table.as_markdown(MACHINE, PEAK_FLOPS, rows, [growth(1.04), growth(1.2)], 10, 3)
    speed = cells(text, "work | settings | unetdiff, ms")
    assert speed[0] == [
        "training step", "defaults", "500 (450 to 550)", "1000 (900 to 1100)", "2.50× (2.40 to 2.60)",
        "2.50× (2.40 to 2.60)", "psnr 61.2",
    ]  # fmt: skip
    assert [table.passed(one)["speedup"] for one in rows] == [True, False, True]
    assert [table.passed(one).get("memory") for one in rows] == [True, False, None]
    work = cells(text, "work | settings | side")
    assert work[0][2:] == ["unetdiff 1", "bf16", "32.52", "40.00", "160.0", "20 %"]
    assert work[1][2:] == ["peer 2", "float32", "32.52", "40.00", "80.0", "80 %"]
    memory = cells(text, "peak memory")
    assert [line[2:] for line in memory] == [
        ["800", "1,000", "0.80"],
        ["950", "1,000", "0.95"],
    ]
    exact = "1.00 (± 0 %)"
    grown = cells(text, "growth | axis")
    assert [line[6] for line in grown] == [f"1.04 (± 0 %) and {exact}", f"1.20 (± 0 %) and {exact}"]
    assert growth(1.04).passed and not growth(1.2).passed
    assert "100.0 GFLOP/s in float32, 800.0 GFLOP/s in bf16" in text and "of 10 rounds after 3 warm-up rounds" in text


def test_images_that_differ_fail() -> None:
    assert table.passed(row(2.5, agreement={"psnr": 49.0})) == {"speedup": True, "memory": True, "psnr": False}


def test_json() -> None:
    data = json.loads(json.dumps(table.as_json(MACHINE, PEAK_FLOPS, [row(2.5)], [growth(1.2)])))
    assert data["rows"][0]["speedup"] == {"lower": 2.4, "median": 2.5, "upper": 2.6}
    assert data["rows"][0]["memory_ratio"] == 0.8 and data["rows"][0]["passed"] == {
        "speedup": True,
        "memory": True,
    }
    assert [result["exponent"] for result in data["growth"][0]["fits"]] == pytest.approx([1.2, 1.0])
    assert not data["growth"][0]["passed"]
    first, *_, last = data["growth"][0]["unetdiff"]
    difference = data["growth"][0]["values"][-1] - data["growth"][0]["values"][0]
    assert data["growth"][0]["slopes"][0] == pytest.approx((last["median"] - first["median"]) / difference)


def test_a_power_law() -> None:
    values = np.array([1.0, 2, 4, 8])
    assert power_law(values, 3 * values**0.75).exponent == pytest.approx(0.75)
    assert power_law([10, 1000], [1, 10]).exponent == pytest.approx(0.5)
    assert power_law([1, 2, 4], [1, 2.2, 4]).error == pytest.approx(0.045, abs=0.003)  # -3, +6.7 and -3 %


@pytest.mark.parametrize("power", [0.75, 1.0, 1.1])
@pytest.mark.parametrize("overhead", [0.0, 0.5, 20.0])
def test_fit_with_overhead(power: float, overhead: float) -> None:
    values = np.array([1.0, 4, 16, 64])
    result = fit(values, overhead + 3 * values**power)
    assert result.exponent == pytest.approx(power, abs=0.006)
    assert result.overhead == pytest.approx(overhead, abs=0.1)
    assert result.error < 1e-3
    if overhead:
        assert power_law(values, overhead + 3 * values**power).exponent < power - 0.03


def test_overhead_is_not_negative() -> None:
    values = np.array([1.0, 4, 16, 64])
    result = fit(values, 3 * values - 2)
    assert result.overhead == 0 and result.exponent > 1


@pytest.mark.parametrize(("rows", "growths"), [(3, 2), (1, 0), (0, 1)])
def test_plot(rows: int, growths: int, tmp_path: Path) -> None:
    plot.draw(tmp_path / "plot.png", [row(2.5)] * rows, [growth(1.1)] * growths, "a machine")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.width > 1000 and np.asarray(image.convert("L")).std() > 5


def test_quick_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the training steps, which have tests of their own, and without a process for each peak."""

    def instead(function: object, *args: object) -> int:
        assert function is compare.peak_memory and pickle.dumps(args)
        return 10**6 if "unetdiff" in args else 2 * 10**6

    monkeypatch.setattr(compare, "run_in_subprocess", instead)
    work = ["segmentation-inference", "loss", "sampling", "growth"]
    words = ["--quick", "--rounds", "1", "--warmups", "0", "--output", str(tmp_path / "result")]
    monkeypatch.setattr(sys, "argv", [str(RUN), *words, "--only", *work])
    runpy.run_path(str(RUN), run_name="__main__")
    result = json.loads((tmp_path / "result" / "table.json").read_text())
    assert len(result["rows"]) == 5 and len(result["growth"]) == 2
    for one in result["rows"]:
        unetdiff, peer = one["unetdiff"], one["peer"]
        assert unetdiff["parameters"] == pytest.approx(peer["parameters"], rel=0.05)
        assert one["speedup"]["median"] == pytest.approx(peer["seconds"]["median"] / unetdiff["seconds"]["median"])
        assert one["memory_ratio"] == 0.5 and one["passed"]["memory"]
    assert (tmp_path / "result" / "plot.png").is_file()
    assert (tmp_path / "result" / "table.md").read_text() in capsys.readouterr().out


def test_too_few_rounds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [str(RUN), "--rounds", "0"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(RUN), run_name="__main__")
    assert "must be at least 1" in capsys.readouterr().err
