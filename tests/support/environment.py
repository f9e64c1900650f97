"""The environment of the tests and of what they start: not the caller's.

Imported first of all: torch reads the number of threads when it is loaded.
"""

import os
import re

# On one thread tests, which compute little, are faster than on several.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["DVC_NO_ANALYTICS"] = "1"  # or each command leaves a process that sends them
os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1"  # where the tests' servers are

# What a shell, a cluster, a git hook or make has set for somebody else.
FOREIGN = re.compile(
    "MASKDM_.*|RANK|LOCAL_RANK|WORLD_SIZE|MASTER_.*|SLURM_.*|GIT_.*|DVC_(ROOT|EXP_.*)"
    "|MAKEFLAGS|MFLAGS|MAKELEVEL|TORCH"
)
for name in filter(FOREIGN.fullmatch, list(os.environ)):
    del os.environ[name]
