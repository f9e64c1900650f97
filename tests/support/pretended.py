"""A GPU that is only pretended: what a CUDA graph could not record shows without one."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class HostToDevice(TorchDispatchMode):
    """Notes the operations that take or give tensors of the host and of a device at once."""

    def __init__(self):
        super().__init__()
        self.copies = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
        # A number may come as a tensor of the host, whose value the kernel is given; not in a copy.
        copies = function.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        if len({t.device.type for t in tensors if t.ndim or copies}) > 1:
            self.copies.append(str(function))
        return result
