"""The idx files of MNIST and Fashion-MNIST."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unetdiff.errors import FileError
from unetdiff.files.texts import read_bytes

MAX_IDX_BYTES = 1 << 28
"""Largest idx file, unpacked; Fashion-MNIST's have 47 million bytes."""


def read_idx(path: Path, dimensions: int) -> Tensor:
    """An idx file of bytes (MNIST's format), gzipped or not: big-endian magic number, one size per dimension, bytes."""
    remedy = "Download it again."
    data = read_bytes(path, MAX_IDX_BYTES, remedy)
    try:
        file: Any = gzip.GzipFile(fileobj=io.BytesIO(data)) if path.suffix == ".gz" else io.BytesIO(data)
        header = file.read(4 + 4 * dimensions)
        shape = np.frombuffer(header, ">u4", -1, 4).tolist() if len(header) == 4 + 4 * dimensions else []
        length = math.prod(shape)
        if header[:4] != bytes([0, 0, 8, dimensions]) or length > MAX_IDX_BYTES:
            raise FileError.of(path, "not a complete idx file of bytes", remedy)
        content = file.read(length + 1)  # not more: a small file may hold a lot of zeros
    except (OSError, EOFError, zlib.error) as error:
        raise FileError.of(path, f"cannot be read ({error})", remedy) from None
    if len(content) != length:
        raise FileError.of(path, "not a complete idx file of bytes", remedy)
    return torch.from_numpy(np.frombuffer(content, np.uint8).reshape(shape).copy())
