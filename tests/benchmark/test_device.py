"""Which device is meant: what training takes, unless another is asked for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from unetdiff.benchmark.device import claim
from unetdiff.errors import UserError
from unetdiff.training import runtime as machine


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A machine with a GPU, which is taken unless it is hidden."""
    environment: dict[str, str] = {}
    monkeypatch.setattr("unetdiff.benchmark.device.os", SimpleNamespace(environ=environment))

    def build(config: object) -> SimpleNamespace:
        hidden = environment.get("CUDA_VISIBLE_DEVICES") == "" and environment.get("ACCELERATE_USE_CPU") == "true"
        return SimpleNamespace(device=torch.device("cpu" if hidden else "cuda"))

    monkeypatch.setattr(machine, "build_accelerator", build)
    return environment


def test_the_gpu_unless_the_cpu_is_asked_for(environment: dict[str, str]) -> None:
    assert claim(None) == claim("cuda") == torch.device("cuda")
    assert claim("cpu") == torch.device("cpu")


def test_a_gpu_that_is_not_there(environment: dict[str, str]) -> None:
    claim("cpu")
    with pytest.raises(UserError, match="--device: 'cuda' cannot be used here .* use cpu"):
        claim("cuda")
