"""Background threads: checkpoints are written and batches made while training goes on.

torch would start as many threads of its own as there are cores in each of them. Once OpenMP has
more threads than cores, it lets all of them sleep at the end of every operation instead of waiting
awake, the training ones too: steps of the demo took half as long again from the first save on.
"""

from concurrent.futures import ThreadPoolExecutor

import torch


def background_threads(count: int, name: str) -> ThreadPoolExecutor:
    """Return ``count`` threads in which torch computes without starting further ones.

    Args:
        count: how many.
        name: the beginning of their names.
    """
    return ThreadPoolExecutor(count, name, torch.set_num_threads, (1,))
