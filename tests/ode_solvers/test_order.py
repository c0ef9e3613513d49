"""The error of every Runge-Kutta method, at the end and between the steps, goes with the stated
power of the step."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import Tensor

import implicitcore as ic
from implicitcore.extend import StepwiseODESolver, System
from implicitcore.ode_solvers.implicit_method import ImplicitMethod
from implicitcore.ode_solvers.runge_kutta import RungeKutta
from implicitcore.ode_solvers.step_size import Fixed
from implicitcore.registry.registry import REGISTRY
from implicitcore.tensors.packing import Packing
from implicitcore.testing.expect import known
from implicitcore.testing.trajectories import trajectories

PARTS = [part for part in REGISTRY.parts("ode_solver") if part.provider == "implicitcore"]
METHODS = {
    part.name: part.load() for part in PARTS if issubclass(part.load(), RungeKutta | ImplicitMethod)
}
# The orders that the papers state: of the solution, and the power of dt in the error of the
# continuous extension.
ORDERS = {
    "euler": (1, 1),
    "midpoint": (2, 2),
    "heun": (2, 2),
    "heun3": (3, 3),
    "rk4": (4, 4),
    "rk38": (4, 4),
    "adaptive_heun": (2, 2),
    "fehlberg21": (2, 2),
    "bosh3": (3, 3),
    "fehlberg45": (4, 4),
    "dopri5": (5, 5),
    "tsit5": (5, 5),
    "dop853": (8, 8),
    "implicit_euler": (1, 1),
    "trapezoid": (2, 2),
    "esdirk": (4, 4),
    "sdirk2": (2, 2),
    "trbdf2": (2, 2),
    "kvaerno5": (5, 5),
    "radau_iia5": (5, 4),
    "kencarp3": (3, 3),
    "kencarp4": (4, 4),
}
Z0 = torch.tensor([[0.4], [0.7], [-0.9]], dtype=torch.float64)
SPAN = torch.linspace(0, 1, 6, dtype=torch.float64)


def field(t: Tensor, z: Tensor, x: None) -> Tensor:
    """Nonlinear, and the time matters."""
    return z * z * torch.cos(t)


def exact(t: Tensor) -> Tensor:
    """[T, 3, 1]."""
    return 1 / (1 / Z0 - torch.sin(t)[:, None, None])


@functools.cache
def equal_steps(name: str, dt: float) -> StepwiseODESolver:
    """The method with equal steps, adaptive or not."""
    cls = METHODS[name]
    options = {"rtol": 1e-12, "atol": 1e-12} if issubclass(cls, ImplicitMethod) else {}
    return type(cls.__name__, (cls,), {"step_size": property(lambda self: Fixed(dt))})(**options)


def slope(steps: list[int], errors: list[float]) -> float:
    """Of the straight line through the logarithms."""
    x = torch.tensor([[-math.log(n), 1.0] for n in steps])
    y = torch.tensor([math.log(error) for error in errors])
    return torch.linalg.lstsq(x, y[:, None]).solution[0].item()


def ladder(name: str) -> list[int]:
    """Numbers of steps whose errors are well above rounding; at order 8 there are few, and none is
    quite at the limit."""
    return {"dop853": [10, 15], "kvaerno5": [20, 30, 40], "radau_iia5": [8, 12, 16]}.get(
        name, [60, 90, 120]
    )


def test_every_method_states_its_order():
    assert {name: method.tableau.order for name, method in METHODS.items()} == {
        name: order for name, (order, _) in ORDERS.items()
    }


@pytest.mark.parametrize("name", ORDERS)
def test_the_error_goes_with_the_step_to_the_order(name):
    order = ORDERS[name][0]
    with torch.no_grad():
        found = [
            ic.integrate(field, Z0, times=SPAN, solver=equal_steps(name, 1 / n), hit_times=True)
            .raise_if_failed()
            .z
            for n in ladder(name)
        ]
    errors = [(z - exact(SPAN)).norm().item() for z in found]
    assert abs(slope(ladder(name), errors) - order) < (0.5 if order == 8 else 0.3), errors


@pytest.mark.parametrize("name", ORDERS)
def test_so_does_the_error_between_the_steps(name):
    order, t = ORDERS[name][1], torch.linspace(0, 1, 301, dtype=torch.float64)
    with torch.no_grad():
        solutions = [
            ic.integrate(field, Z0, times=SPAN, solver=equal_steps(name, 1 / n), dense=True)
            for n in ladder(name)
        ]
    errors = [(solution.interpolate(t) - exact(t)).abs().max().item() for solution in solutions]
    assert abs(slope(ladder(name), errors) - order) < 0.5, errors


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("problem", trajectories(), ids=str)
def test_the_order_on_other_problems(problem, name):
    order = ORDERS[name][0]
    few = {"dop853": [2, 3, 4], "kvaerno5": [12, 18, 24], "radau_iia5": [12, 16, 24]}
    steps = few.get(name, [24, 48, 96])
    end = torch.tensor([0.0, 1.0], dtype=torch.float64)
    with torch.no_grad():
        ends = [
            ic.integrate(
                problem.field, problem.z0, problem.x, times=end, solver=equal_steps(name, 1 / n)
            ).z[-1]
            for n in steps
        ]
    errors = [(z - problem.trajectory(end)[-1]).abs().max().item() for z in ends]
    assert order - 0.4 < slope(steps, errors) < order + 1.2, errors


def test_the_error_estimate_of_dop853_goes_with_the_eighth_power():
    solver, sizes, errors = ic.DOP853(rtol=1e-3, atol=1e-3), [4, 6, 8, 12], []
    system = System.of(ic.VectorField(field), None, Packing.of(Z0))
    t = torch.zeros(3, dtype=torch.float64)
    for n in sizes:
        step = solver.step(system, t, torch.full_like(t, 1 / n), Z0, system.velocity(t, Z0))
        errors.append(known(step.error).norm().item())
    assert abs(slope(sizes, errors) - 8) < 0.5, errors
