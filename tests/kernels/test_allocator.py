"""What is freed stays with the process, or is given back."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from unetdiff.kernels.allocator import keep_freed_memory

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")
PROGRAM = """
import resource, torch
from unetdiff.kernels.allocator import keep_freed_memory
if {keep}: assert keep_freed_memory()
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20): torch.ones(1 << 24)  # until holes of the right size are there
before = faults()
for _ in range(10): torch.ones(1 << 24)
print(faults() - before)
"""


@glibc
def test_large_tensors_are_made_of_what_was_freed() -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    found = [
        int(subprocess.run([sys.executable, "-c", PROGRAM.format(keep=keep)], env=env, capture_output=True, text=True,
                           check=True).stdout)
        for keep in (True, False)
    ]  # fmt: skip
    assert 4 * found[0] < found[1]  # pages that the system had to give


def test_what_the_environment_settles_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    assert not keep_freed_memory()


HOLES = """
import torch
from unetdiff.kernels.allocator import return_freed_memory, keep_freed_memory
def held(): return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmRSS")) >> 10
keep_freed_memory()
tensors = [torch.ones(1 << 18) for _ in range(200)]  # 1 MiB each
del tensors[::2]
before = held()
given = return_freed_memory()
print(before - held() if given else -1)
"""


@glibc
def test_holes_between_tensors_are_given_back() -> None:
    found = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True).stdout
    assert int(found) > 80  # MiB
