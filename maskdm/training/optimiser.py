"""AdamW (Loshchilov & Hutter 2019) with all that a step does to gradients in one pass over memory.

Clipping, the scale of the loss in fp16 and the skipping of steps that are not finite are arguments
of torch's fused kernel, so gradients are read once and the host waits for nothing.
``torch.optim.AdamW(fused=True)`` takes the same arguments, but its constructor imports torch's
compiler, which takes about as long as importing torch itself: the start-up of a training stage
would miss its goal in ``make bench``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from maskdm.training.phases import PhaseParams

# The scale of the loss in fp16, as in torch.amp.GradScaler: first value, factors, steps between.
SCALE, GROWTH, BACKOFF, EVERY = 2.0**16, 2.0, 0.5, 2000
EPSILON = 1e-8
# Where the kernel is known to divide and skip; on MPS it took both arguments and ignored them
# (PyTorch pull request 186360).
HEEDED = ("cpu", "cuda")
TINY = 1e-6  # added to a norm that is divided by, as torch does when it clips


class AdamW:
    """The moments of all parameters, and the step that they make.

    Args:
        parameters: by name, on the device to train on, sharded or not.
        params: the phase: betas and weight decay.
    """

    def __init__(self, parameters: Mapping[str, Tensor], params: PhaseParams) -> None:
        self.parameters = dict(parameters)
        self.betas, self.weight_decay = params.betas, params.weight_decay
        self.moments = {n: torch.zeros_like(p) for n, p in parameters.items()}
        self.second_moments = {n: torch.zeros_like(p) for n, p in parameters.items()}
        self.steps = {n: torch.zeros((), device=p.device) for n, p in parameters.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Return all that a step depends on besides the gradients; the tensors themselves."""
        kinds = {
            "exp_avg": self.moments,
            "exp_avg_sq": self.second_moments,
            "step": self.steps,
        }
        return {f"{kind}.{n}": t for kind, tensors in kinds.items() for n, t in tensors.items()}

    def gradients(self) -> list[Tensor]:
        """Return the gradients that there are."""
        return [p.grad for p in self.parameters.values() if p.grad is not None]

    @torch.no_grad()
    def step(self, lr: float | Tensor, divisor: Tensor, skip: Tensor) -> None:
        """Change the parameters by their gradients, and release these.

        Args:
            lr: the learning rate; a 0-d tensor is read when the launches of a step are replayed.
            divisor: the gradients are divided by it first, 0-d float32.
            skip: 0-d bool; if true nothing changes.
        """
        used = [name for name, p in self.parameters.items() if p.grad is not None]
        gradients = self.gradients()
        for parameter in self.parameters.values():
            parameter.grad = None
        heeded = divisor.device.type in HEEDED
        if not heeded:
            if skip:
                return
            torch._foreach_div_(gradients, divisor)
        adamw(
            [self.parameters[name] for name in used],
            gradients,
            [self.moments[name] for name in used],
            [self.second_moments[name] for name in used],
            [],
            [self.steps[name] for name in used],
            fused=True,
            grad_scale=divisor if heeded else None,
            found_inf=skip.float() if heeded else None,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=lr,
            weight_decay=self.weight_decay,
            eps=EPSILON,
            maximize=False,
        )


def clipping(norm: Tensor, clip: float | None) -> Tensor:
    """Return what gradients of a norm are divided by so that it becomes at most ``clip``."""
    return torch.ones_like(norm) if clip is None else ((norm + TINY) / clip).clamp(min=1)


@dataclass
class LossScale:
    """What the loss is multiplied by in fp16, lest small gradients become zero.

    It is halved at a step whose gradients overflow and doubled after many that do not
    (Micikevicius et al. 2018, section 3.2).

    Attributes:
        scale: 0-d float32, on the device.
        growth: steps since it last changed, 0-d int32, on the device.
    """

    scale: Tensor
    growth: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.growth = torch.zeros_like(self.scale, dtype=torch.int32)

    @classmethod
    def for_precision(cls, precision: str, device: torch.device) -> "LossScale | None":
        """Return the first scale in fp16, and None where no loss is scaled."""
        return cls(torch.tensor(SCALE, device=device)) if precision == "fp16" else None

    def update(self, overflowed: Tensor) -> None:
        """Adapt the scale after a step.

        Args:
            overflowed: whether the step's gradients did, 0-d bool.
        """
        torch._amp_update_scale_(
            self.scale, self.growth, overflowed.float(), GROWTH, BACKOFF, EVERY
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return what is to be saved; the tensors themselves."""
        return {"loss_scale": self.scale, "loss_scale_growth": self.growth}
