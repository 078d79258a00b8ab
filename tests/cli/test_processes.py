"""The number of processes requested from accelerate's launcher on a CPU."""

from __future__ import annotations

import pytest

from unetdiff.cli import processes


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("/bin/accelerate launch --num_processes 2 --cpu -m unetdiff train segmentation c.yaml", 2),
        ("python -m accelerate.commands.launch --cpu --num_processes=3 -m unetdiff quickstart", 3),
        ("bash", 1),
    ],
)
def test_requested_processes(line: str, count: int) -> None:
    assert processes.requested_processes(line.split()) == count


def test_only_a_lone_process_of_several_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    lone = {"ACCELERATE_USE_CPU": "True", "MASTER_PORT": "29500"}
    assert processes.needs_relaunch(lone)
    for other in ({}, {"ACCELERATE_USE_CPU": "True"}, lone | {"RANK": "0"}, {"MASTER_PORT": "1"}):
        assert not processes.needs_relaunch(other)
    command = processes.torch_launch(2, "29500", ["train", "joint"])
    assert command[command.index("--nproc_per_node") + 1] == "2" and command[-3:] == ["unetdiff", "train", "joint"]
