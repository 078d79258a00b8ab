"""Lists, tables and archives of datasets: encodings, repeated names, paths that lead elsewhere, damaged files."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from unetdiff.cli.main import main
from unetdiff.data.build import build_dataset
from unetdiff.data.check import check, require_clean
from unetdiff.data.config import DataConfig, ScenesConfig
from unetdiff.data.download import unpack
from unetdiff.data.masks.voc_lists import list_pairs
from unetdiff.data.scenes import Scenes
from unetdiff.errors import FileError, UserError


def png(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def voc(voc_layout: Callable[..., Path]) -> Path:
    masks = {name: np.zeros((8, 8), np.uint8) for name in ("a0", "a1", "b0")}
    return voc_layout(["ground", "tree"], {"train": {n: masks[n] for n in ("a0", "a1")}, "val": {"b0": masks["b0"]}})


def refused(config: DataConfig, masks: bool = False) -> str:
    """The one line with which `data check` and training refuse a dataset."""
    lines = []
    for full in (True, False):
        try:
            lines += [str(issue) for issue in check(config, masks, full, progress=False)[:1]]
        except UserError as error:
            lines.append(str(error))
    with pytest.raises(UserError) as caught:
        require_clean(config, masks)
        build_dataset(config, "train", masks)
    assert lines and all(str(caught.value).startswith(line) and line.isprintable() for line in lines)
    return lines[0]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("classes.txt", b"background\nother\nother\n", "classes.txt, line 3: class 'other' repeats that of .*line 2"),
        ("classes.txt", "background\ntree".encode("utf-16"), r"classes.txt: must be UTF-8 \(got UTF-16"),
        (
            "classes.txt",
            "background\ntreé".encode("latin-1"),
            r"must be UTF-8 \(got another encoding, byte 14 in",
        ),
        ("classes.txt", b"background\n\x1b[31mtree", r"classes.txt, line 2: class name '.x1b\[31mtree' has control"),
        ("train", "a0\na1".encode("utf-16"), r"train.txt: must be UTF-8 \(got UTF-16"),
        ("train", "a0\né".encode("latin-1"), r"train.txt: must be UTF-8 \(got another encoding, byte 3 in line 2"),
        ("train", b"\n\n", "train.txt: no ids found"),
        ("train", b"a0\n../../a1\n", "train.txt, line 2: '../../a1' leads out of this folder"),
        ("train", b"a0\n/etc/passwd\n", "train.txt, line 2: '/etc/passwd' leads out"),
        ("train", b"a0\na\0b\n", r"train.txt, line 2: the name 'a.x00b' is not a valid path"),
        ("train", b"a0\n" + b"x" * 400, "file not found"),
        ("train", b"a0\n./b0\n", r"1 id\(s\) also in the split 'val'"),
    ],
)
def test_a7_a13_lists_of_classes_and_ids(voc: Path, file: str, content: bytes, message: str) -> None:
    path = voc / file if "." in file else voc / f"ImageSets/Segmentation/{file}.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        raise UserError(refused(DataConfig(name="voc_folder", root=str(voc)), masks=True))


def test_a13_bom_in_lists(voc: Path) -> None:
    (voc / "classes.txt").write_bytes("\ufeffbackground\r\ntree\r\n".encode())
    (voc / "ImageSets/Segmentation/train.txt").write_bytes("\ufeffa0\r\na1".encode())
    config = DataConfig(name="voc_folder", root=str(voc))
    assert check(config, progress=False) == []
    data = build_dataset(config, "train", True)
    assert data.classes == ["background", "tree"] and [data.sample_name(i) for i in range(2)] == ["a0", "a1"]


def test_a13_names_that_are_not_utf8(voc: Path) -> None:
    with open(os.fsencode(voc / "JPEGImages") + b"/\xff.jpg", "wb"):
        pass
    assert "its name is not valid UTF-8" in refused(DataConfig(name="voc_folder", root=str(voc)), masks=True)


@pytest.mark.parametrize(("folder", "suffix"), [("JPEGImages", ".png"), ("SegmentationClass", ".bmp")])
def test_a14_two_files_of_one_id(voc: Path, folder: str, suffix: str) -> None:
    (voc / folder / f"a0{suffix}").write_bytes(png())
    message = refused(DataConfig(name="voc_folder", root=str(voc)), masks=True)
    assert f"a0{suffix}" in message and "a0." in message.replace(f"a0{suffix}", "")


def test_a7_classes_given_in_python(voc: Path) -> None:
    from unetdiff.data.masks.voc import VOCFolder

    with pytest.raises(FileError, match=r"class_names\[2\]: class 'x' repeats that of data.class_names\[1\]"):
        VOCFolder(voc, "train", classes=["a", "x", "x"])


def image_folder(root: Path) -> DataConfig:
    for number, name in enumerate("ab"):
        (root / name).mkdir(parents=True)
        for i in range(3):
            (root / name / f"{i}.png").write_bytes(png(10 * number + i))
    return DataConfig(name="image_folder", root=str(root))


def test_a8_hidden_files_are_no_class_and_no_image(tmp_path: Path) -> None:
    config = image_folder(tmp_path)
    for folder in (tmp_path, tmp_path / "a"):
        (folder / ".ipynb_checkpoints").mkdir()
        (folder / ".ipynb_checkpoints" / "x.png").write_bytes(png(99))
        for name in ("._0.png", "Thumbs.db"):
            (folder / name).write_bytes(b"x")
    (tmp_path / "a" / "sub.jpg").mkdir()
    os.mkfifo(tmp_path / "a" / "pipe.png")
    assert check(config, progress=False) == []
    data = build_dataset(config, "train", False)
    assert data.labels == ["a", "b"] and len(data) == 5


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: (r / "c").mkdir(), "c: no images found"),
        (lambda r: (r / "a").rename(r / "a\x1b[31m"), "has control characters"),
        (lambda r: (r / "a" / "\x1b[31m\n.png").write_bytes(b"x"), r"\x1b[31m\n.png: not an image"),
        (lambda r: open(os.fsencode(r / "a") + b"/\xff.png", "wb").close(), "its name is not valid UTF-8"),
        (lambda r: (r / "a").joinpath("again").symlink_to(r), "duplicate of a training image"),
        (lambda r: (r / "a" / "gone.png").symlink_to(r / "nowhere.png"), "gone.png: file not found"),
    ],
)
def test_c_folders_of_images(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    config = image_folder(tmp_path)
    spoil(tmp_path)
    assert message in refused(config)


def captioned(root: Path, name: str, content: bytes) -> DataConfig:
    for i in range(3):
        (root / f"{i}.png").write_bytes(png(i))
    (root / name).write_bytes(content)
    return DataConfig(name="captioned_folder", root=str(root))


ROWS = b"".join(json.dumps({"file_name": f"{i}.png", "text": "a"}).encode() + b"\n" for i in range(3))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.jsonl", b"\xef\xbb\xbf" + ROWS),
        ("metadata.csv", "\ufefffile_name,text\n0.png,é\n1.png,b\n".encode()),
    ],
)
def test_a13_bom_in_captions(tmp_path: Path, name: str, content: bytes) -> None:
    assert check(captioned(tmp_path, name, content), progress=False) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.jsonl", ROWS.decode().encode("utf-16"), "metadata.jsonl: must be UTF-8 (got UTF-16"),
        (
            "metadata.jsonl",
            ROWS + b'{"file_name": "../x.png", "text": "a"}',
            "image outside of the folder (../x.png)",
        ),
        ("metadata.jsonl", ROWS + b'{"file_name": "/x.png", "text": "a"}', ":4: image outside of the folder (/x.png)"),
        ("metadata.jsonl", ROWS + b'{"file_name": "a\\u0000", "text": "a"}', ":4: image outside of the folder"),
        ("metadata.jsonl", ROWS + b'{"file_name": "%s", "text": "a"}' % (b"x" * 400), ":4: image not found"),
        ("metadata.jsonl", ROWS + b'{"file_name": "\\u001b[31m", "text": "a"}', r"\x1b[31m). Add it"),
        ("metadata.jsonl", ROWS + b'{"file_name": "0.png", "text": "\\ud800"}', "0.png repeated"),
        ("metadata.jsonl", ROWS[:72] + b'{"file_name": "2.png", "text": "\\ud800"}', "caption is not valid Unicode"),
        ("metadata.jsonl", ROWS[:72] + b'{"file_name": "2.png", "text": "a", "text": "b"}', "key 'text' occurs twice"),
        ("metadata.jsonl", ROWS + b"[" * 100_000, ":4: invalid JSON (nested too deeply)"),
        ("metadata.csv", "file_name,text\n0.png,é\n".encode("latin-1"), "must be UTF-8 (got another encoding, byte 21"),
        ("metadata.csv", b"file_name,text,text\n0.png,a,b\n1.png,a,b\n", "column 'text' is named twice"),
        ("metadata.csv", b'file_name,text\n0.png,"a\n1.png,b\n2.png,c\n', "must be CSV (unexpected end of data)"),
        ("metadata.csv", b"file_name,text\n0.png," + b"a" * 200_000, "must be CSV (field larger"),
        ("metadata.parquet", b"PAR1", "metadata.parquet: cannot be read as parquet"),
    ],
)
def test_a13_c_captions(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    assert message in refused(captioned(tmp_path, name, content))


def cells(*more: Any, count: int = 4) -> list[Any]:
    return [{"bytes": png(i), "path": None} for i in range(count - len(more))] + list(more)


def write_table(root: Path, image: Any, names: list[str] | None = None, **columns: Any) -> None:
    table = pa.table({"img": image, **columns})
    if names is not None:
        features = {"img": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, root / "train.parquet")


NOT_UTF8 = pa.StringArray.from_buffers(
    4, pa.py_buffer(np.arange(5, dtype=np.int32).tobytes()), pa.py_buffer(b"a\xffbc")
)
TWO = [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda r: write_table(r, cells(), ["x", "x"], label=TWO), "label names are duplicated"),
        (lambda r: write_table(r, cells(), label=[0, None, 1, 0]), "row 1: class missing (label is empty)"),
        (lambda r: write_table(r, cells(), label=["a", None, "b", "a"]), "row 1: class missing"),
        (
            lambda r: write_table(r, cells(), ["x", "y"], label=[0, -1, 1, 9]),
            "class must be in 0..1 (label: -1)",
        ),
        (lambda r: write_table(r, cells(), label=pa.nulls(4)), "data.label_column=label: must be a column of integers"),
        (lambda r: write_table(r, cells(), label=[0.5, 1, 2, 3]), "a column of integers or strings in train.parquet"),
        (lambda r: write_table(r, cells(), label=cells()), "a column of integers or strings in train.parquet"),
        (lambda r: write_table(r, cells(), label=[[0]] * 4), "a column of integers or strings in train.parquet"),
        (lambda r: write_table(r, cells(), label=NOT_UTF8), "train.parquet: column label must be UTF-8 (byte 0xff)"),
        (lambda r: write_table(r, TWO, label=TWO), "data.image_column=img: must be a column of images"),
        (lambda r: write_table(r, cells(None), label=TWO), "no image in the row"),
        (
            lambda r: write_table(r, cells({"bytes": b"x", "path": None}), label=TWO),
            "cannot be read (not an image)",
        ),
        (
            lambda r: write_table(r, cells({"bytes": None, "path": str(r.parent / "secret.png")}), label=TWO),
            "image outside of the folder",
        ),
        (lambda r: write_table(r, cells({"bytes": None, "path": "../secret.png"}), label=TWO), "outside of the folder"),
        (lambda r: (r / "train.parquet").write_bytes(b"garbage" * 40), "cannot be read as parquet"),
        (lambda r: (r / "train.parquet").write_bytes(b""), "cannot be read as parquet"),
        (lambda r: os.mkfifo(r / "train.parquet"), "a folder with parquet files"),
        (lambda r: write_table(r, cells(count=1), label=[0]), "1 image(s) cannot be split"),
    ],
)
def test_a21_c_parquet(tmp_path: Path, write: Callable[[Path], object], message: str) -> None:
    (tmp_path / "secret.png").write_bytes(png(7))
    (tmp_path / "set").mkdir()
    write(tmp_path / "set")
    assert message in refused(DataConfig(name="parquet", root=str(tmp_path / "set")))


def test_a21_images_named_inside_the_folder_of_a_table(tmp_path: Path) -> None:
    (tmp_path / "in.png").write_bytes(png(7))
    (tmp_path / "._train.parquet").write_bytes(b"x")
    write_table(tmp_path, cells({"bytes": None, "path": "in.png"}), label=TWO)
    assert check(DataConfig(name="parquet", root=str(tmp_path)), progress=False) == []


def test_c_parquet_of_too_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unetdiff.data.captions.MAX_ROWS", 3)
    write_table(tmp_path, cells(), label=TWO)
    assert "at most 3 rows (got 4)" in refused(DataConfig(name="parquet", root=str(tmp_path)))


def test_c_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    (tmp_path / "cache").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    write_table(tmp_path / "set", cells(), label=TWO)
    assert "Set HF_DATASETS_CACHE to a folder" in refused(DataConfig(name="parquet", root=str(tmp_path / "set")))


def write_idx(path: Path, values: np.ndarray, *shape: int) -> None:
    header = struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *(shape or values.shape))
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda i, _: i.write_bytes(i.read_bytes()[:40]), "cannot be read"),
        (lambda i, _: i.write_bytes(i.read_bytes()[:-8] + b"12345678"), "cannot be read (CRC"),
        (lambda i, _: i.write_bytes(b""), "not a complete idx file"),
        (lambda i, _: i.write_bytes(b"not gzip"), "cannot be read"),
        (lambda i, _: i.write_bytes(gzip.compress(bytes(50_000_000), 1)), "not a complete idx file"),
        (lambda i, _: write_idx(i, np.zeros((4, 28, 28)), 2**32 - 1, 28, 28), "not a complete idx file"),
        (lambda _, t: write_idx(t, np.zeros(3)), "a class in 0..9 for each of 4 images"),
        (lambda _, t: write_idx(t, np.full(4, 99)), "a class in 0..9 for each of 4 images"),
        (lambda i, _: (i.unlink(), os.mkfifo(i)), "data.root"),
    ],
)
def test_c_idx_files(tmp_path: Path, spoil: Callable[[Path, Path], object], message: str) -> None:
    for stem in ("train", "t10k"):
        write_idx(tmp_path / f"{stem}-images-idx3-ubyte.gz", np.zeros((4, 28, 28)))
        write_idx(tmp_path / f"{stem}-labels-idx1-ubyte.gz", np.zeros(4))
    config = DataConfig(name="fashion_mnist", root=str(tmp_path))
    assert check(config, progress=False) == []
    spoil(tmp_path / "train-images-idx3-ubyte.gz", tmp_path / "train-labels-idx1-ubyte.gz")
    assert message in refused(config)


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("exit 1",)


def test_c_pickles_of_cifar_are_read_only_if_their_md5_is_right(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]:
        (folder / name).write_bytes(pickle.dumps(Evil()))
    real, pickle.load = pickle.load, lambda *_, **__: pytest.fail("a pickle was read")  # type: ignore[assignment]
    try:
        assert "must contain cifar-10-batches-py" in refused(DataConfig(name="cifar10", root=str(tmp_path)))
    finally:
        pickle.load = real


@pytest.mark.parametrize("key", ["train_images", "val_images"])
def test_c_too_many_scenes_are_refused_before_memory_is_taken(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=f"data.scenes.{key}=2000000000: must be in 1..1,000,000"):
        Scenes("train", ScenesConfig(**{key: 2_000_000_000}))  # type: ignore[arg-type]
    assert main(["train", "segmentation", f"--data.scenes.{key}=2000000000"]) == 2
    assert capsys.readouterr().err.startswith(f"unetdiff: data.scenes.{key}=2000000000: must be")


@pytest.mark.parametrize("name", ["../x", "/tmp/unetdiff-outside", "link/x"])
def test_c_archives_are_unpacked_inside_their_folder(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        archive.addfile(link)
        member = tarfile.TarInfo(name)
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(UserError, match="a.tar: could not be unpacked to"):
        unpack(tmp_path / "a.tar", Path("inner"), tmp_path / "out" / "here")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tar", "out"]
    assert not Path("/tmp/unetdiff-outside").exists()


def test_pairs_follow_the_list(voc: Path) -> None:
    (voc / "ImageSets/Segmentation/train.txt").write_text("a1\na0")
    assert [pair.name for pair in list_pairs(voc, "train")] == ["a1", "a0"]
