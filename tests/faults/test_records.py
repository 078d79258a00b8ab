"""Records, pages, caches and outputs of evaluations: what is damaged, contradicts itself or cannot be written."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from unetdiff.cli.main import main
from unetdiff.config.reading import from_yaml, parse
from unetdiff.errors import FileError, UserError
from unetdiff.evaluation import cache, evaluate
from unetdiff.evaluation.class_names import require_same_classes
from unetdiff.evaluation.classifier import Classifier, ClassifierConfig, ClassifierNetwork, train_classifier
from unetdiff.evaluation.config import EvaluationConfig, SweepConfig
from unetdiff.evaluation.load_run import load_run
from unetdiff.experiments import synthetic_dataset
from unetdiff.experiments.result_cache import cached_result
from unetdiff.files import typed as typed_module
from unetdiff.files.typed import typed
from unetdiff.reports import masks, report
from unetdiff.reports.charts import draw_chart
from unetdiff.reports.record import (
    Chart,
    Column,
    Gallery,
    Heatmap,
    Line,
    Record,
    Table,
    Value,
    read_record,
    write_record,
)
from unetdiff.reports.report import write_report
from unetdiff.reports.runs import Run, read_metrics, read_model_config, read_run, read_runs
from unetdiff.reports.samples import Budget
from unetdiff.segmentation.evaluation import evaluate_segmenter
from unetdiff.segmentation.pipeline import SegmentationPipeline
from unetdiff.training.trainer import train

TINY = {
    "model": {
        "encoder": {"channels": [8, 16]},
        "residual": {"layers_per_block": 1, "norm_num_groups": 4},
        "conditioning": {"cross_attention_dim": 8, "attention_levels": [1], "attention_head_dim": 8},
    },
    "data": {"scenes": {"train_images": 24, "val_images": 6}},
    "diffusion": {"preview_steps": 1, "preview_per_class": 1},
    "training": {"steps": 2, "batch_size": 4, "eval_batch_size": 6, "validate_every": 2, "log_every": 1},
}
SMALL = Budget(images=10, steps=1, classifier_steps=1, rows=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A joint run of two steps; do not change it."""
    folder = tmp_path_factory.mktemp("records") / "joint"
    return train(parse(None, {**TINY, "training": {**TINY["training"], "output_dir": str(folder)}}, "joint"))


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def plain_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without what networks draw, and without curves."""
    for name in ("mask_blocks", "sample_blocks"):
        monkeypatch.setattr(report, name, lambda *_: ([], []))
    monkeypatch.setattr(report, "illustrations", lambda *_: {})
    monkeypatch.setattr(report, "training_curves", lambda _: [])


def one_record(folder: Path) -> Record:
    """A record with a part of each kind, written to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    parts = [
        Table("Scores", [Column("mIoU", "higher", "fraction")], [("a", [Value(0.5, 0.01, 3)])]),
        Chart("Curve", "images", "mIoU", [Line("a", [1.0, 2.0], [Value(0.1), Value(None)])]),
        Heatmap("Map", "block", "timestep", ["x"], ["0"], [[0.1]]),
        Gallery("Images", ["image"], [("one", ["a.png"])], legend=[("cat", "#00ff7f")]),
    ]
    machine = {"device": "cpu", "threads": 1, "versions": {"torch": "2"}}
    record = Record("probe", "A probe", "Where?", ["Here."], parts, ["So."], seeds=[0], machine=machine, minutes=1.0)
    write_record(record, folder)
    return record


# ------------------------------------------------------------------------------------------- damaged records


VALUES: list[Any] = [None, "text", -1, 10**9, 10**400, 0.5, float("nan"), float("inf"), True, [1, "a", None], {"a": 1}]
"""What takes the place of every value in turn."""


def damaged(
    data: bytes, parse_text: Callable[[str], Any], write: Callable[[Any], str], used: Callable[[str], bool]
) -> Iterator[tuple[str, bytes]]:
    """(what was done, content): broken as a file; then each key removed, and each value replaced by all of `VALUES`.

    Of these, the ones that are `used`.
    """
    yield "empty", b""
    yield "half", data[: len(data) // 2]
    yield "not UTF-8", data + b"\xff\xfe"
    yield "UTF-16", data.decode().encode("utf-16")
    yield "nested", b"[" * 100_000
    yield "digits", b'{"steps": ' + b"9" * 5000 + b"}"
    for text in ("[]", "null", "3", '"a"', "{}"):
        yield text, text.encode()
    tree = parse_text(data.decode())
    for path in keys(tree):
        for value in ["delete", *VALUES]:
            change = f"{'.'.join(map(str, path))} = {str(value)[:20]}"
            if not used(change):
                continue
            changed = deepcopy(tree)
            parent = changed
            for part in path[:-1]:
                parent = parent[part]
            if value == "delete":
                del parent[path[-1]]
            else:
                parent[path[-1]] = value
            yield change, write(changed).encode()
    yield "key of a later version", write({**tree, "later": 1}).encode()


def keys(tree: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values; of a list, those of its first item."""
    for key, value in tree.items() if isinstance(tree, dict) else list(enumerate(tree))[:1]:
        yield *above, key
        if isinstance(value, dict | list):
            yield from keys(value, (*above, key))


def write_page(path: Path) -> None:
    """The page of a run, without the drawings."""
    write_report([path], path.parent / "page.html")


def read_synthetic(folder: Path) -> None:
    """What is read of a synthetic dataset that exists."""
    synthetic_dataset._require_equal(folder, synthetic_dataset.SETTINGS, {"seed": 0})
    synthetic_dataset._require_equal(folder, synthetic_dataset.SOURCE, {"name": "scenes"})
    assert set(synthetic_dataset._read_scores(folder)) == {"synthetic_000000"}


@pytest.fixture
def synthetic(tmp_path: Path) -> Path:
    """The files of a synthetic dataset that are read again."""
    folder = tmp_path / "synthetic"
    (folder / "ImageSets/Segmentation").mkdir(parents=True)
    (folder / "ImageSets/Segmentation/synthetic.txt").write_text("synthetic_000000\n")
    for name, content in (("miou.json", {"synthetic_000000": 0.5}), ("settings.json", {"seed": 0})):
        (folder / name).write_text(json.dumps(content))
    (folder / "source.json").write_text(json.dumps({"name": "scenes"}))
    return folder


READ: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "summary.json": ("run", write_page),
    "metrics.jsonl": ("run", lambda path: read_metrics(path / "metrics.jsonl")),
    "config.yaml": ("run", read_run),
    "best/unet/config.json": ("run", lambda path: read_model_config(path / "best/unet/config.json")),
    "best/segmentation.json": ("run", lambda path: SegmentationPipeline.from_pretrained(path / "best").classes),
    "record.json": ("record", read_record),
    "miou.json": ("synthetic", read_synthetic),
    "settings.json": ("synthetic", read_synthetic),
    "source.json": ("synthetic", read_synthetic),
}
"""file -> (the folder that it is in, what reads it)."""


@pytest.mark.parametrize("name", READ)
def test_b8_damaged_records(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, plain_page: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, read = READ[name]
    if kind == "record":
        one_record(folder := tmp_path / "record")
    else:
        folder = request.getfixturevalue(kind)
    if name == "best/segmentation.json":  # only this file matters
        loaded = SegmentationPipeline.from_pretrained(folder / "best").unet
        monkeypatch.setattr("unetdiff.segmentation.pipeline.UNet.from_pretrained", lambda *_, **__: loaded)
    if name == "summary.json":
        monkeypatch.setattr(report, "_network", lambda *_: None)
        monkeypatch.setattr(report, "render", lambda *_, **content: str(content))
        config = from_yaml(folder / "config.yaml")
        monkeypatch.setattr("unetdiff.reports.runs.from_yaml", lambda _: config)
    file = folder / name
    good = file.read_bytes()
    head = b""
    if file.suffix == ".jsonl":
        *lines, last = good.splitlines(keepends=True)
        head, good = b"".join(lines), last
    as_yaml = file.suffix == ".yaml"
    load, dump = (yaml.safe_load, yaml.safe_dump) if as_yaml else (json.loads, json.dumps)

    def used(change: str) -> bool:
        if as_yaml and ("." in change.split(" ")[0] or not change.endswith("= text")):
            return False  # the config's own tests have its keys
        alike = change.startswith(("final.", "versions.", "class_weights."))
        return not alike or change.endswith(("= text", "= nan"))

    refused = 0
    for change, content in damaged(good, load, dump, used):
        file.write_bytes(head + content + (b"\n" if head else b""))
        try:
            read(folder)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error), change
            assert Path(name).name in str(error) or folder.name in str(error), f"{change}: {error}"
    assert refused > (5 if as_yaml else 10)


def test_b8_messages_name_file_and_key(run: Path) -> None:
    file, summary = run / "summary.json", json.loads((run / "summary.json").read_text())
    for change, message in (
        ({"steps": -1}, "steps: must be at least 0 (got -1)"),
        ({"steps": "many"}, "steps: must be an integer (got many)"),
        ({"parameters": [1]}, "parameters: must be an object (got a list)"),
        ({"parameters": {"encoder": 0.5}}, "parameters.encoder: must be an integer (got 0.5)"),
        ({"versions": {"torch": 2}}, "versions.torch: must be a text (got 2)"),
        ({"final": {"diffusion/loss": "low"}}, "final.diffusion/loss: must be a number (got 'low')"),
    ):
        file.write_text(json.dumps({**summary, **change}))
        with pytest.raises(FileError, match=re.escape(f"{file}: {message}")):
            read_run(run)
    file.write_text(json.dumps({k: v for k, v in summary.items() if k != "parameters"}))
    with pytest.raises(FileError, match=re.escape(f"{file}: parameters: is missing.")):
        read_run(run)
    file.write_text(json.dumps(summary))
    lines = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text('{"kind": "train", "step": -4}\n' + lines)
    with pytest.raises(FileError, match=re.escape("metrics.jsonl, line 1: step: must be at least 0 (got -4)")):
        read_run(run)


def test_b8_typed_values() -> None:
    assert typed(tuple[str, float], ["a", 1], "f") == ("a", 1)
    assert typed(list[float | None], [None, 2.5], "f") == [None, 2.5]
    for hint, value, message in (
        (float, float("nan"), "must be a finite number"),
        (float, 10**400, "must be a finite number"),
        (int, True, "must be an integer"),
        (int, 1 << 64, "must be an integer"),
        (tuple[str, float], ["a"], "must be a list of 2 values"),
        (dict[str, int], {"a": {"b": 1}}, "a: must be an integer"),
        (int | str, [], "must be an integer or a text"),
        (Value, {"mean": 1.0, "median": 1.0}, "median: unknown key of another version"),
    ):
        with pytest.raises(FileError, match=message) as caught:
            typed(hint, value, "f")
        assert len(str(caught.value)) < 150 + typed_module.MAX_SHOWN


# ------------------------------------------------------------------------------------------ classes (A6, A7)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmenter of three classes and its dataset: (run, data root) in one folder."""
    root = tmp_path_factory.mktemp("classes")
    random = np.random.default_rng(0)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / "voc" / folder).mkdir(parents=True)
    (root / "voc/classes.txt").write_text("background\ncat\ndog\n")
    for split, names in (("train", "abcd"), ("val", "ef")):
        (root / f"voc/ImageSets/Segmentation/{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            Image.fromarray(random.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(
                root / f"voc/JPEGImages/{name}.jpg"
            )
            Image.fromarray(random.integers(0, 3, (16, 16), dtype=np.uint8)).save(
                root / f"voc/SegmentationClass/{name}.png"
            )
    tree = {**TINY, "data": {"name": "voc_folder", "root": str(root / "voc"), "size": [16, 16]}}
    train(parse(None, {**tree, "training": {**TINY["training"], "output_dir": str(root / "run")}}, "segmentation"))
    return root


@pytest.mark.parametrize(
    "classes", [["background", "cat", "dog", "owl"], ["background", "cat", "fox"], ["background", "dog", "cat"]]
)
def test_a6_other_classes(
    segmenter: Path, classes: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (segmenter / "voc/classes.txt").write_text("".join(f"{name}\n" for name in classes))
    try:
        assert main(["evaluate", str(segmenter / "run")]) == 2
        error = capsys.readouterr().err
        both = f"[background, cat, dog] (got [{', '.join(classes)}]"
        assert both in error and error.count("\n") == 1
        assert not (segmenter / "run/evaluation-val").exists()
        blocks, problems = masks.mask_blocks(read_runs([segmenter / "run"]), count=1)
        assert blocks == [] and both in problems[0]
    finally:
        (segmenter / "voc/classes.txt").write_text("background\ncat\ndog\n")


def test_a6_labels_of_a_denoiser(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_run(trained)
    assert loaded.diffusion is not None
    loaded.images.labels = [*loaded.images.labels[1:], loaded.images.labels[0]]
    monkeypatch.setattr("unetdiff.evaluation.load_run.split_of", lambda *_: loaded.images)
    with pytest.raises(UserError, match="must have the classes of the model in their order.*differ from index 0"):
        load_run(trained)


def test_a6_long_lists_are_cut_around_the_difference() -> None:
    names = [f"c{index}" for index in range(255)]
    with pytest.raises(UserError, match=r"\[… c200, .*\(255 classes\) \(got \[… x, c201") as caught:
        require_same_classes(names, [*names[:200], "x", *names[201:]], "run")
    assert len(str(caught.value)) < 500


def test_a7_two_classes_of_one_name(in_memory_masks: Any) -> None:
    with pytest.raises(UserError, match="distinct names .got 'other' twice"):
        evaluate_segmenter(lambda images: [], in_memory_masks(["background", "other", "other"]))


@pytest.fixture
def in_memory_masks() -> Callable[[list[str]], Any]:
    """A dataset with classes of these names, and no images."""

    class Empty:
        palette = np.zeros((3, 3), np.uint8)

        def __init__(self, classes: list[str]) -> None:
            self.classes = classes

        def __len__(self) -> int:
            return 0

    return Empty


# -------------------------------------------------------------------------------------- images of records (A21)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "link.png", "notes.png", "pipe.png", "a\0.png"])
def test_a21_images_of_a_record(tmp_path: Path, name: str) -> None:
    one_record(folder := tmp_path / "record")
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "notes.png").write_text("not an image")
    os.mkfifo(folder / "pipe.png")
    content = json.loads((folder / "record.json").read_text())
    content["parts"][3]["rows"][0][1] = [name]
    (folder / "record.json").write_text(json.dumps(content))
    with pytest.raises(FileError, match="leads out of|not a valid path|must be an image|not a regular file"):
        write_report([], tmp_path / "page.html", experiments=[folder])
    assert not (tmp_path / "page.html").exists()


# ------------------------------------------------------------------------------------------------ outputs (B4)


def test_b4_outputs_are_tested_before_the_work(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(*_: object, **__: object) -> None:
        pytest.fail("the work began")

    for name in ("unetdiff.evaluation.evaluate.load_run", "unetdiff.reports.report.read_runs"):
        monkeypatch.setattr(name, work)
    monkeypatch.setattr("unetdiff.experiments.agreement.run", work)
    (tmp_path / "file").touch()
    (tmp_path / "page.html").mkdir()
    for words in (
        ["evaluate", run, "--output", tmp_path / "file"],
        ["evaluate", run, "--output", tmp_path / "file" / "below"],
        ["evaluate", run, "--output", tmp_path / ("n" * 300)],
        ["compare", run, "--output", tmp_path / "file" / "page.html"],
        ["compare", run, "--output", tmp_path / "page.html"],
        ["experiment", "agreement", run, "--output", tmp_path / "file"],
    ):
        assert main([str(word) for word in words]) == 2
        error = capsys.readouterr().err
        assert "--output=" in error and error.count("\n") == 1, words


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_b4_a_failed_write_is_one_line_and_keeps_the_old_page(
    run: Path,
    tmp_path: Path,
    plain_page: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: int,
) -> None:
    page = tmp_path / "page.html"
    assert main(["compare", str(run), "--output", str(page)]) == 0
    before = page.read_bytes()
    capsys.readouterr()

    def full(path: Path, text: str) -> None:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(report, "write_text", full)
    assert main(["compare", str(run), "--output", str(page)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "page.html" in error and "Give another --output" in error
    assert page.read_bytes() == before and not list(tmp_path.glob(".writing-*"))


def test_b4_a_page_that_cannot_be_made_keeps_both_files(
    run: Path, tmp_path: Path, plain_page: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = write_report([run], tmp_path / "page.html")
    before = [file.read_bytes() for file in (page, page.with_suffix(".json"))]

    def fail(*_: object, **__: object) -> str:
        raise UserError("no")

    monkeypatch.setattr(report, "render", fail)
    with pytest.raises(UserError):
        write_report([run], page, title="another")
    assert [file.read_bytes() for file in (page, page.with_suffix(".json"))] == before


# ------------------------------------------------------------------------------------------------- NaN (B9)


def test_b9_no_json_that_we_write_holds_nan(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run, an evaluation with a sweep, a page and a record; classes that never occur have no IoU."""
    quick = partial(train_classifier, config=ClassifierConfig(steps=1))
    monkeypatch.setattr("unetdiff.evaluation.feature_extractors.train_classifier", quick)
    config = EvaluationConfig(1, 1, num_neighbors=1, sweep=SweepConfig((1,)), features=())
    result = evaluate.evaluate(trained, output=tmp_path / "evaluation", config=config)
    metrics = json.loads((result.output / "metrics.json").read_text())
    for name, iou in result.metrics["segmentation/iou_per_class"].items():
        assert metrics["segmentation/iou_per_class"][name] == (None if iou != iou else iou)
    page = write_report([trained], tmp_path / "page.html", budget=SMALL)
    one_record(tmp_path / "record")
    cached_result(tmp_path / "result.json", {"a": float("nan")}, lambda: {"b": float("inf")})
    written = [
        file for folder in (trained, tmp_path) for file in folder.rglob("*.json*") if "tfevents" not in file.name
    ]
    assert page.with_suffix(".json") in written and {f.name for f in written} >= {"sweep.json", "summary.json"}
    for file in written:
        for line in file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]:
            json.loads(line, parse_constant=lambda name, file=file: pytest.fail(f"{name} in {file}"))


# ------------------------------------------------------------------------------------------ hostile names (C)


def test_c_dollar_in_names(run: Path, tmp_path: Path) -> None:
    name = "$x_{1 \\frac$ <script>alert(1)</script>"
    chart = Chart(name, name, name, [Line("$\\bad", [1.0], [Value(1.0)]), Line(name, [1.0], [Value(2.0)])])
    svg, _ = draw_chart(chart, "a")
    assert "<script>" not in svg
    hostile = run.rename(run.with_name("$a_{b <b>c"))
    one_record(tmp_path / "record")
    record = replace(read_record(tmp_path / "record"), parts=[chart], title=name, findings=[name])
    write_record(record, tmp_path / "record")
    page = write_report([hostile], tmp_path / "page.html", budget=SMALL, experiments=[tmp_path / "record"], title=name)
    text = page.read_text()
    assert "<script>alert" not in text and "<b>c" not in text and "&lt;b&gt;c" in text


# --------------------------------------------------------------------------------------------------- caches


def labelled(count: int = 20) -> Any:
    """Images of two classes that a classifier is trained on."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 8, 8), generator=generator).to(torch.uint8)
    return [{"image": image, "label": index % 2} for index, image in enumerate(images)]


@pytest.mark.parametrize("damage", ["truncated", "text", "hash", "folder", "other dtype", "pipe", "none"])
def test_b8_a_damaged_cache_is_computed_again(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, place = ClassifierConfig(steps=1, batch_size=4), tmp_path / "cache" / "classifier"
    first = train_classifier(labelled(), 2, place, config)
    tensors, facts = place.with_name("classifier.safetensors"), place.with_name("classifier.json")
    if damage == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:100])
    elif damage == "text":
        facts.write_bytes(b"\xff\xfe{")
    elif damage == "hash":
        facts.write_text(json.dumps({**json.loads(facts.read_text()), "sha256": 3}))
    elif damage in ("folder", "pipe"):
        facts.unlink()
        facts.mkdir() if damage == "folder" else os.mkfifo(facts)
    elif damage == "other dtype":
        network = ClassifierNetwork(2).double()
        cache.save_cache(place, network.state_dict(), first.fingerprint, num_classes=2)
    loaded = Classifier.load(place, first.fingerprint)
    error = capsys.readouterr().err
    if damage == "none":
        assert loaded is not None and error == ""
    elif damage in ("folder", "pipe"):
        assert loaded is None
    else:
        assert loaded is None and error.count("\n") == 1 and "It is computed again." in error
    again = train_classifier(labelled(), 2, place, config)
    assert torch.equal(again.network.head.weight, first.network.head.weight)


def test_b8_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cache").touch()
    train_classifier(labelled(), 2, tmp_path / "cache" / "classifier", ClassifierConfig(steps=1, batch_size=4))
    assert cached_result(tmp_path / "cache" / "result.json", {}, lambda: {"a": 1}) == {"a": 1}
    error = capsys.readouterr().err
    assert error.count("\n") == 2 and error.count("It is not kept for the next time.") == 2


def test_b8_an_edited_result_is_measured_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "result.json"
    for content in (b"", b"[]", b'{"settings": {}}', b'{"settings": {}, "result": {"a": 2}}', b"\xff", b"[" * 100_000):
        file.write_bytes(content)
        assert cached_result(file, {}, lambda: {"a": 1}) == {"a": 1}, content
        assert capsys.readouterr().err.count("\n") <= 1
    assert cached_result(file, {}, lambda: pytest.fail("measured again")) == {"a": 1}


# ------------------------------------------------------------------------------------------- compare, options


def test_c_runs_that_do_not_fit_their_records(run: Path, tmp_path: Path, plain_page: None) -> None:
    def notices() -> str:
        page = write_report([run], tmp_path / "page.html", budget=SMALL)
        return "\n".join(re.findall(r'<p class="notice">(.*?)</p>', page.read_text()))

    assert notices() == ""
    (run / "metrics.jsonl").write_text('{"kind": "validation", "step": 900}\n')
    assert "ends at step 900, its summary.json at step 2" in notices()
    (run / "metrics.jsonl").unlink()
    assert "has no metrics.jsonl" in notices()
    shutil.rmtree(run / "best")
    assert "no weights" not in notices()  # latest/ is there
    shutil.rmtree(run / "latest")
    assert "has no weights (neither best/ nor latest/)" in notices()
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "task": "diffusion"}))
    assert "its config.yaml is of task joint, its summary.json of task diffusion" in notices()


def test_c_broken_weights_are_left_out_with_a_line(run: Path, trained: Path, tmp_path: Path) -> None:
    weights = run / "best/unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    page = write_report([run, trained], tmp_path / "page.html", budget=SMALL)
    text = page.read_text()
    assert "its masks are missing" in text and "its samples are missing" in text
    result = json.loads(page.with_suffix(".json").read_text())
    assert [one["class_consistency"] is None for one in result["runs"]] == [True, False]


def test_c_two_runs_of_one_name(run: Path, tmp_path: Path, plain_page: None) -> None:
    other = Path(shutil.copytree(run, tmp_path / "b" / "run"))
    assert len({one.name for one in read_runs([run, other])}) == 2
    assert isinstance(read_runs([run, other])[0], Run)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--num_distance_samples", "1000000000000"),
        ("--samples_per_class", "1000000000000"),
        ("--num_neighbors", "100000000"),
        ("--num_worst", "1000000000000"),
        ("--guidance_scale", "nan"),
        ("--guidance_scale", "inf"),
        ("--sweep", "guidance_scale=nan"),
        ("--seed", str(1 << 64)),
        ("--seed", "-1"),
    ],
)
def test_c_numbers_of_an_evaluation(
    trained: Path, option: str, value: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unetdiff.evaluation.evaluate.load_run", lambda *_: pytest.fail("the work began"))
    assert main(["evaluate", str(trained), option, value]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and value.removeprefix("guidance_scale=") in error


@pytest.mark.parametrize(
    "words", [["--num_images", "1000000000000"], ["--guidance_scales", "nan"], ["--seed", "-1"], ["--num_rows", "-1"]]
)
def test_c_numbers_of_an_experiment(trained: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment", "agreement", str(trained), *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words[0] in error


def test_c_a_directory_of_another_model_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps({"_class_name": "VQModel", "sample_size": 32}))
    assert main(["evaluate", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "got VQModel" in error and error.count("\n") == 1


def test_a7_tables_are_by_index(segmenter: Path, tmp_path: Path) -> None:
    result = evaluate.evaluate(segmenter / "run", output=tmp_path / "out").segmentation
    assert result is not None
    result.evaluation.write_table(tmp_path / "table.csv")
    rows = (tmp_path / "table.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [["0", "background"], ["1", "cat"], ["2", "dog"]]
