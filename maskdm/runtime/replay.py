"""CUDA graphs: the launches of a step, recorded once and replayed as one.

Of a small network a GPU waits for its host to launch hundreds of kernels a step. A graph holds the
launches of a whole step, with the addresses that they read and write: it computes what the step
computes, from whatever stands in its inputs. So shapes must be static, which batches of a fixed
mask are, and what changes from step to step (batch, learning rate) is copied into tensors first.
"""

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from maskdm.runtime.devices import is_broken
from maskdm.runtime.environment import REPLAY
from maskdm.runtime.errors import UserError, reason

Inputs = tuple[Tensor | None, ...]
Function = Callable[..., Tensor]
Replayed = Callable[[], Tensor]
Recorder = Callable[[Replayed], Replayed]
# Calls before one is recorded: libraries choose their kernels, and compilers compile, in the first.
FIRST = 3


@dataclass
class _Recording:
    """A call of fixed shapes: what it reads, and what replays it once it is recorded."""

    inputs: Inputs
    calls: int = 0
    replay: Replayed | None = None


class Replay:
    """Calls a function of tensors; from the fourth call of its shapes on, replays it.

    The function may change tensors in place (it is called, or replayed, exactly once a call), and
    what it returns is copied. It must not wait for the device.

    Graphs keep their memory, which calls that are launched cannot use. So when new shapes come,
    those of before are forgotten: the next leg of a training, perhaps larger, has nearly all of
    the memory that it would have without graphs. Shapes that come again (some steps on whole images
    among masked ones) are recorded once more, and nothing is forgotten from then on.

    Args:
        function: of tensors, some perhaps None, to a tensor.
        device: where all of them are.
        make_recorder: makes what records: a call of the function → what replays it, and computes
            nothing meanwhile. By default CUDA graphs.
        strict: raises a UserError where nothing can be recorded, in place of going on without.
    """

    def __init__(
        self,
        function: Function,
        device: torch.device,
        make_recorder: Callable[[], Recorder] | None = None,
        strict: bool = False,
    ) -> None:
        self.function, self.device, self.strict = function, device, strict
        self._make_recorder = make_recorder or partial(CudaRecorder, device)
        self._record: Recorder | None = None
        self._recordings: dict[tuple[object, ...], _Recording] = {}
        self._forgotten: set[tuple[object, ...]] = set()
        self._recurs = False
        self._works = True

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        """Return what the function returns for ``inputs``.

        Raises:
            UserError: if it is strict and nothing can be recorded.
        """
        if not self._works:
            return self.function(*inputs)
        key = tuple(None if t is None else (t.shape, t.dtype) for t in inputs)
        if key not in self._recordings:
            self._recurs |= key in self._forgotten
            if not self._recurs and any(kept.replay for kept in self._recordings.values()):
                self._forget()
            held = tuple(None if t is None else torch.empty_like(t) for t in inputs)
            self._recordings[key] = _Recording(held)
        recording = self._recordings[key]
        for target, tensor in zip(recording.inputs, inputs, strict=True):
            if target is not None and tensor is not None:
                target.copy_(tensor)
        recording.calls += 1
        if recording.replay is None and recording.calls > FIRST:
            try:
                self._record = self._record or self._make_recorder()
                recording.replay = self._record(lambda: self.function(*recording.inputs))
            except RuntimeError as error:
                self._give_up(error)
        if recording.replay is None:
            return self.function(*recording.inputs)
        return recording.replay().clone()

    def _forget(self) -> None:
        """Give back the memory of all graphs."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # one of them may still be computed
        self._forgotten |= self._recordings.keys()
        self._recordings.clear()
        self._record = None  # its pool ends with its graphs
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _give_up(self, error: RuntimeError) -> None:
        """Go on without graphs, or raise a UserError."""
        why = reason(error)
        if is_broken(error) or (self.strict and isinstance(error, torch.OutOfMemoryError)):
            raise error  # no fault of recording
        if self.strict:
            raise UserError(
                f"CUDA graphs do not work here: {why}. To go on without, which gives other last "
                f"bits, set {REPLAY.name}=0."
            ) from error
        print(
            f"CUDA graphs do not work here, going on without: {why}. (If memory runs "
            f"full, as it may with an older torch, set {REPLAY.name}=0.)",
            file=sys.stderr,
        )
        self._works = False
        self._forget()


class CudaRecorder:
    """Records calls as CUDA graphs, which share their memory: one is replayed at a time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, call: Replayed) -> Replayed:
        """Return what replays ``call``."""
        graph, usual = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        # Threads that make and copy batches meanwhile may go on: only this one is recorded.
        try:
            with (
                nothing_collected(),
                torch.cuda.device(self.device),
                torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"),
            ):
                output = call()
        except RuntimeError:
            torch.cuda.set_stream(usual)  # torch leaves it only where recording succeeds
            raise

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay


@contextmanager
def nothing_collected() -> Iterator[None]:
    """Keep the collector from destroying an older graph while another one is recorded."""
    gc.collect()
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
