"""A tiny set in VOC's layout, and tiny archives of VOC 2012 and SBD as torchvision would fetch them."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_array
from torchvision.datasets import SBDataset
from torchvision.datasets.utils import calculate_md5
from torchvision.datasets.voc import DATASET_YEAR_DICT

CLASSES = ["ground", "tree", "house", "car"]
COLORS = [(10, 20, 30), (0, 200, 0), (200, 0, 0), (0, 0, 200)]


def save_mask(path: Path, values: np.ndarray) -> None:
    mask = Image.fromarray(values.astype(np.uint8), mode="P")
    mask.putpalette(np.resize(np.array(COLORS, np.uint8), (256, 3)).tobytes())
    mask.save(path)


@pytest.fixture
def voc_set(tmp_path: Path) -> Path:
    """Six images of 40x30 with 4 classes and void: a0..a3 train, b0 and b1 val."""
    return make_voc(tmp_path / "set")


@pytest.fixture
def make_mask() -> Callable[[Path, np.ndarray], None]:
    return save_mask


def make_voc(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    splits = {"train": ["a0", "a1", "a2", "a3"], "val": ["b0", "b1"]}
    for split, names in splits.items():
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            smooth = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((40, 30))
            smooth.save(root / "JPEGImages" / f"{name}.jpg")
            values = rng.integers(0, 4, (30, 40))
            values[:3] = 255
            save_mask(root / "SegmentationClass" / f"{name}.png", values)
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root


VOC_TRAIN, VOC_VAL = ["2007_01", "2007_02"], ["2007_03", "2007_04"]
SBD_TRAIN, SBD_VAL = ["2007_01", "2007_03", "2008_05", "2008_06"], ["2007_04", "2008_07"]  # both overlap VOC's val
TRAINAUG = ["2007_01", "2007_02", "2008_05", "2008_06", "2008_07"]


class Net:
    """A web server with tiny archives of VOC and SBD; of what torchvision knows, address and md5 alone are replaced."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.voc, self.sbd = folder / "VOCtrainval_11-May-2012.tar", folder / "benchmark.tgz"
        _pack(_make_voc_2012(folder / "voc"), self.voc, "w")
        _pack(_make_sbd(folder / "sbd"), self.sbd, "w:gz")
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        known = {"url": self.url + self.voc.name, "md5": calculate_md5(self.voc)}
        monkeypatch.setitem(DATASET_YEAR_DICT, "2012", DATASET_YEAR_DICT["2012"] | known)
        monkeypatch.setattr(SBDataset, "url", self.url + self.sbd.name)
        monkeypatch.setattr(SBDataset, "md5", calculate_md5(self.sbd))
        monkeypatch.setenv("no_proxy", "127.0.0.1")

    def down(self) -> None:
        """From now on connections are refused."""
        self.server.shutdown()
        self.server.server_close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Net]:
    (tmp_path / "net").mkdir()
    net = Net(tmp_path / "net", monkeypatch)
    yield net
    net.down()


def _pack(folder: Path, archive: Path, mode: str) -> None:
    with tarfile.open(archive, mode) as tar:  # type: ignore[call-overload]
        for part in folder.iterdir():
            tar.add(part, part.name)


def _make_voc_2012(base: Path) -> Path:
    root, rng = base / "VOCdevkit" / "VOC2012", np.random.default_rng(0)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for split, names in {"train": VOC_TRAIN, "val": VOC_VAL, "trainval": VOC_TRAIN + VOC_VAL}.items():
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
    for name in sorted({*VOC_TRAIN, *VOC_VAL, *SBD_TRAIN, *SBD_VAL}):
        image = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((20, 16))
        image.save(root / "JPEGImages" / f"{name}.jpg")
    for name in VOC_TRAIN + VOC_VAL:
        values = rng.integers(0, 21, (16, 20))
        values[:2] = 255
        save_mask(root / "SegmentationClass" / f"{name}.png", values)
    return base


def _make_sbd(base: Path) -> Path:
    root, rng = base / "benchmark_RELEASE" / "dataset", np.random.default_rng(1)
    for folder in ("cls", "img", "inst"):
        (root / folder).mkdir(parents=True)
    (root / "train.txt").write_text("\n".join(SBD_TRAIN) + "\n")
    (root / "val.txt").write_text("\n".join(SBD_VAL) + "\n")
    for name in SBD_TRAIN + SBD_VAL:
        Image.fromarray(rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)).save(root / "img" / f"{name}.jpg")
        save_mat(root / "cls" / f"{name}.mat", rng.integers(0, 21, (16, 20)).astype(np.uint8))
    return base


def save_mat(path: Path, values: np.ndarray) -> None:
    """A file as in SBD's cls: a struct of boundaries, segmentation and the categories that are there."""
    boundaries = np.empty((20, 1), object)
    for i in range(20):
        boundaries[i, 0] = csc_array((values == i + 1).astype(np.uint8))
    categories = np.unique(values[values > 0])[:, None]
    whole = {"Boundaries": boundaries, "Segmentation": values, "CategoriesPresent": categories}
    savemat(path, {"GTcls": whole}, do_compression=True)


@pytest.fixture
def make_mat() -> Callable[[Path, np.ndarray], None]:
    return save_mat
