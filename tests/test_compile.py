"""Compilation: once a shape, and never in the way."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._functorch.aot_autograd import aot_module_simplified

from maskdm.backbones.registry import build_backbone
from maskdm.runtime.compile import compile_shapes, with_fallback
from maskdm.runtime.errors import UserError
from maskdm.training.batches import Batches
from maskdm.training.schedule import Schedule
from tests.support.training import MODEL, leg, masked, phase


@pytest.mark.slow
def test_every_visible_count_is_compiled_once(emoji):
    compilations = []

    def count(graph, inputs):
        assert all(isinstance(size, int) for tensor in inputs for size in tensor.shape)
        compilations.append(graph)
        return graph

    torch._dynamo.reset()
    network = compile_shapes(build_backbone(MODEL, 32, 3, 0), backend=count)
    schedule = Schedule((leg(masked(0.75), phase(), 3), leg(masked(0.5), phase(), 3)), 6)
    batches = Batches(emoji, replace(schedule, full_share=0.5), MODEL.patch, 0.0, 0, "test")
    for step in range(6):
        batch = batches.at(step)
        network(batch.tokens, batch.positions, batch.uniform, None)
    assert len(compilations) == 3  # 16, 32 and all 64 patches


def test_a_compiler_that_fails_is_reported_in_one_line_and_replaced(capsys):
    def broken(x):
        raise RuntimeError("no C++ compiler\nand a long trace")

    call = with_fallback(broken, lambda x: x + 1)
    assert call(torch.zeros(1)).item() == 1
    assert call(torch.ones(1)).item() == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_strict_is_an_error_in_place_of_other_bits():
    def broken(x):
        raise RuntimeError("no C++ compiler\nand a long trace")

    call = with_fallback(broken, lambda x: x + 1, strict=True)
    with pytest.raises(UserError, match=r"no C\+\+ compiler\. To .* MASKDM_COMPILE=0\."):
        call(torch.zeros(1))


def test_the_backward_pass_is_compiled_with_the_forward_pass():
    """A failure of it has to come where one can go on without."""
    seen = []

    def backend(graph, inputs):
        compiler = partial(noted, seen)
        return aot_module_simplified(graph, inputs, fw_compiler=compiler, bw_compiler=compiler)

    call = compile_shapes(torch.nn.Linear(3, 2), backend=backend)
    call(torch.ones(4, 3))
    assert len(seen) == 2


def noted(seen, graph, inputs):
    seen.append(graph)
    return make_boxed_func(graph.forward)


def test_an_error_that_is_not_the_compilers_is_raised():
    def broken(x):
        raise ValueError("shapes")

    with pytest.raises(ValueError, match="shapes"):
        with_fallback(broken, broken)(torch.zeros(1))
