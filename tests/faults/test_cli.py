"""Commands on paths, names and streams that no one meant: one line and an exit status, and nothing lost."""

from __future__ import annotations

import argparse
import errno
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from unetdiff.cli import main as entry
from unetdiff.cli.file_names import file_names
from unetdiff.cli.main import COMMANDS, main
from unetdiff.cli.parser import Parser
from unetdiff.cli.predict_inputs import list_images
from unetdiff.cli.streams import TolerantStream
from unetdiff.config.reading import load
from unetdiff.diffusion.conditioning.classes import ClassConditioner
from unetdiff.diffusion.config import DiffusionConfig
from unetdiff.diffusion.objectives import build_scheduler
from unetdiff.diffusion.pipeline import GenerationPipeline
from unetdiff.errors import FileError, UserError
from unetdiff.files.writing import require_writable
from unetdiff.models.unet import UNet
from unetdiff.segmentation.pipeline import SegmentationPipeline

LABELS = ["a b", "a_b", "A_B", "../up", "a/b", "\x1b[31mred", "line\nbreak", "CON", "x" * 80 + "1", "x" * 80 + "2", "ü"]
NETWORK: dict[str, Any] = {"encoder": {"channels": [8, 8]}, "residual": {"layers_per_block": 1, "norm_num_groups": 4}}


@pytest.fixture(autouse=True)
def _threads_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # `main` sets it where it is not set


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("segmenter")
    torch.manual_seed(0)
    unet = UNet(**NETWORK, heads={"segmentation": {"num_classes": 3}})
    SegmentationPipeline(unet, ["background", "ü", "\x1b[31mred"]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("denoiser")
    torch.manual_seed(0)
    unet = UNet(
        **NETWORK,
        conditioning={"cross_attention_dim": 8, "attention_head_dim": 8},
        heads={"diffusion": {}},
        sample_size=8,
    )
    conditioner = ClassConditioner(len(LABELS), 8, labels=LABELS)
    GenerationPipeline(unet, build_scheduler(DiffusionConfig()), conditioner).save_pretrained(folder)
    return folder


class Raises:
    """A command that fails."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def main(self, argv: list[str]) -> int:
        raise self.error


def photo(path: Path, size: tuple[int, int] = (16, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "gray").save(path)
    return path


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The error, which is one printable line."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("unetdiff:")]
    assert len(lines) == 1 and lines[0].isprintable(), lines
    return lines[0]


# ------------------------------------------------------------------------------------------------ file names


def test_a9_names_that_clash_are_numbered() -> None:
    names = file_names(LABELS)
    assert names[:3] == ["a_b", "a_b-2", "A_B-3"]
    assert len({name.casefold() for name in names}) == len(LABELS)
    assert all(name not in ("", ".", "..") and "/" not in name and name.isprintable() for name in names)
    assert names[7] == "CON_" and names[8:10] == ["x" * 80, "x" * 80 + "-2"]
    assert max(len(os.fsencode(name)) for name in file_names(["日" * 300, "😀" * 300, "\ud800"])) <= 180


def test_a9_every_image_is_written(denoiser: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "sample",
        str(denoiser),
        "--num_images",
        "2",
        "--num_inference_steps",
        "1",
        "--output",
        str(tmp_path / "s"),
    ]
    assert main(words) == 0
    assert len(list((tmp_path / "s" / "images").iterdir())) == 2 * len(LABELS)
    assert main([*words[:-1], str(tmp_path / "t"), "--class", "a b", "a_b", "a b"]) == 0
    names = sorted(path.name for path in (tmp_path / "t" / "images").iterdir())
    assert names == [f"{stem}-{index:03d}.png" for stem in ("a_b", "a_b-2", "a_b-3") for index in (0, 1)]
    assert "\x1b" not in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ predict's inputs


def test_a15_predict_leaves_its_own_output_out(
    segmenter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    photo(tmp_path / "x.png")
    photo(tmp_path / "sub" / "y.png")
    for inputs in (["."], ["."], ["**/*.png"], ["*.png", "*/*.png"]):
        assert main(["predict", str(segmenter), *inputs]) == 0
        assert "2 masks" in capsys.readouterr().out
    for _ in range(2):
        assert main(["predict", str(segmenter), "sub", "--output", "sub"]) == 0
        assert "1 masks" in capsys.readouterr().out


def test_c_what_predict_finds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.jpg", "._a.jpg", ".hidden/b.jpg", "__MACOSX/c.jpg", "sub.jpg/d.png", "two/a.png", "Thumbs.db"):
        photo(tmp_path / name) if not name.endswith(".db") else (tmp_path / name).touch()
    (tmp_path / "index.ts").write_text("export const x: number = 1;\n")
    (tmp_path / "clip.ts").write_bytes((b"\x47" + bytes(187)) * 3)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop").symlink_to(tmp_path)
    found = [str(file.relative_to(tmp_path)) for file, _ in list_images([str(tmp_path)])]
    assert found == ["a.jpg", "clip.ts", "sub.jpg/d.png", "two/a.png"]
    assert capsys.readouterr().err.count("index.ts: skipped, not a video") == 1
    found = [str(file.relative_to(tmp_path)) for file, _ in list_images([f"{tmp_path}/**"])]
    assert found == ["a.jpg", "clip.ts", "sub.jpg/d.png", "two/a.png"]
    stems = [str(stem) for _, stem in list_images([str(tmp_path / "a.jpg"), str(tmp_path / "two" / "a.png")])]
    assert stems == ["a", "a-2"]
    for name in ("index.ts", "pipe.png", "nothing\x1b[31m.png", "x" * 300, "a\0b"):
        with pytest.raises(UserError) as caught:
            list_images([str(tmp_path / name)])
        assert str(caught.value).isprintable()


def test_c_unreadable_images_do_not_stop_the_others(
    segmenter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "line\nbreak\x1b[31m.png").write_bytes(b"\x89PNG")
    (tmp_path / "in" / "gone.png").symlink_to("nowhere.png")
    assert main(["predict", str(segmenter), str(tmp_path / "in"), "--output", str(tmp_path / "out")]) == 1
    errors = capsys.readouterr().err
    assert r"line\nbreak\x1b[31m.png" in errors and "gone.png" in errors and "Traceback" not in errors
    assert [path.name for path in (tmp_path / "out" / "masks").iterdir()] == ["good.png"]


# ------------------------------------------------------------------------------------------------ outputs

OUTPUTS = {
    "file": "a folder",
    "file/below": "is a file",
    "x" * 300: "too long",
    "nul\0": "path",
}


@pytest.mark.parametrize("output", OUTPUTS, ids=lambda name: name[:12].replace("\0", ""))
@pytest.mark.parametrize("command", ["predict", "sample", "export", "benchmark", "experiment"])
def test_b4_outputs_are_tested_before_the_work(
    command: str, output: str, segmenter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "file").touch()
    for module in ("segmentation.pipeline.SegmentationPipeline", "models.unet.UNet"):
        monkeypatch.setattr(f"unetdiff.{module}.__call__", lambda *_: pytest.fail("work before the check"))
    image = photo(tmp_path / "x.png")
    path = str(tmp_path / output)
    if command in ("export", "benchmark") and output == "file":
        path = str(tmp_path)  # these write a file
    words = {
        "predict": ["predict", str(segmenter), str(image)],
        "sample": ["sample", str(segmenter)],
        "export": ["export", str(segmenter)],
        "benchmark": ["benchmark", str(segmenter)],
        "experiment": ["experiment", "agreement", str(segmenter)],
    }[command]
    before = sorted(tmp_path.rglob("*"))
    assert main([*words, "--output", path]) == 2
    assert "output" in one_line(capsys)
    assert sorted(tmp_path.rglob("*")) == before


ERRNOS = ["EACCES", "ENOENT", "ENOSPC", "EDQUOT", "EIO", "EROFS", "ENAMETOOLONG", "ENOTDIR", "EISDIR", "EFBIG"]


@pytest.mark.parametrize("name", ERRNOS)
def test_b4_any_error_of_the_system_is_one_line(name: str, monkeypatch: Any, tmp_path: Path, capsys: Any) -> None:
    number = getattr(errno, name)
    for path in (str(tmp_path / "out\x1b.png"), None):
        error = OSError(number, os.strerror(number), path)
        monkeypatch.setattr(entry, "import_module", lambda name, error=error: Raises(error))
        assert main(["sample"]) == 2
        line = one_line(capsys)
        assert os.strerror(number).lower() in line.lower() and ("out" in line or path is None)
        assert line.count(". ") == 1 and line.endswith(".")  # the reason, then the remedy


@pytest.mark.parametrize("name", ["ENOSPC", "EIO", "EDQUOT"])
def test_b4_a_disk_that_fills_while_predicting(
    name: str, segmenter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        photo(tmp_path / "in" / f"{number}.png")
    number, save = getattr(errno, name), Image.Image.save

    def full(self: Image.Image, path: Any, *args: Any, **kwargs: Any) -> None:
        if "1.png" in str(path):
            raise OSError(number, os.strerror(number))
        save(self, path, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "save", full)
    assert main(["predict", str(segmenter), str(tmp_path / "in"), "--output", str(tmp_path / "out")]) == 2
    assert "out/masks/1.png: " + os.strerror(number).lower() in one_line(capsys).lower()
    assert sorted(path.name for path in (tmp_path / "out" / "masks").iterdir()) == ["0.png"]


def test_b4_out_of_memory_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    error = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 10 bytes.\nmore")
    monkeypatch.setattr(entry, "import_module", lambda name: Raises(error))
    assert main(["predict"]) == 2
    assert "out of memory" in one_line(capsys)


# ------------------------------------------------------------------------------------------------ streams


class Broken(io.StringIO):
    """A stream whose reader has gone, or whose disk is full."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))


def test_b6_a_lost_stream_stops_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    done = []

    class Command:
        @staticmethod
        def main(argv: list[str]) -> int:
            print("a result")
            print("progress", file=sys.stderr)
            done.append(argv)
            return 0

    monkeypatch.setattr(entry, "import_module", lambda name: Command)
    for number, status in ((errno.EPIPE, 141), (errno.ENOSPC, 2), (errno.EIO, 2)):
        monkeypatch.setattr(sys, "stdout", Broken(number))
        assert main(["sample"]) == status
        monkeypatch.undo()
        monkeypatch.setattr(entry, "import_module", lambda name: Command)
        monkeypatch.setattr(sys, "stderr", Broken(number))
        assert main(["sample"]) == 0
        monkeypatch.setattr(sys, "stderr", None)
        assert main(["sample"]) == 0
        monkeypatch.undo()
        monkeypatch.setattr(entry, "import_module", lambda name: Command)
    assert len(done) == 9


def test_b6_ascii_terminals_show_escapes() -> None:
    raw = io.BytesIO()
    stream = TolerantStream(io.TextIOWrapper(raw, encoding="ascii"))
    stream.write("Straße 日本 \ud800\n")
    stream.flush()
    assert stream.error is None and raw.getvalue() == rb"Stra\xdfe \u65e5\u672c \ud800" + b"\n"


def test_b6_help_into_a_closed_pipe_and_a_full_disk() -> None:
    command = [sys.executable, "-m", "unetdiff", "--help"]
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (result.returncode, result.stderr) == (141, "")
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (2, "unetdiff: standard output: no space left on device.\n")


# ------------------------------------------------------------------------------------------------ options


@pytest.fixture
def parsers(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Parser]]:
    """The parser of every command, taken when it parses."""
    found: dict[str, Parser] = {}

    def keep(self: Parser, argv: Any = None, namespace: Any = None) -> None:
        found[self.prog] = self
        raise UserError("kept")

    monkeypatch.setattr(Parser, "parse_known_args", keep)
    yield found


def test_c_every_number_of_every_command_is_bounded(
    parsers: dict[str, Parser], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from unetdiff.experiments import EXPERIMENTS

    names = [[name] for name in COMMANDS if name not in ("experiment", "data")]
    names += [["data", action] for action in ("check", "stats", "download")] + [["experiment", n] for n in EXPERIMENTS]
    for words in names:
        main([*words, "--x" if words[0] == "experiment" else "x"])
    monkeypatch.undo()
    capsys.readouterr()
    assert len(parsers) == len(names)
    for parser in parsers.values():
        for action in parser._actions:
            if action.type in (int, float, Path) and action.option_strings:
                option = action.option_strings[0]
                many = action.nargs if isinstance(action.nargs, int) else 1
                for word in ("nan", "inf", "", "1e400", "9" * 5000, "x", str(2**64)):
                    if (action.type is Path and word) or (action.type is float and word == str(2**64)):
                        continue
                    with pytest.raises(UserError) as caught:
                        parser.parse_known_args([option, *[word] * many])
                    message = str(caught.value)
                    assert option in message and message.isprintable() and len(message) < 6000


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["sample", "x", "--num_images", "0"], "--num_images=0: must be at least 1."),
        (["sample", "x", "--num_images", "2000000"], "--num_images=2000000: must be at most 1,000,000."),
        (["sample", "x", "--num_inference_steps", "1000000000"], "--num_inference_steps=1000000000: must be at most"),
        (["sample", "x", "--guidance_scale", "nan"], "--guidance_scale: must be a finite number (got nan)"),
        (["sample", "x", "--guidance_rescale", "2"], "--guidance_rescale=2.0: must be in [0, 1]."),
        (["sample", "x", "--guidance_interval", "0.5,nan"], "must be a finite number (got nan)"),
        (["sample", "x", "--guidance_interval", "0.9,0.1"], "'0.9,0.1': must be two increasing fractions"),
        (["sample", "x", "--seed", "-1"], "--seed=-1: must be at least 0."),
        (["sample", "x", "--frames", "1", "--interpolate_to_seed", "1"], "--frames=1: must be at least 2."),
        (["sample", "x", "--scheduler", "ddmi"], "--scheduler=ddmi: must be one of"),
        (["sample", "x", "--output="], "--output: must be a path (got '')"),
        (["evaluate", "x", "--num_worst", "-1"], "--num_worst=-1: must be"),
        (["evaluate", "x", "--guidance_scale", "inf"], "--guidance_scale: must be a finite number (got inf)"),
        (["benchmark", "x", "--rounds", "0"], "--rounds=0: must be at least 1."),
        (["benchmark", "x", "--batch_sizes", "4", "0"], "--batch_sizes=0: must be at least 1."),
        (["export", "x", "--size", "0", "8"], "--size=0: must be at least 1."),
        (["train", "sgmentation"], "task=sgmentation: must be one of segmentation, diffusion, joint. Did you mean"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_c_numbers_out_of_range(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert part in one_line(capsys)


def test_c_tiles_and_scales(segmenter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(photo(tmp_path / "x.png"))
    for option, value in (
        ("--tile", "-1"), ("--tile", "5000"), ("--tile", "0,5"), ("--tile", "9" * 50), ("--tile", "nan"),
        ("--scales", "nan"), ("--scales", "1e9"), ("--scales", ",".join(["1"] * 100)), ("--overlap", "nan"),
        ("--batch_size", "0"), ("--device", "\x1b[31m"),
    ):  # fmt: skip
        assert main(["predict", str(segmenter), image, f"{option}={value}"]) == 2, (option, value)
        assert option in one_line(capsys)


def test_c_home_folder_in_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    parser = Parser("x", "x")
    parser.add_argument("--output", type=Path)
    group: argparse._ArgumentGroup = parser.add_argument_group("more")
    group.add_argument("--other", type=Path)
    args = parser.parse_strictly(["--output=~/a", "--other", "~/b"])
    assert (args.output, args.other) == (tmp_path / "a", tmp_path / "b")


def test_c_paths_in_messages_are_printable(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["sample", "a\x1b[2J\nb"], ["predict", "a\x1b[2J\nb", "x"], ["compare", "a\x1b[2J\nb"],
                  ["evaluate", "a\x1b[2J\nb"], ["export", "a\x1b[2J\nb"], ["benchmark", "a\x1b[2J\nb"],
                  ["sam\x1b[2Jple"], ["experiment", "a\nb"], ["data", "a\nb"]):  # fmt: skip
        assert main(words) == 2
        assert r"\n" in (line := one_line(capsys)) or r"\x1b" in line
    with pytest.raises(FileError, match="does not exist"):
        load("a\nb")


def test_b4_outputs_that_are_links_to_nowhere(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere/at/all")
    for name in ("loop", "loop/x", "dangling", "dangling/x"):
        for folder in (True, False):
            with pytest.raises(UserError, match="--output=.*must be"):
                require_writable("--output", tmp_path / name, folder)
    for path in ("/dev/null", "/dev/full"):  # would be replaced by a file
        with pytest.raises(UserError, match="a regular file"):
            require_writable("--output", path)


def test_c_long_words(capsys: pytest.CaptureFixture[str]) -> None:
    long, train = "x" * 10**5, ["train", "joint"]
    for words in ([long], ["sample", "x", f"--{long}"], [*train, f"--training.{long}"],
                  [*train, f"--training.steps={long}"], [*train, "x", long]):  # fmt: skip
        assert main(words) == 2
        assert len(one_line(capsys)) < 2100
