"""One training step: the gradients of a batch, AdamW, the averaged weights.

Nothing in it waits for the device, and whatever differs between steps of one shape comes in as a
tensor: on CUDA its launches are recorded once and replayed (``maskdm.runtime.replay``).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from maskdm.diffusion.loss import DiffusionParams, denoising_loss, training_times
from maskdm.runtime.compile import compiled
from maskdm.runtime.execution import Execution
from maskdm.runtime.replay import Replay
from maskdm.training import ema
from maskdm.training.batches import Batch
from maskdm.training.optimiser import LossScale, clipping
from maskdm.training.phases import PhaseParams
from maskdm.training.state import State

Number = float | Tensor
Network = Callable[..., Tensor]


@dataclass(frozen=True)
class Rates:
    """What differs from step to step besides the batch.

    Attributes:
        learning_rate: AdamW's.
        averaging: the weight 1 − β that the average gives to the new weights.
        shift: of half the log-SNR, of a masked leg (``pretrain.noise_shift``); None where no leg
            has one.
    """

    learning_rate: Number
    averaging: Number
    shift: Number | None = None

    def __iter__(self) -> Iterator[Number | None]:
        return iter((self.learning_rate, self.averaging, self.shift))


class TrainingStep:
    """Makes steps of a phase in place.

    Args:
        state: what is trained, on the device of ``execution``.
        diffusion: path, prediction and loss.
        params: the phase.
        execution: where and how; it changes results by rounding only.
        replay: what the step is called through; by default as ``execution`` says.
    """

    def __init__(
        self,
        state: State,
        diffusion: DiffusionParams,
        params: PhaseParams,
        execution: Execution,
        replay: Replay | None = None,
    ) -> None:
        self.state, self.diffusion, self.params = state, diffusion, params
        self.execution = execution
        call = compiled(state.backbone, execution)
        self.network = execution.processes.data_parallel(state.backbone, call)
        self.parameters = list(state.backbone.parameters())
        self.replay = replay
        if replay is None and execution.replays:
            self.replay = Replay(self.on_tensors, execution.device, strict=execution.strict)

    def __call__(self, batch: Batch, batch_size: int, rates: Rates) -> Tensor:
        """Make one step.

        Args:
            batch: this process's part of the batch, on the device.
            batch_size: images of the global batch.
            rates: of this step, as numbers.

        Returns:
            Mean loss of the batch and gradient norm before clipping, ``(2,)`` float32.
        """
        if self.replay is None:
            return self.make(batch, batch_size, rates)
        device = self.execution.device
        numbers = (
            None if rate is None else torch.full((), float(rate), device=device) for rate in rates
        )
        # The size of the global batch is that of the batch: only one process replays.
        return self.replay(*numbers, *batch)

    def on_tensors(self, *inputs: Tensor | None) -> Tensor:
        """Make a step whose rates and batch are all tensors, as a graph needs them."""
        learning_rate, averaging, shift, *tensors = inputs
        assert learning_rate is not None
        assert averaging is not None
        batch = Batch._make(tensors)
        return self.make(batch, len(batch.uniform), Rates(learning_rate, averaging, shift))

    def make(self, batch: Batch, batch_size: int, rates: Rates) -> Tensor:
        """Make one step, launch by launch."""
        state, execution = self.state, self.execution
        for parameter in self.parameters:
            parameter.grad = None  # what a recording that failed may have left, never computed
        loss = accumulate(
            self.network, batch, batch_size, self.diffusion, state.scale, execution, rates.shift
        )
        norm = optimise(state, loss, rates.learning_rate, self.params.clip, execution)
        ema.update(state.averaged.values(), self.parameters, rates.averaging)
        return torch.stack([loss, norm]).float()


def accumulate(
    network: Network,
    batch: Batch,
    batch_size: int,
    diffusion: DiffusionParams,
    scale: LossScale | None,
    execution: Execution,
    shift: Number | None = None,
) -> Tensor:
    """Add the gradients of one global batch to the parameters; return its mean loss, detached.

    Args:
        network: the network; with several processes its backward pass averages over them.
        batch: this process's part of the batch.
        batch_size: images in the global batch.
        diffusion: path, prediction and loss.
        scale: of the loss in fp16, or None.
        execution: its micro-batch decides how many passes are made.
        shift: of half the log-SNR, or None.
    """
    processes = execution.processes
    total = torch.zeros((), device=execution.device)
    for samples in execution.passes(batch_size):
        part = batch.part(samples)
        denoise = partial(_on_set, network, part)
        with processes.no_sync(network, last=samples.stop == len(batch.uniform)):
            with execution.autocast():
                times = training_times(part.uniform, diffusion, shift)
                per_image = denoising_loss(denoise, part.tokens, part.noise, times, diffusion)
            loss = per_image.sum() / batch_size
            # The gradients of the processes are averaged, and are to be summed.
            (loss * processes.count * (scale.scale if scale else 1)).backward()
        total += loss.detach()
    return processes.sum(total)


def _on_set(network: Network, batch: Batch, x_t: Tensor, t: Tensor) -> Tensor:
    """Call a network on noisy tokens at the positions, and with the labels, of a batch."""
    if batch.middle is None:
        return network(x_t, batch.positions, t, batch.labels)
    return network(x_t, batch.positions, t, batch.labels, batch.middle)


def optimise(
    state: State, loss: Tensor, learning_rate: Number, clip: float | None, execution: Execution
) -> Tensor:
    """Make the optimiser's step, unless loss or gradients are not finite; return their norm."""
    gradients = torch.nn.utils.get_total_norm(state.optimiser.gradients())
    norm = execution.processes.full_tensor(gradients)
    divisor = torch.ones_like(norm)
    if state.scale:
        divisor = state.scale.scale.clone()
        norm = norm / divisor
    skip = ~(loss.isfinite() & norm.isfinite())
    state.optimiser.step(learning_rate, divisor * clipping(norm, clip), skip)
    if state.scale:
        state.scale.update(skip)
    return norm
