"""Random numbers as a function of what they are for, never of what was drawn before.

Every draw comes from a counter-based generator (Philox, Salmon et al. 2011) whose key is (seed,
purpose) and whose counter is (step, index of the sample in the global batch). So a resumed run, a
run split over processes and a run in micro-batches all see the same numbers.
"""

import hashlib

import numpy as np


def stream(seed: int, purpose: str, step: int = 0, sample: int = 0) -> np.random.Generator:
    """Return the generator of one sample at one step.

    Args:
        seed: the run's seed.
        purpose: what the numbers are for, such as ``"pretrain"``; separate purposes never share
            numbers.
        step: the step, or the epoch for a permutation.
        sample: the index of the sample in the global batch.
    """
    digest = hashlib.sha256(purpose.encode()).digest()
    key = np.array([seed, int.from_bytes(digest[:8], "little")], dtype=np.uint64)
    counter = np.array([0, 0, step, sample], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
