"""CUDA graphs: the launches of a step, recorded once and replayed as one.

Of a small network a GPU waits for its host to launch hundreds of kernels a step. A graph holds the
launches of a whole step, with the addresses that they read and write: it computes what the step
computes, from whatever stands in its inputs. So shapes must be static, which batches of a fixed
mask are, and what changes from step to step (batch, learning rate) is copied into tensors first.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Inputs = tuple[Tensor | None, ...]
Function = Callable[..., Tensor]
Replayed = Callable[[], Tensor]
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

    Args:
        function: of tensors, some perhaps None, to a tensor.
        device: where all of them are.
        record: a call of the function → what replays it; nothing is computed meanwhile.
    """

    def __init__(
        self,
        function: Function,
        device: torch.device,
        record: Callable[[Replayed], Replayed] | None = None,
    ) -> None:
        self.function, self.device = function, device
        self.record = CudaRecorder(device) if record is None else record
        self._recordings: dict[tuple[object, ...], _Recording] = {}
        self._works = True

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        """Return what the function returns for ``inputs``."""
        if not self._works:
            return self.function(*inputs)
        key = tuple(None if t is None else (t.shape, t.dtype) for t in inputs)
        if key not in self._recordings:
            held = tuple(None if t is None else torch.empty_like(t) for t in inputs)
            self._recordings[key] = _Recording(held)
        recording = self._recordings[key]
        for target, tensor in zip(recording.inputs, inputs, strict=True):
            if target is not None and tensor is not None:
                target.copy_(tensor)
        recording.calls += 1
        if recording.replay is None and recording.calls > FIRST:
            try:
                recording.replay = self.record(lambda: self.function(*recording.inputs))
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[0]
                print(
                    f"CUDA graphs do not work here, going on without: {reason}. (If memory runs "
                    "full, as it may with an older torch, set MASKDM_REPLAY=0.)",
                    file=sys.stderr,
                )
                self._works = False
        if recording.replay is None:
            return self.function(*recording.inputs)
        return recording.replay().clone()


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
