"""The door for files: what it reads, what it refuses, and what a failed write leaves."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from unetdiff.errors import FileError, UserError
from unetdiff.files import folders, images, locks, records, tensors, texts, writing


def test_listings_leave_hidden_files_out_and_end_at_links_in_a_circle(tmp_path: Path) -> None:
    for name in ("b.png", "a.PNG", "._a.png", "Thumbs.db", ".ipynb_checkpoints/a.png", "sub/c.png", "sub.jpg/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    assert [p.name for p in folders.files_in(tmp_path, {".png"})] == ["a.PNG", "b.png"]
    assert [p.name for p in folders.files_in(tmp_path, {".png", ".jpg"}, recursive=True)] == ["a.PNG", "b.png", "c.png"]
    assert [p.name for p in folders.folders_in(tmp_path)] == ["sub", "sub.jpg"]


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "", "a\0b", "link/x"])
def test_paths_that_leave_their_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path)
    with pytest.raises(FileError, match="leads out of|not a valid path"):
        folders.inside(tmp_path / "root", name)


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(FileError, match="not a regular file"), images.open_image(tmp_path / "a.png"):
        pass
    with pytest.raises(FileError, match="not a regular file"):
        texts.read_text(tmp_path / "a.png")


def test_text_encodings(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("\ufeffbackground\r\ncat\rdog\n".encode())
    assert texts.read_lines(path) == ["background", "cat", "dog", ""]
    path.write_bytes("a\nb".encode("utf-16"))
    with pytest.raises(FileError, match=r"list.txt: must be UTF-8 \(got UTF-16, byte 0 in line 1\). Save it as UTF-8."):
        texts.read_text(path)
    path.write_bytes("a\né".encode("latin-1"))
    with pytest.raises(FileError, match="another encoding, byte 2 in line 2"):
        texts.read_text(path)
    with pytest.raises(FileError, match="at most 2 bytes"):
        texts.read_text(path, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {steps: 1}\ntraining: {steps: 2}", "key 'training' in line 2 is already in line 1"),
        ("a: &x [*x]", "nested too deeply|recursive"),
        ("a: " + "[" * 60 + "]" * 60, "nested too deeply"),
        ("a: " + "[" * 3000, "nested too deeply|must be YAML"),
        ("a: " + "1" * 5000, "too long"),
        (
            "\n".join(f"k{i}: &k{i} [{', '.join([f'*k{i - 1}'] * 9) if i else 1}]" for i in range(9)),
            "more than 100,000",
        ),
        ("a: {", "must be YAML"),
    ],
)
def test_yaml_is_strict(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(FileError, match=message):
        records.read_yaml(tmp_path / "a.yaml")


def test_yaml_numbers_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    text = "a: [010, 1:30, 1e-3, 1.0e+3, .5, 0x10, -7, 0, 1_000, .inf, 12.]"
    content = records.parse_yaml(text, "a")
    assert content == {"a": ["010", "1:30", 1e-3, 1000.0, 0.5, 16, -7, 0, 1000, float("inf"), 12.0]}


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "1" * 5000, '{"a": 1}{', "\ud800"])
def test_json_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(FileError, match="a.json: must be"):
        records.read_object(tmp_path / "a.json")


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n{"a": 3')
    assert records.read_json_lines(path, torn=True) == [{"a": 1}, {"a": 2}]
    with pytest.raises(FileError, match="metrics.jsonl, line 4: must be JSON"):
        records.read_json_lines(path)


def test_json_is_written_without_nan(tmp_path: Path) -> None:
    records.write_json(tmp_path / "a.json", {"a": [float("nan"), 1.0]})
    assert records.read_json(tmp_path / "a.json") == {"a": [None, 1.0]}


def _png_header(width: int, height: int) -> bytes:
    """A PNG of that size in its header, with the pixels of a much smaller image."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (header, b"IDAT" + zlib.compress(bytes(100)))
    parts = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "must be an image"),
        (b"", "must be an image"),
        (_png_header(60000, 60000), "at most 134,217,728 pixels .got 3,600,000,000"),
        (_png_header(12000, 12000), "at most 134,217,728 pixels .got 144,000,000"),
        (b"P6 60000 60000 255\n", "at most 134,217,728 pixels .got 3,600,000,000"),
    ],
)
def test_images_that_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.jpg").write_bytes(data)
    for source in (tmp_path / "a.jpg", data):
        with pytest.raises(FileError, match=message), images.open_image(source) as image:
            image.load()


def test_a_truncated_image(tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 90).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:900])
    with pytest.raises(FileError, match="a.png: cannot be decoded"), images.open_image(tmp_path / "a.png") as image:
        image.load()


def test_names_with_escape_codes_stay_off_the_terminal(tmp_path: Path) -> None:
    with pytest.raises(FileError) as caught:
        texts.read_text(tmp_path / "a\x1b[31m\nb")
    assert "\x1b" not in str(caught.value) and "\n" not in str(caught.value) and r"\x1b[31m" in str(caught.value)


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 40, -1])
def test_truncated_tensors_are_refused_by_their_header(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.safetensors"
    tensors.write_tensors({"w": torch.ones(2, 3)}, path)
    assert tensors.read_header(path) == {"w": tensors.Entry("F32", (2, 3))}
    assert torch.equal(tensors.read_tensors(path)["w"], torch.ones(2, 3))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FileError, match="safetensors"):
        tensors.read_tensors(path)


@pytest.mark.parametrize("entry", [{"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}, {"dtype": "F32"}, 3])
def test_headers_of_other_dtypes_are_refused(tmp_path: Path, entry: object) -> None:
    header = json.dumps({"w": entry}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(FileError, match="safetensors"):
        tensors.read_header(tmp_path / "a.safetensors")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    writing.write_text(tmp_path / "a.txt", "old")

    def fail(aside: Path) -> None:
        aside.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        writing.write_file(tmp_path / "a.txt", fail)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "old")]


def test_a_directory_is_replaced_or_kept(tmp_path: Path) -> None:
    target = tmp_path / "best"
    writing.replace_directory(target, lambda aside: writing.write_text(aside / "a", "1"))
    with pytest.raises(OSError):
        writing.replace_directory(target, lambda aside: (aside / "no" / "a").write_text("2"))
    assert texts.read_text(target / "a") == "1" and len(list(tmp_path.iterdir())) == 1
    target.rename(tmp_path / ".old-best")  # killed between the two renames ...
    (tmp_path / ".writing-best").mkdir()
    writing.sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["best"]
    (tmp_path / ".old-best").mkdir()  # ... or after them
    writing.sweep(tmp_path)
    assert texts.read_text(target / "a") == "1" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("path", "folder", "message"),
    [
        ("missing/a.json", False, "--output=.*missing/a.json: must be in an existing directory"),
        ("file/a", True, "is a file"),
        ("file", True, "a folder .got a file"),
        (".", False, "a file .got a folder"),
        ("x" * 300, False, "name too long"),
        ("sub/" + "x" * 300, True, "name too long"),
        ("a\0b", False, "writable"),
    ],
)
def test_outputs_that_cannot_be_written(tmp_path: Path, path: str, folder: bool, message: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=message):
        writing.require_writable("--output", tmp_path / path, folder)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_output_that_can_be_written_leaves_no_probe(tmp_path: Path) -> None:
    writing.require_writable("--output", tmp_path / "a" / "b", folder=True)
    writing.require_writable("--output", tmp_path / "a.json")
    assert not list(tmp_path.iterdir())


def test_the_lock_names_the_process_that_holds_it(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from unetdiff.files.locks import locked\n"
        f"with locked(Path({str(tmp_path)!r})): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(FileError, match=f"in use by (process {other.pid}|another process)"), locks.locked(tmp_path):
            pass
        other.kill()
    with locks.locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_an_atomic_write_replaces_no_device_or_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        writing.write_text(tmp_path / "pipe", "x")
    assert [(path.name, path.is_fifo()) for path in tmp_path.iterdir()] == [("pipe", True)]
