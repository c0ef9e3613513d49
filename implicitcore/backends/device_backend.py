"""The base of backends whose kernels keep on a device what solvers remember there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from implicitcore.backends.device_steps import DeviceControl
from implicitcore.backends.fused import FusedBackend
from implicitcore.backends.step_control import (
    StepJudgement,
    StepOutcome,
    StepRule,
    StepTaken,
    judge_step,
)
from implicitcore.options.options import Options


@dataclass(frozen=True, kw_only=True)
class DeviceBackend(Options, FusedBackend):
    """A backend whose root iterations are :class:`~implicitcore.extend.DeviceIteration`.

    And whose control of an adaptive step, where it has one, is a
    :class:`~implicitcore.extend.DeviceControl`.

    Attributes:
        cuda_graphs: record up to three iterations of a root solver, f included, as one CUDA graph,
            and four steps of an explicit Runge-Kutta method or of ``Adams``, without a gradient of
            the steps. Later solves with the same f and the same shapes launch it as a whole: for an
            f of many small launches. f's Python then runs in the first iteration or step of a solve
            alone, so f may not read values on the host, draw from a generator of its own, write
            into its buffers, have hooks, or keep a state; where one of these is seen, the loop is
            run as without this option, with a warning that says which. Numbers among f's attributes
            and what its functions refer to may change between solves, in lists, dictionaries and
            dataclasses too; those in an object of another class may not. Backward solves run the
            loop. The steps after the end of
            an adaptive solve, up to seven, do nothing but evaluate f.
    """

    cuda_graphs: bool = False

    @final
    def judge_step(self, rule: StepRule, taken: StepTaken) -> StepJudgement:
        """What :meth:`Backend.step_control` finds, for who does not wait for it: in a CUDA graph.

        Arguments:
            rule: how a step is judged.
            taken: the step.
        """
        control = None
        if self._takes(taken.z, taken.z_next, taken.error):
            control = self._control(rule, taken)
        return judge_step(self, rule, taken) if control is None else control.judgement()

    def _step_control(self, rule: StepRule, taken: StepTaken) -> StepOutcome | None:
        """See :meth:`FusedBackend._step_control`."""
        control = self._control(rule, taken)
        return None if control is None else control.outcome()

    def _control(self, rule: StepRule, taken: StepTaken) -> DeviceControl | None:
        """The control of a step, launched; None where the kernels do not do all of it."""
        del rule, taken
        return None
