"""The schedule of a phase: which mask, batch size and learning rate at which step.

A phase is a sequence of legs. Finetuning and the common case of pretraining have one; the paper's
progression 0.9 → 0.5 → full has three, with a batch that grows with the mask rate, so that the
tokens a step stay near constant (docs/method.md, "Schedule"). A mixture puts steps on whole images
between the masked ones. Everything is a function of the absolute step.
"""

from dataclasses import dataclass, replace
from itertools import accumulate
from math import floor
from typing import Any

from maskdm.diffusion.masking import Mask, nothing_masked


@dataclass(frozen=True)
class Leg:
    """A stretch of steps on one mask.

    Attributes:
        mask: what stays visible.
        steps: how many steps the leg has.
        batch_size: images a step.
        lr: the learning rate that the warm-up reaches.
        warmup: steps of linear warm-up at the leg's start.
        shift: added to half the log-SNR of its times.
    """

    mask: Mask
    steps: int
    batch_size: int
    lr: float
    warmup: int
    shift: float = 0.0


@dataclass(frozen=True)
class Schedule:
    """The legs of a phase, one after the other.

    Attributes:
        legs: at least one.
        steps: how many steps are made, at most as many as the legs have: fewer are a prefix.
        cooldown: the last of these steps, over which the learning rate falls linearly to 0.
        full_share: the share of steps on whole images, spread evenly over the phase.
    """

    legs: tuple[Leg, ...]
    steps: int
    cooldown: int = 0
    full_share: float = 0.0

    def leg(self, step: int) -> tuple[Leg, int]:
        """Return the leg of step ``step`` (from 0) and the step at which it begins.

        Steps from the end on belong to the last leg.
        """
        first = 0
        for leg in self.legs[:-1]:
            if step < first + leg.steps:
                return leg, first
            first += leg.steps
        return self.legs[-1], first

    def batch_size(self, step: int) -> int:
        """Return the images of step ``step`` (from 0)."""
        return self.leg(step)[0].batch_size

    def is_full(self, step: int) -> bool:
        """Return whether step ``step`` (from 0) is one of the mixture's steps on whole images."""
        return self._full_before(step + 1) > self._full_before(step)

    def _full_before(self, step: int) -> int:
        return floor(step * self.full_share)

    def mask(self, step: int) -> Mask:
        """Return the mask of step ``step`` (from 0)."""
        leg, _ = self.leg(step)
        return nothing_masked(leg.mask.grid) if self.is_full(step) else leg.mask

    def learning_rate(self, step: int) -> float:
        """Return the rate of step ``step`` (from 0): warm-up, constant, linear cool-down to 0."""
        leg, first = self.leg(step)
        rising = min(1.0, (step - first + 1) / (leg.warmup + 1))
        falling = min(1.0, (self.steps - step) / (self.cooldown + 1))
        return leg.lr * min(rising, falling)

    def shift(self, step: int) -> float | None:
        """Return what is added to λ, half the log-SNR, of step ``step`` (from 0); None if never."""
        if not any(leg.shift for leg in self.legs):
            return None
        return 0.0 if self.is_full(step) else self.leg(step)[0].shift

    def images_before(self, step: int) -> int:
        """Return how many images the first ``step`` steps see."""
        return sum(stretch.images for stretch in self.stretches(step))

    @property
    def trunk(self) -> int:
        """Steps before the cool-down: runs with another end share them."""
        return max(0, self.steps - self.cooldown)

    def branches(self) -> list[int]:
        """Return the steps after which another run may go another way.

        They are the ends of the legs, the start of the cool-down, and the end.
        """
        ends = accumulate(leg.steps for leg in self.legs)
        return sorted({*(end for end in ends if end < self.steps), self.trunk, self.steps} - {0})

    def prefix(self, step: int) -> dict[str, Any]:
        """Return what the first ``step`` steps do, as JSON can hold it.

        Where it is the same for two schedules, these steps are. How long a phase is, and when it
        cools down, shows from the first step of the cool-down on.
        """
        made = [replace(stretch.leg, steps=stretch.steps) for stretch in self.stretches(step)]
        cools = step > self.trunk
        return {
            "legs": [vars(leg) | {"mask": leg.mask.identity} for leg in made],
            "full_share": self.full_share,
            "cooldown": [self.steps, self.cooldown] if cools else None,
        }

    def stretches(self, step: int) -> list["Stretch"]:
        """Return what the first ``step`` steps are, leg by leg, legs not begun left out."""
        stretches, first = [], 0
        for leg in self.legs:
            end = min(step, first + leg.steps)
            if end > first:
                full = self._full_before(end) - self._full_before(first)
                stretches.append(Stretch(leg, end - first, full))
            first += leg.steps
        return stretches


@dataclass(frozen=True)
class Stretch:
    """What was made of a leg: ``steps`` steps, of which ``full`` on whole images."""

    leg: Leg
    steps: int
    full: int

    @property
    def images(self) -> int:
        """Images seen."""
        return self.steps * self.leg.batch_size

    @property
    def full_images(self) -> int:
        """Images seen whole, because the step was one of the mixture's."""
        return self.full * self.leg.batch_size
