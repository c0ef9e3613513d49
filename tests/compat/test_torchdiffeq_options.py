"""Every method and option of torchdiffeq does what it does there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import implicitcore as ic
from implicitcore.compat import torchdiffeq as ours
from implicitcore.compat.torchdiffeq.collocation import TABLEAUS

theirs = pytest.importorskip("torchdiffeq")
F64 = torch.float64
GRID = torch.tensor([0.0, 0.4, 0.7, 1.5], dtype=F64)
ADAPTIVE = ["adaptive_heun", "fehlberg2", "bosh3", "dopri5", "dopri8"]
FIXED = ["euler", "midpoint", "heun2", "heun3", "rk4"]
ADAMS = ["explicit_adams", "implicit_adams"]
INTERFACES = ["odeint", "odeint_adjoint"]
LOOSE = {"rtol": 1e-5, "atol": 1e-7}


class Spiral(nn.Module):
    """A small network, one of whose parameters is not used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
        self.unused = nn.Parameter(torch.ones(3, dtype=F64))

    def forward(self, t, y):
        return self.net(y) * torch.cos(t)


def run(library, interface, t=GRID, **options):
    """Values, and the gradients of y0, t and all parameters."""
    func, y0 = Spiral(), torch.tensor([1.5, 0.5], dtype=F64, requires_grad=True)
    t = t.clone().requires_grad_()
    y = getattr(library, interface)(func, y0, t, **options)
    wrt = [y0, t, *func.net.parameters()]
    return y, torch.autograd.grad((y[1:].sin() + y[1:]).sum(), wrt)


def close(library_values, tol):
    (y, grads), (expected, there) = library_values
    assert (y - expected).abs().max() < tol
    for a, b in zip(grads, there, strict=True):
        assert (a - b).norm() < tol * (1 + b.norm())


def eighths(t):
    inner = t[0] + (t[-1] - t[0]) * torch.arange(1, 8, dtype=t.dtype) / 8
    return torch.cat((t[:1], inner, t[-1:]))


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("back", [False, True], ids=["onwards", "back"])
@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"step_size": 0.11},
        {"step_size": 0.11, "interp": "cubic"},
        {"step_size": 0.25, "perturb": True},
        {"grid_constructor": lambda f, y0, t: eighths(t)},
    ],
    ids=lambda options: ",".join(options) or "default",
)
def test_fixed_steps_have_the_same_numbers(interface, back, method, options):
    t = GRID.flip(0) if back else GRID
    asked = {"method": method, "options": options}
    pair = [run(library, interface, t, **asked) for library in (ours, theirs)]
    # their adjoint holds a moved grid fixed, and rounds the state behind a jump
    close(pair, 1e-9)


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("method", ADAMS)
def test_adams_on_an_even_grid(interface, method):
    t = torch.linspace(0, 1.5, 3, dtype=F64)
    asked = {"method": method, "options": {"step_size": 0.05, "max_order": 5}, **LOOSE}
    pair = [run(library, interface, t, **asked) for library in (ours, theirs)]
    if interface == "odeint":  # theirs leaves out the slope at an output time that is on the grid
        pair = [(y, [of_y0, *of_parameters]) for y, (of_y0, _, *of_parameters) in pair]
    close(pair, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm": lambda y: y.abs().max()},
        {"first_step": 0.01, "max_step": 0.2, "safety": 0.8, "ifactor": 5.0, "dfactor": 0.3},
        {"step_t": torch.tensor([0.3, 1.1])},
        {"jump_t": torch.tensor([0.5])},
        {"dtype": torch.float32},
    ],
    ids=lambda options: ",".join(options) or "default",
)
def test_adaptive_steps_agree_within_their_tolerances(interface, method, options):
    asked = {"method": method, "options": options, **LOOSE}
    # their interpolation of these two is coarse, and its slope, the gradient of t, more so
    coarse = interface == "odeint" and method in ("bosh3", "fehlberg2")
    tol = 0.2 if coarse else 2e-3
    close([run(library, interface, **asked) for library in (ours, theirs)], tol)


@pytest.mark.parametrize("interface", INTERFACES)
def test_the_steps_of_dopri5_are_the_same(interface):
    counts = []
    for library in (ours, theirs):
        func = Spiral()
        seen = []
        func.net.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        y0 = torch.tensor([1.5, 0.5], dtype=F64, requires_grad=True)
        getattr(library, interface)(func, y0, GRID).sum().backward()
        counts.append(len(seen))
    # ours looks once at what an adjoint depends on; rounding may decide on one step
    assert abs(counts[0] - counts[1]) <= (7 if interface == "odeint_adjoint" else 0)


def test_tolerances_of_each_entry_and_of_each_part():
    y0 = (torch.ones(2, dtype=F64), torch.full((3,), 2.0, dtype=F64))
    func = lambda t, y: (-y[0] * y[0], torch.cos(8 * t) * y[1])  # noqa: E731
    asked = {"rtol": (1e-3, 1e-8), "atol": (1e-4, 1e-9)}
    found, expected = (library.odeint(func, y0, GRID, **asked) for library in (ours, theirs))
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    entries = torch.tensor([1e-3, 1e-9], dtype=F64)
    field = lambda t, y: -y * torch.tensor([1.0, 9.0], dtype=F64)  # noqa: E731
    a, b = (
        library.odeint(field, torch.ones(2, dtype=F64), GRID, rtol=entries, atol=entries)
        for library in (ours, theirs)
    )
    assert torch.allclose(a, b, atol=1e-6)
    with pytest.raises(ic.InputError, match="received 1 entries, expected one for each of the 2"):
        ours.odeint(func, y0, GRID, rtol=(1e-3,))


@pytest.mark.parametrize("method", ["euler", "dopri5"])
def test_callbacks_see_the_same_steps(method):
    seen = {}
    for library in (ours, theirs):
        func, calls = Spiral(), []
        for name in ("callback_step", "callback_accept_step", "callback_step_adjoint"):
            if method == "euler" and "accept" in name:
                continue
            record = lambda t, y, dt, name=name, calls=calls: calls.append(  # noqa: E731
                (name, t.item(), dt.item())
            )
            setattr(func, name, record)
        y0 = torch.tensor([1.5, 0.5], dtype=F64, requires_grad=True)
        library.odeint_adjoint(func, y0, GRID, method=method).sum().backward()
        seen[library] = calls
    forward = [[call for call in seen[lib] if "adjoint" not in call[0]] for lib in (ours, theirs)]
    assert abs(len(seen[ours]) - len(seen[theirs])) <= (method == "dopri5")
    for a, b in zip(*forward, strict=True):
        assert a[0] == b[0] and a[1:] == pytest.approx(b[1:], rel=1e-6)


def test_a_callback_that_a_method_does_not_call_is_named():
    func = Spiral()
    func.__dict__["callback_accept_step"] = print
    with pytest.warns(UserWarning, match="euler does not support callbacks accept"):
        ours.odeint(func, torch.ones(2, dtype=F64), GRID, method="euler")


@pytest.mark.parametrize("method", FIXED + ADAMS)
def test_a_perturbed_field_is_not_asked_at_the_times_of_the_grid(method):
    asked = []

    def field(t, y):
        asked.append(t.item())
        return torch.where(t < 0.5, 1.0, -2.0).to(y) + 0 * y

    y = ours.odeint(
        field,
        torch.zeros(1, dtype=F64),
        torch.tensor([0.0, 1.0], dtype=F64),
        method=method,
        options={
            "step_size": 0.25,
            "perturb": True,
            **({"max_order": 3} if "adams" in method else {}),
        },
    )
    assert not {0.0, 0.25, 0.5, 0.75, 1.0} & set(asked)
    assert y[-1].item() == pytest.approx(-0.5, abs=1e-12)


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("method", ADAPTIVE)
def test_a_field_that_jumps_is_integrated_exactly_on_both_sides(interface, method):
    field = lambda t, y: torch.where(t < 0.5, 1.0, -2.0).to(y) + 0 * y  # noqa: E731
    y0 = torch.zeros(1, dtype=F64, requires_grad=True)
    y = getattr(ours, interface)(
        field,
        y0,
        torch.tensor([0.0, 1.0], dtype=F64),
        method=method,
        options={"jump_t": torch.tensor([0.5])},
    )
    assert y[-1].item() == pytest.approx(-0.5, abs=1e-12)
    assert torch.autograd.grad(y[-1].sum(), y0)[0].item() == pytest.approx(1, abs=1e-9)


def test_the_grid_is_the_users():
    grid = lambda f, y0, t: torch.linspace(0, 1, 11)  # noqa: E731
    y = ours.odeint(
        lambda t, y: y,
        torch.ones(()),
        torch.tensor([0.0, 1.0]),
        method="euler",
        options={"grid_constructor": grid},
    )
    assert y[-1].item() == pytest.approx(1.1**10, rel=1e-6)
    bad = {"grid_constructor": lambda f, y0, t: t[:1]}
    with pytest.raises(ic.InputError, match="grid_constructor: expected times from 0 to 1.5"):
        ours.odeint(lambda t, y: y, torch.ones(()), GRID, method="euler", options=bad)
    both = {**bad, "step_size": 0.1}
    with pytest.raises(ic.InputError, match="mutually exclusive"):
        ours.odeint(lambda t, y: y, torch.ones(()), GRID, method="euler", options=both)


@pytest.mark.slow
@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_a_ball_that_bounces_by_events(interface, method):
    """The position after three bounces, differentiated: against torchdiffeq."""
    found = []
    for library in (ours, theirs):
        gravity = torch.tensor([9.8], dtype=F64, requires_grad=True)
        height = torch.tensor([10.0], dtype=F64, requires_grad=True)
        t, y = torch.tensor(0.0, dtype=F64), (height, torch.zeros(1, dtype=F64), gravity)
        fall = lambda t, y: (y[1], -y[2], 0 * y[2])  # noqa: E731
        more = {"adjoint_params": ()} if interface == "odeint_adjoint" else {}
        options = {"step_size": 0.01, "interp": "cubic"} if method == "rk4" else {}
        for _ in range(3):
            t, y = library.odeint_event(
                fall,
                y,
                t,
                event_fn=lambda t, y: y[0],
                odeint_interface=getattr(library, interface),
                method=method,
                options=options,
                atol=1e-9,
                **more,
            )
            y = (y[0][-1] + 1e-7, -0.9 * y[1][-1], y[2][-1])
        found.append((t, y[1], *torch.autograd.grad(t + y[1].sum(), (height, gravity))))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-5)


def test_a_constant_event_ends_and_has_no_gradient():
    y0 = torch.ones(1, dtype=F64, requires_grad=True)
    event = lambda t, y: torch.zeros_like(t) if t > 0.5 else y.sum()  # noqa: E731
    t, y = ours.odeint_event(lambda t, y: -y, y0, torch.tensor(0.0, dtype=F64), event_fn=event)
    assert t.item() == pytest.approx(0.5, abs=1e-9) and not t.requires_grad
    assert torch.allclose(torch.autograd.grad(y[-1].sum(), y0)[0], torch.exp(-t), atol=1e-6)


def test_the_time_of_an_event_of_the_adjoint_has_its_gradient():
    y0 = torch.ones(1, dtype=F64, requires_grad=True)
    t, _ = ours.odeint_adjoint(lambda t, y: -y, y0, GRID[:2], event_fn=lambda t, y: y.sum() - 0.5)
    assert torch.autograd.grad(t, y0)[0].item() == pytest.approx(1.0, abs=1e-6)  # log(y0 / 0.5)


def test_parameters_that_are_not_used_have_the_gradient_zero():
    func = Spiral()
    y = ours.odeint_adjoint(func, torch.ones(2, dtype=F64), GRID)
    y.sum().backward()
    assert func.unused.grad is not None and not func.unused.grad.any()


def test_the_adjoint_reaches_what_a_function_captured():
    rate = torch.tensor(0.7, dtype=F64, requires_grad=True)
    y0 = torch.ones(1, dtype=F64)
    y = ours.odeint_adjoint(lambda t, y: -rate.exp() * y, y0, GRID, adjoint_params=())
    exact = torch.exp(-rate.exp() * GRID[-1])
    (found,), (expected,) = (torch.autograd.grad(value, rate) for value in (y[-1].sum(), exact))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_options_of_one_method_do_not_follow_to_another():
    with pytest.raises(ic.InputError, match="adjoint_options"):
        ours.odeint_adjoint(
            Spiral(),
            torch.ones(2, dtype=F64),
            GRID,
            method="rk4",
            options={"step_size": 0.1},
            adjoint_method="dopri5",
        )


def test_dense_output_is_torchdiffeqs():
    t0, t1 = GRID[0], GRID[-1]
    dense = ours.odeint_dense(Spiral(), torch.ones(2, dtype=F64), t0, t1)
    expected = theirs.odeint_dense(Spiral(), torch.ones(2, dtype=F64), t0, t1)
    assert torch.allclose(dense(GRID[1]), expected(GRID[1]), atol=1e-6)
    assert dense(GRID).shape == (4, 2)
    with pytest.raises(ic.InputError, match="expected times from 0 to 1.5"):
        dense(torch.tensor(2.0))


@pytest.mark.filterwarnings("ignore:The following arguments have no effect")
@pytest.mark.parametrize("solver", ["RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA"])
def test_scipy_solver(solver):
    pytest.importorskip("implicitcore_scipy")
    y0, asked = torch.ones(2, dtype=F64), {"method": "scipy_solver", "options": {"solver": solver}}
    found, expected = (
        library.odeint(lambda t, y: -y, y0, GRID, **asked) for library in (ours, theirs)
    )
    assert torch.allclose(found, expected, atol=1e-5)
    with pytest.warns(UserWarning, match="scipy_solver has no gradient"):
        assert not ours.odeint(Spiral(), y0, GRID, **asked).requires_grad
    y = ours.odeint_adjoint(
        Spiral(), y0.requires_grad_(), GRID, adjoint_method="dopri5", **asked, adjoint_options={}
    )
    assert y.requires_grad


@pytest.mark.parametrize("method", [*TABLEAUS, "sdirk2", "trbdf2", "implicit_euler", "trapezoid"])
def test_implicit_methods_have_their_order_and_their_gradients(method):
    order = {"implicit_euler": 1, "radauIIA3": 3, "gl4": 4, "radauIIA5": 5, "gl6": 6}.get(method, 2)
    t = torch.tensor([0.0, 1.0], dtype=F64)
    errors = []
    for step in (0.25, 0.125):
        rate = torch.tensor(0.5, dtype=F64, requires_grad=True)
        y0 = torch.tensor([0.8], dtype=F64, requires_grad=True)
        asked = {"method": method, "options": {"step_size": step}, "rtol": 1e-8, "atol": 1e-10}
        field = lambda t, y: -rate * y * y * torch.cos(t)  # noqa: E731, B023
        y = ours.odeint(field, y0, t, **asked)[-1]
        exact = 1 / (1 / y0 + rate * torch.sin(t[-1]))
        found = [y, *torch.autograd.grad(y.sum(), (y0, rate))]
        expected = [exact, *torch.autograd.grad(exact.sum(), (y0, rate))]
        errors.append(max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True)))
        y = ours.odeint_adjoint(field, y0, t, **asked)[-1]
        back = torch.autograd.grad(y.sum(), (y0, rate))
        assert (
            max((a - b).abs().max() for a, b in zip(back, expected[1:], strict=True)) < 0.3 * step
        )
    assert errors[1] < errors[0] / 2 ** (order - 0.7) + 1e-9


@pytest.mark.parametrize("method", ["sdirk2", "trbdf2", "implicit_euler", "trapezoid"])
def test_the_equations_of_equal_steps_are_solved_whatever_the_tolerances_are(method):
    """As in torchdiffeq: finite differences of the states are those of the method."""
    rate = torch.tensor(1.3, dtype=F64)
    y0 = torch.tensor([0.8, -0.5], dtype=F64, requires_grad=True)

    def states(y0, t):
        return ours.odeint(lambda t, y: t - rate * y**3, y0, t, method=method, rtol=1e-3, atol=1e-3)

    if method == "implicit_euler":
        y = states(y0, GRID).detach()
        moves = GRID.diff().unsqueeze(1) * (GRID[1:, None] - rate * y[1:] ** 3)
        assert (y.diff(dim=0) - moves).abs().max() < 1e-11
    assert torch.autograd.gradcheck(states, (y0, GRID.clone().requires_grad_()))
