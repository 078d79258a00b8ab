"""The notebook is whole, and its cells run one after the other in the tiny setting."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import matplotlib
import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "compare_heads.ipynb"


def test_it_is_a_notebook_without_outputs() -> None:
    content = json.loads(NOTEBOOK.read_text())
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in content["cells"]]
    assert len(ids) == len(set(ids)) and all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in ids)
    for cell in content["cells"]:
        needed = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            needed |= {"execution_count", "outputs"}
            assert cell["outputs"] == [] and cell["execution_count"] is None
        assert set(cell) == needed


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_its_cells_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("UNETDIFF_TINY", "1")
    monkeypatch.setenv("UNETDIFF_NO_BAR", "1")
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg", force=True)
    names: dict = {"__name__": "__main__"}
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}:{cell['id']}", "exec"), names)
    names["plt"].close("all")

    assert names["TINY"] and sorted(os.listdir(tmp_path)) == ["runs"]  # nothing is left elsewhere
    page = tmp_path / "runs" / "notebook-tiny" / "report.html"
    assert str(page.relative_to(tmp_path)) in capsys.readouterr().out
    report = json.loads(page.with_suffix(".json").read_text())
    assert [run["task"] for run in report["runs"]] == ["segmentation", "diffusion", "joint"]
    (experiment,) = report["experiments"]
    curve = experiment["parts"][0]["lines"][0]
    # clean images, all of validation: what the run itself said (in bf16 where the machine has it, here in float32)
    validated = report["runs"][0]["metrics"]["segmentation.mean_iou"]
    assert curve["x"][0] == 0 and curve["y"][0]["mean"] == pytest.approx(validated, abs=0.005)
    assert experiment["findings"][0] in page.read_text()
