"""What is freed stays with the process, or is given back."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

from unetdiff.kernels.allocator import keep_freed_memory

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")
PROGRAM = """
import json, os, resource, torch
from unetdiff.kernels.allocator import keep_freed_memory, return_freed_memory

def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def held(): return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmRSS")) >> 10

def pages(keep):
    if keep: assert keep_freed_memory()
    for _ in range(20): torch.ones(1 << 24)  # until holes of the right size are there
    before = faults()
    for _ in range(10): torch.ones(1 << 24)
    return faults() - before

def holes():
    keep_freed_memory()
    tensors = [torch.ones(1 << 18) for _ in range(200)]  # 1 MiB each
    del tensors[::2]
    before = held()
    return before - held() if return_freed_memory() else -1

def in_a_process_of_its_own(measure, *arguments):
    reading, writing = os.pipe()
    if not os.fork():
        os.write(writing, json.dumps(measure(*arguments)).encode())
        os._exit(0)
    os.wait()
    os.close(writing)
    return json.loads(os.read(reading, 100))

print(json.dumps({
    "kept": in_a_process_of_its_own(pages, True),
    "not kept": in_a_process_of_its_own(pages, False),
    "given back": in_a_process_of_its_own(holes),
}))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, int]:
    """Pages that the system had to give, with freed memory kept or not; MiB of holes that were given back."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@glibc
def test_large_tensors_are_made_of_what_was_freed(found: dict[str, int]) -> None:
    assert 4 * found["kept"] < found["not kept"]


def test_what_the_environment_settles_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    assert not keep_freed_memory()


@glibc
def test_holes_between_tensors_are_given_back(found: dict[str, int]) -> None:
    assert found["given back"] > 80
