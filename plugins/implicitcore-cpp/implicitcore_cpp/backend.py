"""The backend: which kernel is called how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from implicitcore.extend import (
    AdamsAttempt,
    AdamsFlowRule,
    AdamsStep,
    AndersonRule,
    BroydenRule,
    FusedBackend,
    KrylovGraph,
    KrylovSpace,
    Look,
    Options,
    PicardRule,
    Residual,
    RootGraph,
    RootIteration,
    StepOutcome,
    StepRule,
    StepTaken,
    StopRule,
    UpdateRule,
)
from implicitcore_cpp import build, graph

_UPDATES = {PicardRule: "picard", AndersonRule: "anderson", BroydenRule: "broyden"}
_SCALES = {"update": 0, "root": 1}
_FIXED = 2
_CLOCKS = (torch.float32, torch.float64)


@final
@dataclass(frozen=True, kw_only=True)
class CppBackend(Options, FusedBackend):
    """A whole iteration of Picard, Anderson and Broyden as one call of C++, on the CPU.

    So is all that GMRES does beside a product. Of the adaptive ODE solvers one call is what
    follows the stages of a step: the error, who accepts the step, the next size, the clocks, and
    what the loop has to know; a step of Adams is one call before and one after the evaluation, and
    on the way to a steady state both, the control and the stop test are one.
    Residual, norms, stop test, best iterate and update in as few passes over the memory as there
    can be, vectorised over the entries of a sample and parallel over the samples. float32, float64
    and bfloat16 states, the last with norms and coefficients in float32. A sample's result does not
    depend on the batch it is in. Built by the machine's own C++ compiler at the first use, which
    takes half a minute once, or ahead by ``python -m implicitcore_cpp.build``; ``auto`` takes it
    where it is built.
    """

    device_types: ClassVar[tuple[str, ...]] = ("cpu",)
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32, torch.float64, torch.bfloat16)
    expanded_dt: ClassVar[bool] = True

    def unavailable_reason(self) -> str | None:
        """See :meth:`Backend.unavailable_reason`; found once, and then remembered."""
        return _reason()

    def unready_reason(self) -> str | None:
        """See :meth:`Backend.unready_reason`."""
        if self.unavailable_reason() is None and not build.is_built():
            return "it is not built yet: python -m implicitcore_cpp.build"
        return self.unavailable_reason()

    def _root_graph(
        self, update: UpdateRule, rule: StopRule, z: Tensor, most: int
    ) -> RootGraph | None:
        if type(update) not in _UPDATES:
            return None
        graph.load()
        place = [*_UPDATES].index(type(update))
        scale = _FIXED if isinstance(rule.scale, Tensor) else _SCALES[str(rule.scale)]
        numbers = rule.tol, rule.rounding, rule.divergence, rule.trust, rule.growth, rule.floor
        options = tuple(map(float, vars(update).values()))
        return graph.CppRootGraph(
            place, options, tuple(map(float, numbers)), rule.min_steps, scale, most
        )

    def _krylov_graph(self, g: Tensor) -> KrylovGraph | None:
        graph.load()
        return graph.CppKrylovGraph()

    def _root_iteration(
        self, update: UpdateRule, rule: StopRule, z: Tensor
    ) -> RootIteration | None:
        flow = isinstance(update, AdamsFlowRule)
        name = _UPDATES.get(type(update))
        if name is None and not flow:
            return None
        kernels = build.load()
        fixed = rule.scale if isinstance(rule.scale, Tensor) else None
        scale = _FIXED if fixed is not None else _SCALES[str(rule.scale)]
        numbers = rule.tol, rule.rounding, rule.divergence, rule.trust, rule.growth
        stop = kernels.Rule(*numbers, rule.min_steps, scale)
        samples = rule.floor, 0.0 if fixed is None else fixed, rule.origin
        if flow:
            return kernels.adams_flow(_flow(update), stop, samples, z)
        return kernels.root_iteration(name, tuple(vars(update).values()), stop, samples, z)

    def _krylov_space(self, g: Tensor, limit: Tensor, most: int) -> KrylovSpace | None:
        return build.load().krylov_space(g, limit, most)

    def _adams_step(self, attempt: AdamsAttempt) -> AdamsStep | None:
        max_order, z, dt, past, tolerance = attempt
        return build.load().adams_step(max_order, z, dt, *past, tolerance)

    def _step_control(self, rule: StepRule, taken: StepTaken) -> StepOutcome | None:
        *states, clock, active, done, _, _ = taken
        if not isinstance(clock.forward, bool) or clock.t.dtype not in _CLOCKS:
            return None
        *found, look, ahead = build.load().step_control(
            _rule(rule[:-1]), *states, *clock, active, done
        )
        return StepOutcome._make([*found, Look._make(look), ahead])

    def _residual(self, fz: Tensor, z: Tensor, out: Tensor) -> Residual:
        return Residual(out, *build.load().residual(fz, z, out))

    def _inner_products(self, history: Tensor, row: Tensor) -> Tensor:
        return build.load().inner_products(history, row)

    def _axpy_history(
        self, row: Tensor | None, weights: Tensor, history: Tensor, scale: float, out: Tensor
    ) -> Tensor:
        build.load().axpy_history(row, weights, history, scale, out)
        return out

    def _stage_combination(
        self, z: Tensor | None, dt: Tensor, stages: Sequence[Tensor], weights: Sequence[float]
    ) -> Tensor:
        return build.load().stage_combination(z, dt, list(stages), list(weights))

    def _error_norm(
        self, error: Tensor, z: Tensor, z_next: Tensor, rtol: float, atol: float
    ) -> Tensor:
        return build.load().error_norm(error, z, z_next, rtol, atol)


@lru_cache(maxsize=64)
def _rule(rule: tuple[Any, ...]) -> Any:
    """A rule, but for its order, as the kernels take it, once for all steps."""
    return build.load().StepRule(*rule)


@lru_cache(maxsize=64)
def _flow(flow: AdamsFlowRule) -> Any:
    """The same for an integration to a steady state."""
    first, rows, step, *others = (getattr(flow, each.name) for each in fields(flow))
    return build.load().FlowRule(first, rows, _rule(step[:-1]), *others)


@cache
def _reason() -> str | None:
    """Why no kernel can run in this process."""
    return None if build.is_built() else build.missing()
