"""Tests compute little: on one thread they, and what they start, are faster than on several."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
