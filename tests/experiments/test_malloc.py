"""Freed memory stays with the process, where the C library is glibc."""

import platform
import subprocess
import sys

import pytest
from trials import ROOT

from experiments.train.malloc import keep_large_blocks

# Prints by how many MiB the process shrinks when a tensor of 64 MiB is freed.
SCRIPT = """
import torch
from experiments.train.malloc import keep_large_blocks
{call}
def pages(): return int(open("/proc/self/statm").read().split()[1])
tensor = torch.zeros(2**24).add_(1)
before = pages()
del tensor
print((before - pages()) * 4 // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="for glibc")
def test_freed_blocks_stay_with_the_process():
    def returned(call: str) -> int:
        words = [sys.executable, "-c", SCRIPT.format(call=call)]
        return int(subprocess.check_output(words, cwd=ROOT, text=True))

    assert returned("") >= 60 and returned("keep_large_blocks()") <= 4


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr("ctypes.CDLL", None)
    keep_large_blocks()
