"""Tests compute little: on one thread they are faster than on several, and so is what they start."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
