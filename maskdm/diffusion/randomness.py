"""Random numbers as a function of what they are for, never of what was drawn before.

Every draw comes from a counter-based generator (Philox, Salmon et al. 2011) whose key is (seed,
purpose) and whose counter is (step, index of the sample in the global batch). So a resumed run, a
run split over processes and a run in micro-batches all see the same numbers.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor


def stream(seed: int, purpose: str, step: int = 0, sample: int = 0) -> np.random.Generator:
    """Return the generator of one sample at one step.

    Args:
        seed: the run's seed.
        purpose: what the numbers are for, such as ``"pretrain"``; separate purposes never share
            numbers.
        step: the step, or the epoch for a permutation.
        sample: the index of the sample in the global batch.
    """
    return next(streams(seed, purpose, step, [sample]))


def streams(
    seed: int, purpose: str, step: int, samples: Iterable[int]
) -> Iterator[np.random.Generator]:
    """Yield the generator of each of some samples at one step, as ``stream`` returns it.

    It is one generator, moved to the start of one stream after the other, since making one asks the
    system for entropy, to throw it away: draw all that a sample needs before you ask for the next.
    """
    digest = hashlib.sha256(purpose.encode()).digest()
    key = np.array([seed, int.from_bytes(digest[:8], "little")], dtype=np.uint64)
    bits = np.random.Philox(key=key)
    random, start = np.random.Generator(bits), bits.state
    counter = start["state"]["counter"]
    counter[2] = step
    for sample in samples:
        counter[3] = sample
        bits.state = start
        yield random


def normal(
    seed: int, purpose: str, step: int, samples: Sequence[int], shape: Sequence[int]
) -> Tensor:
    """Return standard normal numbers, ``(len(samples), *shape)`` float32, a stream a sample.

    Args:
        seed: as in ``stream``.
        purpose: as in ``stream``.
        step: as in ``stream``.
        samples: the indices of the samples.
        shape: of what each of them gets.
    """
    draws = np.empty((len(samples), *shape), np.float32)
    for draw, random in zip(draws, streams(seed, purpose, step, samples), strict=True):
        random.standard_normal(out=draw, dtype=np.float32)
    return torch.from_numpy(draws)
