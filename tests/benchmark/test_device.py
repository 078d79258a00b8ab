"""Device selection: that of training, unless another is named."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from unetdiff.benchmark.device import select_device
from unetdiff.errors import UserError
from unetdiff.training import runtime


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A machine with a GPU, which is taken unless it is hidden."""
    environment: dict[str, str] = {}
    monkeypatch.setattr("unetdiff.benchmark.device.os", SimpleNamespace(environ=environment))

    def build(config: object) -> SimpleNamespace:
        hidden = environment.get("CUDA_VISIBLE_DEVICES") == "" and environment.get("ACCELERATE_USE_CPU") == "true"
        return SimpleNamespace(device=torch.device("cpu" if hidden else "cuda"))

    monkeypatch.setattr(runtime, "build_accelerator", build)
    return environment


def test_gpu_unless_the_cpu_is_named(environment: dict[str, str]) -> None:
    assert select_device(None) == select_device("cuda") == torch.device("cuda")
    assert select_device("cpu") == torch.device("cpu")


def test_missing_gpu(environment: dict[str, str]) -> None:
    select_device("cpu")
    with pytest.raises(UserError, match="--device=cuda: must be cpu"):
        select_device("cuda")
