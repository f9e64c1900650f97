"""The loss can be recorded as part of a CUDA graph: it reads no value, copies nothing to the GPU.

No GPU is needed: tensors that only pretend to be on one carry shapes and devices through it. The
networks are tried so in ``test_sparse_middle.py``; a backward pass needs the real thing (``make
gpu``).
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from maskdm.diffusion.loss import denoising_loss, training_times
from maskdm.diffusion.paths import PATHS
from tests.support.pretended import HostToDevice
from tests.support.training import DIFFUSION


@pytest.mark.parametrize("shape", [(), (4,)])
def test_a_copy_from_the_host_is_noted_also_of_a_number(shape):
    with FakeTensorMode(), torch.no_grad(), HostToDevice() as noted:
        there = torch.ones(4, device="cuda:0")
        assert (2 * there).device.type == "cuda"
        assert (torch.tensor(2.0) * there).device.type == "cuda"  # its value is an argument
        assert noted.copies == []
        torch.ones(shape).to(there.device)
        assert len(noted.copies) == 1
        torch.ones(shape, device=there.device).copy_(torch.zeros(shape))
        assert len(noted.copies) == 2


@pytest.mark.parametrize("path", sorted(PATHS))
@pytest.mark.parametrize("loss", ["epsilon", "velocity"])
@pytest.mark.parametrize("shifted", [False, True])
def test_times_and_loss_copy_nothing_from_the_host_and_read_no_value(path, loss, shifted):
    params = DIFFUSION.model_copy(update={"path": path, "loss": loss, "times": "logit-normal"})
    # The tables of discrete paths are real, and on the host, as they are in training.
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        with torch.device("cuda:0"):
            tokens, noise = torch.randn(4, 16, 48), torch.randn(4, 16, 48)
            uniform, shift = torch.rand(4), torch.zeros(()) if shifted else None

        def losses():
            times = training_times(uniform, params, shift)
            return denoising_loss(lambda x, t: x, tokens, noise, times, params)

        losses()  # the first time tables may be copied
        with HostToDevice() as noted:
            assert losses().shape == (4,)
    assert noted.copies == []
