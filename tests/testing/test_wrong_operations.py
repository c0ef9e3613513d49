"""Deliberately wrong operations of a graph: each is caught by the checks that should catch it, and
by no other."""

from __future__ import annotations

import pytest
import torch
from support import graph_backend
from support.failing import failed
from testing.test_wrong_backends import Mine

from implicitcore.extend import real_dtype
from implicitcore.root_solvers.krylov import Krylov
from implicitcore.testing.expect import ContractError
from implicitcore.testing.run import checks_for

ROOTS, TYPES = "iterates_in_a_graph_as_the_reference_does", "iterates_in_a_graph_in_each_dtype"
PURE = "operations_of_a_graph_are_pure"
SPACES = "spans_krylov_spaces_in_a_graph_as_the_reference_does"


class GoesOn(graph_backend.Solve):
    """A sample that has stopped goes on with the others."""

    def following(self, now):
        z, self.memory = self.iteration.step(now, self.samples.grown, self.memory)
        return z


class StopsWithTheFirst(graph_backend.Solve):
    def goes_on(self):
        return super().goes_on() and bool(self.samples.active.all())


class OneMore(graph_backend.Solve):
    """More evaluations than it was given."""

    def goes_on(self):
        samples = self.samples
        return bool(samples.active.any()) and int(samples.evaluations) <= self.graph.most


class TheLastOne(graph_backend.Solve):
    """Not the best iterate, but with its residual."""

    def result(self):
        _, *others = super().result()
        return self.last.z.clone(), *others


class ClaimsThem(graph_backend.Solve):
    """Every sample has converged."""

    def result(self):
        z, residual, status, *others = super().result()
        return z, residual, torch.zeros_like(status), *others


class SpreadsNaN(graph_backend.Solve):
    """One norm for the batch where one is not finite."""

    def norm(self, value):
        found = super().norm(value)
        return found if bool(found.isfinite().all()) else torch.full_like(found, torch.nan)


class ForgetsTheLargest(graph_backend.Solve):
    """Squares in the dtype itself."""

    def norm(self, value):
        return value.to(real_dtype(value)).square().sum(1).sqrt()


class ItsOwnResidual(graph_backend.Solve):
    def evaluation(self, z, fz, g):
        return super().evaluation(z, fz, None)


class ItsOwnScale(graph_backend.Solve):
    def evaluation(self, z, fz, g):
        found = super().evaluation(z, fz, g)
        return found._replace(residual=found.residual._replace(update_norm=self.norm(fz)))


class AssumesContiguous(graph_backend.Solve):
    def kept(self, tensor):
        batch, n = tensor.shape
        return tensor.as_strided((batch, n), (n, 1)).clone()


class KeepsNoCopy(graph_backend.Solve):
    """Of the first iterate, whose memory a graph uses again."""

    def advance(self, z, fz, g):
        if self.samples is None:
            self.first, self.size = z, self.norm(fz - z)
        return super().advance(z, fz, g)

    def result(self):
        z, residual, *others = super().result()
        return torch.where((residual == self.size)[:, None], self.first, z), residual, *others


class WritesToIt(graph_backend.Solve):
    """The next iterate in the place of this one, which is given back too."""

    def advance(self, z, fz, g):
        following, more = super().advance(z, fz, g)
        return z.copy_(following), more


class ReturnsF(graph_backend.Solve):
    """A plain step is f(z) itself."""

    def advance(self, z, fz, g):
        following, more = super().advance(z, fz, g)
        return (fz, more) if more and torch.equal(following, fz) else (following, more)


class InDouble(graph_backend.Solve):
    """Residuals in a dtype that it does not announce."""

    def result(self):
        z, residual, *others = super().result()
        return z, residual.double(), *others


class MoreBits(graph_backend.Solve):
    """Of a status."""

    def result(self):
        z, residual, status, *others = super().result()
        return z, residual, status.long(), *others


class AllGoOn(Krylov):
    """A sample that is done goes on with the others."""

    def _goes_on(self):
        found = super()._goes_on()
        self.whole = True
        return found


class OneLess(Krylov):
    """Minimises over all but the last vector."""

    def minimise(self):
        if self.columns:
            self.w[-1] = torch.zeros_like(self.w[-1])
        return super().minimise()


class NoEnd(Krylov):
    """Larger than it may be."""

    def __init__(self, backend, g, limit, most):
        super().__init__(backend, g, limit, most + 1)


class Normalises(Krylov):
    """The product in its own place."""

    def extend(self, product):
        found = super().extend(product)
        if product is not None and found is not None:
            product.copy_(found)
        return found


class Unstrided(Krylov):
    def extend(self, product):
        if product is not None:
            product = product.as_strided(product.shape, (product.shape[1], 1))
        return super().extend(product)


class FewerBits(Krylov):
    """Counts in a dtype that it does not announce."""

    @property
    def steps(self):
        return super().steps.int()


SOLVES = [
    (GoesOn, {ROOTS}),
    (StopsWithTheFirst, {ROOTS, TYPES}),
    (OneMore, {ROOTS}),
    (TheLastOne, {ROOTS}),
    (ClaimsThem, {ROOTS}),
    (SpreadsNaN, {ROOTS}),
    (ForgetsTheLargest, {TYPES}),
    (ItsOwnResidual, {TYPES}),
    (ItsOwnScale, {TYPES}),
    (AssumesContiguous, {PURE}),
    (KeepsNoCopy, {PURE}),
    (WritesToIt, {PURE}),
    (ReturnsF, {PURE}),
    (InDouble, {TYPES}),
    (MoreBits, {TYPES, PURE}),
]
SPANS = [
    (AllGoOn, {SPACES}),
    (OneLess, {SPACES}),
    (NoEnd, {SPACES}),
    (Normalises, {SPACES}),
    (Unstrided, {SPACES}),
    (FewerBits, {SPACES}),
]


class Graphs(graph_backend.InGraphs, Mine):
    """Right in all but what is replaced."""

    def __init__(self, solve=graph_backend.Solve, space=Krylov):
        self.solve, self.space = solve, space


def caught(part, *names):
    """Which of these checks fail."""
    found = set()
    for check in checks_for(part):
        if check.name in names:
            try:
                check(part)
            except ContractError as error:
                print(error)
                found.add(check.name)
    return found


def test_right_operations_pass_every_check():
    assert failed(Graphs()) == set()


def name_of(value):
    return getattr(value, "__name__", "")


@pytest.mark.parametrize(("solve", "caught_by"), SOLVES, ids=name_of)
def test_wrong_iterations_are_caught_by_these_checks_and_no_other(solve, caught_by):
    assert caught(Graphs(solve=solve), ROOTS, TYPES, PURE) == caught_by


@pytest.mark.parametrize(("space", "caught_by"), SPANS, ids=name_of)
def test_wrong_spaces_are_caught_by_this_check_and_no_other(space, caught_by):
    assert caught(Graphs(space=space), SPACES) == caught_by
