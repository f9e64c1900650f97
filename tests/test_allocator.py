"""What a step frees, the next one gets back without asking the system for it."""

import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = """
import resource
import sys
import numpy as np
from maskdm.allocator import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    held = [np.ones(2**20) for _ in range(16)]  # 8 MiB each

step()
before = faults()
for _ in range(4):
    step()
print(faults() - before)
"""
PAGES = 4 * 16 * 2**23 // 4096  # that four steps touch


def faults(how):
    command = [sys.executable, "-c", FAULTS, how]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path.cwd())
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is asked for")
def test_memory_that_was_freed_is_not_asked_for_again():
    assert faults("given back") > 0.2 * PAGES
    assert faults("kept") < 0.01 * PAGES
