"""Deliberately wrong backends: each is caught by the checks that should catch it, and by no
other."""

from __future__ import annotations

import pytest
import torch
from support.failing import failed

import implicitcore as ic
from implicitcore.backends.base import Residual
from implicitcore.backends.step_control import control_step, remembered
from implicitcore.extend import RootResult
from implicitcore.ode_solvers.adams import PredictedStep
from implicitcore.root_solvers.krylov import Krylov
from implicitcore.testing.hard_maps import PROBLEMS, same_stops

TORCH = ic.TorchBackend()


class Mine(ic.Backend):
    """A right one: the reference by another name."""

    device_types = ("cpu",)
    dtypes = (torch.float32, torch.float64)
    differentiable = True

    def unavailable_reason(self) -> str | None:
        return None

    def residual(self, fz, z, out=None):
        return TORCH.residual(fz, z, out)

    def inner_products(self, history, row):
        return TORCH.inner_products(history, row)

    def axpy_history(self, row, weights, history, scale=1.0, *, out=None):
        return TORCH.axpy_history(row, weights, history, scale, out=out)

    def stage_combination(self, z, dt, stages, weights):
        return TORCH.stage_combination(z, dt, stages, weights)

    def error_norm(self, error, z, z_next, rtol, atol):
        return TORCH.error_norm(error, z, z_next, rtol, atol)


class ForgetsTheScale(Mine):
    def axpy_history(self, row, weights, history, scale=1.0, *, out=None):
        return TORCH.axpy_history(row, weights, history, out=out)


class IgnoresOut(Mine):
    def residual(self, fz, z, out=None):
        return TORCH.residual(fz, z)


class ForgetsTheTail(Mine):
    """Whole blocks of 128 alone, once there is one."""

    def residual(self, fz, z, out=None):
        value, norm, update_norm = TORCH.residual(fz, z, out)
        n = value.shape[1]
        return Residual(
            value, (value[:, : n // 128 * 128] if n > 128 else value).norm(dim=1), update_norm
        )


class ForgetsOneSample(Mine):
    def error_norm(self, error, z, z_next, rtol, atol):
        return TORCH.error_norm(error[:1], z[:1], z_next[:1], rtol, atol).expand(len(error))


class SwapsTolerances(Mine):
    def error_norm(self, error, z, z_next, rtol, atol):
        return TORCH.error_norm(error, z, z_next, atol, rtol)


class OneStepSize(Mine):
    def stage_combination(self, z, dt, stages, weights):
        first = dt[:1].expand_as(dt) if dt.ndim else dt
        return TORCH.stage_combination(z, first, stages, weights)


class NotConjugated(Mine):
    """Right for real numbers, which the kernel does not say it is for alone."""

    dtypes = (torch.float64, torch.complex128)

    def inner_products(self, history, row):
        return row @ history.mT


class Overflows(Mine):
    dtypes = (torch.float16, torch.float32, torch.float64)

    def residual(self, fz, z, out=None):
        value, norm, update_norm = TORCH.residual(fz, z, out)
        return Residual(value, norm.to(z.dtype), update_norm.to(z.dtype))


class AssumesContiguous(Mine):
    def inner_products(self, history, row):
        batch, depth, n = history.shape
        return TORCH.inner_products(history.as_strided((batch, depth, n), (depth * n, n, 1)), row)


class ChangesItsArguments(Mine):
    def stage_combination(self, z, dt, stages, weights):
        value = TORCH.stage_combination(z, dt, stages, weights)
        if not stages[0].requires_grad:
            stages[0].mul_(1 + 4e-16)
        return value


class HidesItsDerivative(Mine):
    """A kernel behind an autograd.Function whose backward does not see that its result depends on
    the arguments."""

    def residual(self, fz, z, out=None):
        found = TORCH.residual(fz, z, out)
        return found._replace(norm=_Norm.apply(found.value)) if torch.is_grad_enabled() else found


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        norm = value.norm(dim=1)
        ctx.unit = value / norm[:, None]
        return norm

    @staticmethod
    def backward(ctx, *grads):
        (v,) = grads
        return v[:, None] * ctx.unit


class NotDifferentiable(Mine):
    """Right, and says so: its kernels are hidden from autograd."""

    differentiable = False

    @torch.no_grad()
    def residual(self, fz, z, out=None):
        return TORCH.residual(fz, z, out)

    @torch.no_grad()
    def inner_products(self, history, row):
        return TORCH.inner_products(history, row)

    @torch.no_grad()
    def axpy_history(self, row, weights, history, scale=1.0, *, out=None):
        return TORCH.axpy_history(row, weights, history, scale, out=out)

    @torch.no_grad()
    def stage_combination(self, z, dt, stages, weights):
        return TORCH.stage_combination(z, dt, stages, weights)

    @torch.no_grad()
    def error_norm(self, error, z, z_next, rtol, atol):
        return TORCH.error_norm(error, z, z_next, rtol, atol)


class ClaimsToBeDifferentiable(NotDifferentiable):
    differentiable = True


class ClaimsNotToBe(Mine):
    differentiable = False


class BlankReason(Mine):
    def unavailable_reason(self):
        return ""


class WrongInHalf(Mine):
    """Takes a dtype that it does not declare, and reads it as another."""

    dtypes = (torch.float64,)

    def inner_products(self, history, row):
        value = TORCH.inner_products(history, row)
        return (
            value
            if value.dtype == torch.float64
            else value.view(torch.int16).view(value.dtype).abs()
        )


class StopsTogether(Mine):
    """Does whole iterations: those of Picard, until all samples have converged."""

    def root_iteration(self, update, rule, z):
        return _Together(rule, z)


class _Together:
    def __init__(self, rule, z):
        self.rule, self.count, self.start = rule, 0, z

    def advance(self, z, fz, g, last):
        self.z, self.count = z, self.count + 1
        found = TORCH.residual(fz, z)
        self.norm, self.update_norm = found.norm, found.update_norm
        fixed = isinstance(self.rule.scale, torch.Tensor)
        self.limit = self.rule.tol * (self.rule.scale if fixed else found.update_norm)
        return None if last or bool((self.norm <= self.limit).all()) else fz

    def size(self):
        return self.norm

    def between(self, least, most):
        return True

    def result(self):
        status = torch.where(self.norm <= self.limit, 0, 1).to(torch.int8)
        steps = torch.full(self.norm.shape, self.count)
        compared = self.norm, self.limit, self.norm / self.limit
        return RootResult(
            self.z, *compared, status, steps, self.norm, self.norm * 1e8, self.norm, self.z, False
        )


class RemembersRefusedErrors(Mine):
    """Does the control of a step by itself: the next size may follow from an error that was not."""

    def step_control(self, rule, taken):
        found = control_step(TORCH, rule, taken)
        return found._replace(memory=remembered(rule, None, found.error, taken.memory))


def _adams(max_order, tolerance):
    return ic.Adams(max_order=max_order, rtol=tolerance[0], atol=tolerance[1])


class StaysAtItsOrder(Mine):
    """Takes whole steps of Adams, and never raises their order."""

    def adams_step(self, attempt):
        max_order, z, dt, past, tolerance = attempt
        step = PredictedStep(TORCH, _adams(max_order, tolerance), z, dt, past)
        return _SameOrder(step, past.order)


class ChoosesItsOrderInPlainNorms(Mine):
    """Takes whole steps of Adams, and does not look at the tolerances."""

    def adams_step(self, attempt):
        max_order, z, dt, past, _ = attempt
        return PredictedStep(TORCH, _adams(max_order, (0.0, 1.0)), z, dt, past)


class CountsEverySample(Mine):
    """Makes Krylov spaces by itself, in which a sample that is done goes on with the others."""

    def krylov_space(self, g, limit, most):
        return None if torch.is_grad_enabled() else _AllGoOn(TORCH, g, limit, most)


class _AllGoOn(Krylov):
    def _goes_on(self):
        found = super()._goes_on()
        self.whole = True
        return found


class ForgetsTheLastProduct(Mine):
    """Makes Krylov spaces by itself, and minimises over all but the last vector."""

    def krylov_space(self, g, limit, most):
        return None if torch.is_grad_enabled() else _OneLess(TORCH, g, limit, most)


class _OneLess(Krylov):
    def minimise(self):
        if self.columns:
            self.w[-1] = torch.zeros_like(self.w[-1])
        return super().minimise()


class _SameOrder:
    def __init__(self, step, order):
        self.step, self.z, self.order = step, step.z, order

    def correct(self, velocity):
        error, differences, gaps, order, power = self.step.correct(velocity)
        return error, differences, gaps, torch.minimum(order, self.order.clamp(min=1)), power


class _Sums:
    """The stage combinations of a step by a formula of one's own."""

    def __init__(self, formula, rows, z, dt):
        self.formula, self.rows, self.z, self.dt = formula, rows, z, dt
        self.kept = []

    def __call__(self, stages, row, *, move=False):
        z = torch.zeros_like(self.z) if move else self.z
        return self.formula(self.kept, z, self.dt, stages, self.rows[row][: len(stages)])


class _OwnSums(Mine):
    def stage_sums(self, rows, z, dt):
        return _Sums(self.formula, rows, z, dt)

    def formula(self, kept, z, dt, stages, weights):
        return TORCH.stage_combination(z, dt, stages, weights)


class ForgetsTheStepSize(_OwnSums):
    """The step size has no gradient."""

    def formula(self, kept, z, dt, stages, weights):
        return TORCH.stage_combination(z, dt.detach(), stages, weights)


class DifferentiatesOnce(_OwnSums):
    """A kernel behind an autograd.Function whose backward has no derivative."""

    def formula(self, kept, z, dt, stages, weights):
        return _Once.apply(weights, z, dt, *stages)


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weights, z, dt, *stages):
        ctx.weights = weights
        ctx.save_for_backward(dt, *stages)
        return TORCH.stage_combination(z, dt, stages, weights)

    @staticmethod
    def backward(ctx, *grads):
        (grad,), (dt, *stages) = [g.detach() for g in grads], ctx.saved_tensors
        products = [w * k for w, k in zip(ctx.weights, stages, strict=True)]
        total = torch.stack(products).sum(0).detach()
        moves = [w * dt.detach()[:, None] * grad for w in ctx.weights]
        return None, grad, (grad * total).sum(1), *moves


class AddsUp(_OwnSums):
    """What a backward pass came to is kept for the next one."""

    def formula(self, kept, z, dt, stages, weights):
        value = TORCH.stage_combination(z, dt, stages, weights)
        return _Kept.apply(kept, value)


class _Kept(torch.autograd.Function):
    @staticmethod
    def forward(ctx, kept, value):
        ctx.kept = []
        return value.clone()

    @staticmethod
    def backward(ctx, *grads):
        ctx.kept.append(grads[0])
        return None, torch.stack(ctx.kept).sum(0)


# What a wrong value is seen by besides: in derivatives, and in what solvers make of it.
SLOPES, SOLVES = "derivatives_are_right_or_absent", "solves_as_the_reference_does"
GRAPHS = "differentiates_steps_as_the_reference_does"
STOPS, STEPS = "stops_as_the_reference_does", "controls_steps_as_the_reference_does"
BACKENDS = [
    (Mine(), set()),
    (NotDifferentiable(), set()),
    (ForgetsTheScale(), {"axpy_history_is_right", SLOPES, SOLVES, STOPS}),
    (StopsTogether(), {STOPS}),
    (RemembersRefusedErrors(), {STEPS}),
    (StaysAtItsOrder(), {"takes_adams_steps_as_the_reference_does"}),
    (ChoosesItsOrderInPlainNorms(), {"takes_adams_steps_as_the_reference_does"}),
    (CountsEverySample(), {"spans_krylov_spaces_as_the_reference_does"}),
    (ForgetsTheLastProduct(), {SOLVES, "spans_krylov_spaces_as_the_reference_does"}),
    (IgnoresOut(), {"writes_to_out"}),
    (ForgetsTheTail(), {"residual_is_right", SLOPES}),
    (ForgetsOneSample(), {"error_norm_is_right", "per_sample", SLOPES, STEPS}),
    (SwapsTolerances(), {"error_norm_is_right", STEPS}),
    (OneStepSize(), {"stage_combination_is_right", "per_sample", SLOPES, SOLVES, GRAPHS}),
    (NotConjugated(), {"inner_products_is_right"}),
    (Overflows(), {"norms_are_at_least_float32"}),
    (AssumesContiguous(), {"takes_strided_views", SOLVES, STOPS}),
    (ChangesItsArguments(), {"no_input_mutation", GRAPHS}),
    (HidesItsDerivative(), {"derivatives_are_right_or_absent"}),
    (ClaimsToBeDifferentiable(), {SLOPES, GRAPHS}),
    (_OwnSums(), set()),
    (ForgetsTheStepSize(), {GRAPHS}),
    (DifferentiatesOnce(), {GRAPHS}),
    (AddsUp(), {GRAPHS}),
    (ClaimsNotToBe(), {"derivatives_are_right_or_absent"}),
    (BlankReason(), {"declares_its_requirements"}),
    (WrongInHalf(), {"takes_or_refuses_other_dtypes"}),
]


def test_a_result_that_says_all_met_where_one_did_not_is_caught():
    found = PROBLEMS["expanding"](torch.float64).solve(ic.Picard(max_steps=5), None)
    same_stops(found, found, stable=True)
    assert found.judged is not None
    status = found.status.clone()  # that nobody has written to
    judged = found.judged._replace(status=status, all_met=True)
    claimed = found.amended(status=status, judged=judged)
    with pytest.raises(AssertionError):
        same_stops(claimed, found, stable=True)


@pytest.mark.parametrize(("part", "caught_by"), BACKENDS, ids=lambda value: type(value).__name__)
def test_a_wrong_backend_is_caught_by_these_checks_and_no_other(part, caught_by):
    assert failed(part) == caught_by
