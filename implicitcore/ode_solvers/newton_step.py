"""All stages of a step by the simplified Newton method."""

from __future__ import annotations

import torch
from torch import Tensor

from implicitcore.ode_solvers.factors import Factors
from implicitcore.ode_solvers.simplified_newton import Iteration, Units
from implicitcore.ode_solvers.stage_sequence import StageSequence
from implicitcore.ode_solvers.step_cache import SLOW, Kept, linearized
from implicitcore.tensors import host

# A rate is worth less the older it is.
AGEING = 0.8
LEAST_RATE = 1e-12


class NewtonStep:
    """The stages of a step, and what is kept of them for the next.

    On the host each stage gets the iterations that its slowest sample needs. On an accelerator
    their number is guessed from the last step, and the device is looked at once, when all stages
    are through; where a sample was not solved by then, they go on from the first such stage. A
    sample that is not solved with an old Jacobian gets a new one, and the stages are solved again.
    Neither changes what comes out for another sample.

    Arguments:
        sequence: the equations.
        kept: of the steps before.
        coupling: A ``[k, k]``, of the stages that are solved together.
        units: of the corrections.

    Attributes:
        solved: which samples have all stages, ``[batch]`` bool.
        slow: which should have a new Jacobian, ``[batch]`` bool; None where none should.
        lost: one of them has not all stages.
    """

    def __init__(self, sequence: StageSequence, kept: Kept, coupling: Tensor, units: Units) -> None:
        self.sequence, self.kept, self.coupling, self.units = sequence, kept, coupling, units
        self.guess = list(kept.guess)
        self.iterations: list[Iteration] = []
        self.moving = sequence.dt != 0
        self._looks = host.on_host(sequence.dt)  # there a look is free
        self.slow: Tensor | None = None
        self.lost = False
        stale = self._solve()
        if stale is not None:
            frame = sequence.frame
            jacobian = linearized(sequence.system, sequence.t, frame.z)[1]
            self.kept = self.kept.renewed(stale, jacobian)
            self._solve()

    @property
    def solved(self) -> Tensor:
        """Which samples have all stages, ``[batch]`` bool."""
        return self.iterations[-1].solved

    def _solve(self) -> Tensor | None:
        """Solve all; the samples that want a new Jacobian for it, where there are some."""
        sequence, kept = self.sequence, self.kept
        factors = kept.factors.renewed(self.coupling, sequence.dt, kept.jacobian)
        self.kept = kept = kept._replace(factors=factors)
        rate = kept.rate.clamp(min=LEAST_RATE) ** AGEING
        self.iterations.clear()
        self._run(0, factors, rate)
        first, self.slow, stale = self._look()
        while first is not None:
            self._run(first, factors, rate)
            first, self.slow, stale = self._look()
        return stale

    def _run(self, first: int, factors: Factors, rate: Tensor) -> None:
        """The stages from the first on, which goes on where it was begun."""
        sequence, iterations = self.sequence, self.iterations
        sequence.back_to(first)
        del iterations[first + 1 :]
        for place in range(first, len(sequence)):
            if place < len(iterations):
                iteration = iterations[place]
                iteration.advance(1)
            else:
                before = iterations[-1].rate_after if iterations else rate
                iteration = Iteration(
                    sequence.equation(), factors, sequence.start(), before, self.units
                )
                iterations.append(iteration)
                if self._looks:
                    iteration.finish()
                else:
                    iteration.advance(self.guess[place])
            sequence.add(iteration.stage, iteration.move)

    def _look(self) -> tuple[int | None, Tensor | None, Tensor | None]:
        """The first stage that is to go on, the slow samples, and those not solved by an old J."""
        iterations = self.iterations
        rates = [iteration.rate for iteration in iterations]
        self.rate = rate = rates[0] if len(rates) == 1 else torch.stack(rates).amax(0)
        solved = self.solved
        slow = (rate > SLOW) & self.moving
        if self.kept.factors.old:  # it is then not the Jacobian's fault
            slow = slow & (self.kept.factors.dt == self.sequence.dt)
        unsolved = self.moving & ~solved
        stale = unsolved & ~self.kept.fresh
        masks = [mask for iteration in iterations for mask in iteration.history]
        flags = torch.stack([*masks, slow, stale, unsolved]).any(1).tolist()
        *opened, any_slow, any_stale, self.lost = flags
        first = self._unfinished(opened) if opened else None
        return first, slow if any_slow else None, stale if any_stale else None

    def _unfinished(self, opened: list[bool]) -> int | None:
        """The first stage that is to go on; the guesses follow what the stages needed."""
        first, end = None, 0
        for place, iteration in enumerate(self.iterations):
            begin, end = end, end + len(iteration.history)
            needed = 1 + sum(opened[begin:end])
            if first is None and needed > iteration.count and opened[end - 1]:
                first = place
                self.guess[place:] = [max(g, iteration.count + 1) for g in self.guess[place:]]
            elif first is None:
                self.guess[place] = max(min(needed, iteration.count), iteration.count - 1)
        return first

    def after(self) -> Kept:
        """What the next step begins with, but for new Jacobians."""
        rate = torch.where(self.solved, self.rate, self.kept.rate) if self.lost else self.rate
        fresh = torch.zeros_like(self.kept.fresh)
        return self.kept._replace(rate=rate, fresh=fresh, guess=tuple(self.guess))
