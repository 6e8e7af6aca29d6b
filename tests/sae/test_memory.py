"""The allocator policy: on glibc it can be set, and large buffers then come from memory that is kept."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from sae_steer_retriever.sae.malloc import keep_large_buffers

FAULTS = """
import os, resource, sys
import numpy as np
from sae_steer_retriever.sae.malloc import keep_large_buffers
if sys.argv[1] == "kept":
    assert keep_large_buffers()
def loop():
    for _ in range(20):
        np.ones(48 * 2**20, dtype=np.uint8)  # more than glibc keeps of itself
loop()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
loop()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a policy of glibc's allocator")
def test_large_buffers_are_not_faulted_in_again() -> None:
    faults = {
        how: int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)
        for how in ("given back", "kept")
    }
    assert faults["given back"] > 100, "the default has changed: is the policy still needed?"
    assert faults["kept"] < faults["given back"] / 10


@pytest.mark.skipif(platform.libc_ver()[0] == "glibc", reason="glibc has the policy")
def test_elsewhere_nothing_is_done() -> None:
    assert keep_large_buffers() is False
