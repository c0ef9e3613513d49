"""What may happen in every solve is said once, then at intervals, at the user's line."""

import functools
import gc
import linecache
import threading
import warnings
import weakref
from typing import Any

import pytest
import torch
from torch import nn

import implicitcore as ic
from implicitcore.system import repeated

X = torch.ones(2, 3)


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, z, x):
        return torch.tanh(0.9 * z + self.linear(x))


def make(cell=None, **options):
    solver = ic.Picard(tol=1e-6, max_steps=2)
    return ic.ImplicitLayer(ic.FixedPoint(cell or Cell()), solver=solver, **options)


def backward_of(layer):
    layer.solver = ic.Picard(tol=1e-6, max_steps=1000)
    layer.gradient = ic.Implicit(ic.Picard(tol=1e-6, max_steps=2))
    return lambda: layer(X).sum().backward()


def by_function(gradient):
    def solve():
        x = X.clone().requires_grad_()
        f = lambda z, x: 0.9 * z + x  # noqa: E731 - made anew in each iteration, as users do
        solver = ic.Picard(tol=1e-5, max_steps=1000)
        ic.fixed_point(f, X, x, solver=solver, gradient=gradient).z.sum().backward()

    return solve


def by_adjoint():
    x = X.double().requires_grad_()
    v = lambda t, z, x: -20 * z + x  # noqa: E731
    times = torch.tensor([0.0, 2.0], dtype=torch.float64)
    ic.integrate(v, X.double(), x, times=times, gradient=ic.Adjoint()).z.sum().backward()


def by_precision():
    times = torch.tensor([0.0, 1e-3])
    ic.integrate(
        lambda t, z, x: -z, X, times=times, solver=ic.Tsit5(rtol=1e-10, atol=1e-12, max_steps=5)
    )


CAUSES = {
    "forward": lambda: (lambda layer: lambda: layer(X))(make()),
    "forward of an ODE": lambda: (lambda layer: lambda: layer(X))(
        ic.ImplicitLayer(ic.FixedPoint(Cell()), solver=ic.Tsit5(max_steps=1))
    ),
    "backward": lambda: backward_of(make()),
    "backward of a function": lambda: by_function(ic.Implicit(ic.Picard(max_steps=2))),
    "adjoint": lambda: by_adjoint,
    "precision": lambda: by_precision,
}


def caught_in(solve, times):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(times):
            solve()
    return caught


@pytest.mark.parametrize(
    "cause", [pytest.param(c, marks=[pytest.mark.slow] if c == "adjoint" else []) for c in CAUSES]
)
def test_once_and_then_at_intervals(cause):
    caught = caught_in(CAUSES[cause](), 100)
    texts = [str(warning.message) for warning in caught]
    assert len(texts) == 3, texts
    assert "th time" not in texts[0]
    assert texts[1].endswith("(for the 10th time; said again at the 100th)")
    assert texts[2].endswith("(for the 100th time; said again at the 1000th)")
    assert {warning.category for warning in caught} == {ic.ConvergenceWarning}
    assert {warning.filename for warning in caught} == {__file__}


def test_a_layer_and_a_cause_each_have_their_own():
    first, second = make(), make()
    assert len(caught_in(lambda: (first(X), second(X)), 5)) == 2
    first.solver = ic.SteadyState(
        tol=1e-12, max_steps=400, patience=2, ode_solver=ic.Euler(dt=1e-4)
    )
    [warning] = caught_in(lambda: first(X), 5)
    assert "stalled" in str(warning.message)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda layer: layer,
        lambda layer: nn.Sequential(nn.Identity(), layer),
        lambda layer: nn.Sequential(nn.Sequential(nn.Linear(3, 3), layer), nn.Tanh()),
    ],
)
def test_the_warning_points_at_the_line_of_the_user(wrap):
    model = wrap(make())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model(X)
    [warning] = caught
    assert warning.filename == __file__
    assert linecache.getline(__file__, warning.lineno).strip() == "model(X)"


@pytest.mark.parametrize("cause", CAUSES)
def test_a_filter_that_makes_it_an_error_gets_each(cause):
    solve = CAUSES[cause]()
    for _ in range(3):
        with pytest.raises(ic.ConvergenceWarning):
            solve()


def test_threads_count_together():
    layer = make()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        workers = [threading.Thread(target=lambda: [layer(X) for _ in range(10)]) for _ in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert len(caught) == 2  # the first and the tenth
    assert repeated._counts[layer] == {frozenset({ic.Status.MAX_STEPS}): 80}


@pytest.mark.filterwarnings("ignore::implicitcore.ConvergenceWarning")
def test_counts_keep_nothing_alive():
    layer = make()
    layer(X)
    dead, before = weakref.ref(layer), len(repeated._counts)
    del layer
    gc.collect()
    assert dead() is None
    assert len(repeated._counts) < before
    caught_in(by_function(ic.Implicit(ic.Picard(max_steps=2))), 50)
    assert len(repeated._counts) == before  # one for all fifty functions


def test_whatever_the_function_is_it_has_an_owner():
    class Callable:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self, z, x):
            return 0.9 * z + x

        def bound(self, z, x):
            return 0.9 * z + x

    functions: list[Any] = [Callable(), Callable().bound, functools.partial(Callable())]
    for f in functions:
        x = X.clone().requires_grad_()
        solver, gradient = ic.Picard(max_steps=1000), ic.Implicit(ic.Picard(max_steps=2))
        z = ic.fixed_point(f, X, x, solver=solver, gradient=gradient).z
        assert len(caught_in(lambda z=z: z.sum().backward(retain_graph=True), 5)) <= 1
