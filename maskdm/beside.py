"""Threads for what goes on beside training: states are written, batches made for an accelerator.

torch would start threads of its own in each of them, as many as there are cores. OpenMP, once it
has more threads than cores, lets all of them sleep at the end of every operation instead of waiting
awake, those that train too: steps of the demo took a half longer from the first save on.
"""

from concurrent.futures import ThreadPoolExecutor

import torch


def threads_beside(count: int, name: str) -> ThreadPoolExecutor:
    """Return ``count`` threads in which torch computes with no further ones.

    Args:
        count: how many.
        name: what their names begin with.
    """
    return ThreadPoolExecutor(count, name, torch.set_num_threads, (1,))
