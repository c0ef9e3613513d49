"""torchdiffeq's functions on our solvers: against closed forms, and against torchdiffeq where it is
installed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.sites import run_python
from torch import nn

import implicitcore as ic
from implicitcore.compat import torchdiffeq as ours
from implicitcore.compat.torchdiffeq.methods import ADAMS, OURS, method_for

GRID = torch.linspace(0.0, 1.5, 6, dtype=torch.float64)
TIGHT = {"rtol": 1e-9, "atol": 1e-11}


class Spiral(nn.Module):
    """The network of torchdiffeq's demo, small."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()

    def forward(self, t, y):
        return self.net(y**3) * torch.cos(t)


class Pair(nn.Module):
    """A tuple of states of unlike shapes, as in torchdiffeq's continuous normalising flow."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.weight = nn.Parameter(torch.randn(3, 3, dtype=torch.float64) / 3)

    def forward(self, t, y):
        z, logp = y
        return torch.tanh(z @ self.weight), -z.sum(1, keepdim=True) * t + 0 * logp


def spiral():
    return Spiral(), torch.tensor([[1.5, 0.0]], dtype=torch.float64)


def pair():
    return Pair(), (
        torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)),
        torch.zeros(4, 1, dtype=torch.float64),
    )


def flat(y):
    return y if isinstance(y, torch.Tensor) else torch.cat([part.flatten(1) for part in y], 1)


def run(library, name, case, t, **options):
    func, y0 = case()
    t = t.clone().requires_grad_()
    leaves = [part.clone().requires_grad_() for part in (y0 if isinstance(y0, tuple) else (y0,))]
    y = getattr(library, name)(
        func, tuple(leaves) if isinstance(y0, tuple) else leaves[0], t, **options
    )
    found = flat(y)
    weights = torch.randn(
        found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    )
    return y, torch.autograd.grad((found * weights).sum(), [*leaves, t, *func.parameters()])


@pytest.mark.parametrize("case", [spiral, pair], ids=lambda case: case.__name__)
@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint"])
@pytest.mark.parametrize("t", [GRID, GRID.flip(0)], ids=["onwards", "back"])
def test_values_and_gradients_are_torchdiffeqs(case, name, t):
    theirs = pytest.importorskip("torchdiffeq")
    expected, there = run(theirs, name, case, t, **TIGHT)
    found, here = run(ours, name, case, t, **TIGHT)
    assert type(found) is type(expected)
    assert flat(found).shape == flat(expected).shape
    assert torch.allclose(flat(found), flat(expected), atol=1e-7)
    for a, b in zip(here, there, strict=True):
        assert (a - b).norm() < 1e-5 * b.norm() + 1e-8


# What torchdiffeq's README, examples and tests call; the options where it warns of none of them.
CALLS = [
    {},
    {"method": "dopri5", "options": {"first_step": 0.1}},
    {"method": "dopri5", "options": {"max_num_steps": 1000}},
    {"method": "bosh3", "rtol": 1e-5, "atol": 1e-6},
    {"method": "euler", "options": {"step_size": 0.01}},
    {"method": "midpoint", "options": {"step_size": 0.02}},
    {"method": "heun2", "options": {"step_size": 0.02}},
    {"method": "rk4", "options": {"step_size": 0.05}},
    {"method": "rk4"},
    {"rtol": torch.tensor(1e-6), "atol": torch.tensor(1e-8)},
]
STATES = [
    torch.tensor(0.7),
    torch.ones(2, 3, 1, 2),
    (torch.tensor(0.7), torch.ones(2, 3), torch.zeros(0)),
]


# torchdiffeq interpolates: for bosh3 that is 1.4e-3 off, at a tolerance of 1e-5.
LOOSE = {"euler": 1e-2, "midpoint": 1e-3, "heun2": 1e-3, "bosh3": 2e-3}


@pytest.mark.parametrize(
    ("name", "options"),
    [*[("odeint", call) for call in CALLS], ("odeint_adjoint", {"adjoint_params": ()})],
    ids=str,
)
@pytest.mark.parametrize(
    "y0",
    STATES,
    ids=lambda y: str(
        [*map(lambda p: list(p.shape), y)] if isinstance(y, tuple) else list(y.shape)
    ),
)
def test_shapes_and_values_of_a_table_of_calls(name, options, y0):
    theirs = pytest.importorskip("torchdiffeq")
    single = isinstance(y0, torch.Tensor)
    y0 = y0.double() if single else tuple(part.double() for part in y0)
    func = lambda t, y: torch.cos(t) - y if single else tuple(torch.cos(t) - part for part in y)  # noqa: E731
    expected = getattr(theirs, name)(func, y0, GRID, **options)
    found = getattr(ours, name)(func, y0, GRID, **options)
    assert single or isinstance(found, tuple)
    pairs: Any = [(found, expected)] if single else zip(found, expected, strict=True)
    for a, b in pairs:
        assert a.shape == b.shape and a.dtype == b.dtype
        assert torch.allclose(
            a,
            b,
            rtol=0,
            atol=LOOSE.get(
                options.get("method"), 1e-5 if options.get("options") or not options else 1e-3
            ),
        )


@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint"])
def test_gradients_in_closed_form_without_torchdiffeq(name):
    rate = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    y0 = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64, requires_grad=True)
    t = GRID.clone().requires_grad_()
    weights = torch.arange(24, dtype=torch.float64).reshape(6, 2, 2) / 24
    y = getattr(ours, name)(lambda t, y: -rate * y + torch.sin(t), y0, t, **TIGHT)
    found = torch.autograd.grad((y * weights).sum(), [rate, y0, t])
    # y' + r y = sin t
    particular = lambda s: (rate * torch.sin(s) - torch.cos(s)) / (1 + rate**2)  # noqa: E731
    late, first = t[:, None, None], t[0]
    exact = (y0 - particular(first)) * torch.exp(-rate * (late - first)) + particular(late)
    assert torch.allclose(y, exact, atol=1e-8)
    for a, b in zip(
        found, torch.autograd.grad((exact * weights).sum(), [rate, y0, t]), strict=True
    ):
        assert (a - b).norm() < 1e-6 * b.norm()


def test_one_step_size_for_the_whole_of_y0_as_in_torchdiffeq():
    sizes = []

    def func(t, y):
        sizes.append(y.shape)
        return -y

    ours.odeint(
        func, torch.ones(5, 2), torch.tensor([0.0, 1.0]), method="euler", options={"step_size": 0.5}
    )
    assert sizes == [(5, 2)] * 2


def test_a_single_time_returns_y0():
    y0 = torch.ones(2, 3)
    assert torch.equal(ours.odeint(lambda t, y: -y, y0, torch.tensor([0.3])), y0[None])


@pytest.mark.parametrize(
    ("method", "part"),
    [
        ("dopri5", ic.Dopri5),
        ("tsit5", ic.Tsit5),
        ("heun2", ic.Heun),
        ("rk4", ic.RK38),
        ("bosh3", ic.Bosh3),
        (None, ic.Dopri5),
    ],
)
def test_names_are_our_solvers(method, part):
    assert type(method_for(method, None, 1e-7, 1e-9, GRID).solver) is part
    assert method_for(ic.Tsit5(), None, 1, 1, GRID).solver == ic.Tsit5()


# Explicit methods of high order are stable in the shortest steps only.
EQUAL = {name: {"step_size": 0.05, "max_order": 5} for name in ADAMS}
EQUAL |= {name: {"step_size": 0.05} for name in ("heun2", "rk4")}


@pytest.mark.parametrize("theirs", [*OURS, *ADAMS, "adams", "esdirk"])
def test_other_names_are_the_methods_of_the_same_family(theirs):
    y = ours.odeint(
        lambda t, y: -y,
        torch.ones(2, dtype=torch.float64),
        GRID,
        method=theirs,
        rtol=1e-6,
        atol=1e-8,
        options=EQUAL.get(theirs),
    )
    assert torch.allclose(y[:, 0], torch.exp(-GRID), atol=3e-2 if theirs == "heun2" else 1e-4)


def test_a_solver_of_ours_keeps_its_own_tolerances():
    found = [
        ours.odeint(lambda t, y: -y, torch.ones(1).double(), GRID, method=ic.Bosh3(rtol=rtol))
        for rtol in (1e-2, 1e-8)
    ]
    errors = [(y[:, 0] - torch.exp(-GRID)).abs().max() for y in found]
    assert errors[1] < 1e-5 < errors[0]


def test_a_method_that_is_not_here_is_an_error_that_lists_what_is():
    with pytest.raises(ic.InputError, match=r"no 'dopri6'; did you mean .* bosh3.*dopri5.*tsit5"):
        ours.odeint(lambda t, y: -y, torch.ones(2), GRID, method="dopri6")


def test_options_that_are_not_here_are_named_in_a_warning():
    with pytest.warns(UserWarning, match=r"dopri5: Unexpected arguments \{'interp': 'cubic'\}"):
        ours.odeint(
            lambda t, y: -y,
            torch.ones(2),
            GRID,
            method="dopri5",
            options={"interp": "cubic", "norm": None},
        )
    ours.odeint_adjoint(lambda t, y: -y, torch.ones(2), GRID, adjoint_options={"norm": "seminorm"})


@pytest.mark.parametrize(
    ("func", "y0", "t", "complaint"),
    [
        (
            lambda t, y: y[:1],
            torch.ones(2),
            GRID,
            r"func: received shapes \[\[1\]\], expected those of y0, \[\[2\]\]",
        ),
        (
            lambda t, y: y,
            [torch.ones(2)],
            GRID,
            "y0: expected a tensor or a tuple of tensors, received a list",
        ),
        (lambda t, y: y, torch.ones(2), GRID[[0, 2, 1]], "strictly increasing or decreasing"),
    ],
)
def test_bad_input(func, y0, t, complaint):
    with pytest.raises(ic.InputError, match=complaint):
        ours.odeint(func, y0, t)


def test_a_failed_integration_raises():
    with pytest.raises(ic.SolveError):
        ours.odeint(
            lambda t, y: y * y,
            torch.ones(1, dtype=torch.float64),
            torch.tensor([0.0, 2.0], dtype=torch.float64),
        )
    with pytest.raises(ic.SolveError):
        ours.odeint(lambda t, y: -y, torch.ones(1), GRID, options={"max_num_steps": 2})


@pytest.mark.parametrize("interface", [ours.odeint, ours.odeint_adjoint], ids=lambda f: f.__name__)
@pytest.mark.parametrize("back", [False, True], ids=["onwards", "back"])
def test_the_time_of_an_event_and_its_gradients_in_closed_form(interface, back):
    """A ball thrown upwards: h + v s - g s^2 / 2 = level, at s = t - t0."""
    draw = lambda value: torch.tensor(value, dtype=torch.float64, requires_grad=True)  # noqa: E731
    gravity, height, speed, t0, level = leaves = [
        draw(9.81),
        draw([1.0]),
        draw([-0.4 if back else 0.4]),
        draw(0.5),
        draw(0.1),
    ]
    fall = lambda t, y: (y[1], -gravity.expand(1))  # noqa: E731
    t, y = ours.odeint_event(
        fall,
        (height, speed),
        t0,
        event_fn=lambda t, y: y[0] - level,
        reverse_time=back,
        odeint_interface=interface,
        **TIGHT,
    )
    root = torch.sqrt(speed**2 + 2 * gravity * (height - level))
    exact = t0 + (speed + (-root if back else root))[0] / gravity
    assert t.shape == () and [part.shape for part in y] == [(2, 1), (2, 1)]
    assert t.item() == pytest.approx(exact.item(), abs=1e-12)
    for found, expected in (
        (t, exact),
        (y[1][-1, 0], speed[0] - gravity * (exact - t0)),
        (y[0][-1, 0] + 0 * t, level),
    ):
        here = torch.autograd.grad(found, leaves, retain_graph=True, allow_unused=True)
        there = torch.autograd.grad(expected, leaves, retain_graph=True, allow_unused=True)
        for a, b in zip(here, there, strict=True):
            a, b = (torch.zeros(()) if g is None else g.reshape(()) for g in (a, b))
            assert a.item() == pytest.approx(b.item(), abs=1e-8)


def test_the_first_of_several_events_is_torchdiffeqs():
    theirs = pytest.importorskip("torchdiffeq")
    y0, t0 = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    swing = lambda t, y: torch.stack((y[1], -y[0]))  # noqa: E731
    event = lambda t, y: torch.stack((y[0] + 0.5, y[1] + 0.7))  # noqa: E731
    (t, y), (expected, state) = (
        library.odeint_event(swing, y0, t0, event_fn=event) for library in (ours, theirs)
    )
    assert t.item() == pytest.approx(math.asin(0.7), abs=1e-8)
    assert t.shape == expected.shape and y.shape == state.shape
    assert torch.allclose(y, state, atol=1e-6)
    plain, _ = ours.odeint(swing, y0, torch.tensor([0.0, 1.0], dtype=torch.float64), event_fn=event)
    assert plain == t and not plain.requires_grad


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_event_by_method_and_dtype(method, dtype):
    y0, t0 = torch.tensor([1.0], dtype=dtype), torch.tensor(0.0, dtype=dtype)
    options = {"step_size": 0.05} if method == "rk4" else None
    t, _ = ours.odeint_event(
        lambda t, y: -y, y0, t0, event_fn=lambda t, y: y.sum() - 0.3, method=method, options=options
    )
    assert t.dtype == dtype
    assert t.item() == pytest.approx(-math.log(0.3), rel=1e-6)


def test_an_event_at_the_start_and_one_that_never_happens():
    y0, t0 = torch.ones(1, dtype=torch.float64), torch.tensor(0.25, dtype=torch.float64)
    t, y = ours.odeint_event(lambda t, y: -y, y0, t0, event_fn=lambda t, y: y.sum() - 1)
    assert t == t0 and torch.equal(y, torch.ones(2, 1, dtype=torch.float64))
    with pytest.raises(ic.SolveError, match="no event happened"):
        ours.odeint_event(
            lambda t, y: -y,
            y0,
            t0,
            event_fn=lambda t, y: y.sum() + 1,
            options={"max_num_steps": 50},
        )


def test_second_derivatives_of_times_are_those_of_the_steps():
    t = GRID.clone().requires_grad_()
    y = ours.odeint(lambda t, y: torch.cos(t) + 0 * y, torch.zeros((), dtype=torch.float64), t)
    (first,) = torch.autograd.grad(y[-1], t, create_graph=True)
    (second,) = torch.autograd.grad(first[-1], t)
    assert torch.allclose(first[-1], torch.cos(t[-1]), atol=1e-4)
    assert torch.allclose(second[-1], -torch.sin(t[-1]), atol=1e-2)


def test_second_derivatives_of_events_are_refused():
    t0 = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    y0 = torch.ones(1, dtype=torch.float64, requires_grad=True)
    t, _ = ours.odeint_event(lambda t, y: -y, y0, t0, event_fn=lambda t, y: y.sum() - 0.3)
    with pytest.raises(ic.GradientError, match="first derivative"):
        torch.autograd.grad(t, y0, create_graph=True)


def test_it_does_not_need_torchdiffeq():
    code = """
import sys
sys.modules["torchdiffeq"] = None
import torch
from implicitcore.compat.torchdiffeq import odeint, odeint_adjoint, odeint_event
print(odeint(lambda t, y: -y, torch.ones(2), torch.tensor([0.0, 1.0])).shape)
"""
    done = run_python("-c", code)
    assert done.stdout == "torch.Size([2, 2])\n", done.stderr
