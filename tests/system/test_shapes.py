"""Shapes, dtypes and devices are compared before arithmetic: nothing is broadcast in silence."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import implicitcore as ic
from implicitcore.extend import EqualSteps, Options, Step, StepwiseRootSolver
from implicitcore.registry.registry import REGISTRY

CELLS = {
    "one row": lambda z, x: 0.5 * z.mean(0, keepdim=True),
    "one column": lambda z, x: 0.5 * z.mean(1, keepdim=True),
    "no dimension": lambda z, x: 0.5 * z.mean(),
    "another dtype": lambda z, x: 0.5 * z.double(),
    "another device": lambda z, x: (0.5 * z).to("meta"),
    "a tuple": lambda z, x: (0.5 * z,),
    "a number": lambda z, x: 0.5,
    "nothing": lambda z, x: None,
    "an array": lambda z, x: z.detach().numpy(),
}
RETURNED = "returned (a |shape |torch.float64|a tensor on meta)"


def parts(kind):
    return [pytest.param(part.load(), id=part.name) for part in REGISTRY.parts(kind)]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("solver", parts("root_solver"))
def test_every_root_solver(solver, cell):
    for graph in (False, True):
        with torch.set_grad_enabled(graph), pytest.raises(ic.InputError, match=RETURNED):
            ic.fixed_point(CELLS[cell], torch.zeros(4, 3), solver=solver())


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("solver", parts("ode_solver"))
def test_every_ode_solver(solver, cell):
    if cell == "one row" and solver.__module__.startswith("implicitcore_scipy"):
        pytest.skip("it integrates each sample alone, a batch of which is one row")
    field = lambda t, z, x: CELLS[cell](z, x)  # noqa: E731
    times = torch.tensor([0.0, 1.0])
    with torch.no_grad(), pytest.raises(ic.InputError, match=RETURNED):
        ic.integrate(field, torch.zeros(4, 2), times=times, solver=solver())


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("solver", [ic.Anderson(), ic.SteadyState(), ic.Tsit5(), ic.ESDIRK()])
def test_layers(solver, cell):
    layer = ic.ImplicitLayer(ic.FixedPoint(CELLS[cell]), solver=solver)
    with pytest.raises(ic.InputError):
        layer(torch.zeros(4, 3))


@pytest.mark.parametrize("gradient", parts("gradient"))
@pytest.mark.parametrize("cell", CELLS)
def test_every_strategy(gradient, cell):
    x = torch.zeros(4, 3, requires_grad=True)
    field = lambda t, z, x: CELLS[cell](z, x)  # noqa: E731
    z0, times = torch.zeros(4, 3), torch.tensor([0.0, 1.0])
    with pytest.raises(ic.InputError, match=RETURNED):
        if gradient in (ic.Adjoint, ic.Checkpointed):
            ic.integrate(field, z0, x, times=times, gradient=gradient())
        else:
            solver = ic.Reversible() if gradient is ic.ReversibleGradient else ic.Broyden()
            ic.fixed_point(CELLS[cell], z0, x, solver=solver, gradient=gradient())


def wrong(z):
    return {
        "one row": z[:1],
        "one column": z[:, :1],
        "no dimension": z.mean(),
        "another dtype": z.double(),
        "another device": z.to("meta"),
        "a number": 0.5,
    }


@dataclass(frozen=True, kw_only=True)
class WrongStep(StepwiseRootSolver[None]):
    """A step of another shape."""

    what: str = ""

    def init(self, system, z):
        return None

    def step(self, system, now, state):
        return wrong(now.fz)[self.what], None


@dataclass(frozen=True, kw_only=True)
class WrongSolve(Options, ic.RootSolver):
    """A solution of another shape."""

    what: str = ""
    field: str = "z"

    def solve(self, system, z0):
        found = ic.Picard().solve(system, z0)
        per_sample = {"one row": found.status[:1], "no dimension": found.status[0], "a number": 0}
        value = wrong(found.z)[self.what] if self.field == "z" else per_sample[self.what]
        return found.amended(judged=None, **{self.field: value})


@dataclass(frozen=True, kw_only=True)
class WrongOdeStep(EqualSteps[torch.Tensor]):
    """A step of another shape."""

    what: str = ""

    def init(self, system, t, z):
        return system.velocity(t, z)

    def velocity(self, state):
        return state

    def step(self, system, t, dt, z, state):
        return Step(wrong(z + dt[:, None] * state)[self.what], state=state)


@dataclass(frozen=True, kw_only=True)
class WrongTrajectory(Options, ic.ODESolver):
    """A trajectory of another shape."""

    what: str = ""

    def solve(self, system, z0, times, stop=None):
        found = ic.Euler().solve(system, z0, times)
        return found.amended(z=wrong(found.z[-1])[self.what])


SHAPES = list(wrong(torch.zeros(2, 2)))
HALF = lambda z, x: 0.5 * z + 1  # noqa: E731


@pytest.mark.parametrize("what", SHAPES)
def test_the_step_of_a_root_solver(what):
    solver = WrongStep(what=what)
    with pytest.raises(ic.InputError, match="WrongStep.step: received .*, expected shape"):
        ic.fixed_point(HALF, torch.zeros(4, 3), solver=solver)
    with pytest.raises(ic.InputError, match=r"WrongStep.step"):
        ic.fixed_point(HALF, torch.zeros(4, 3), solver=ic.Chain((ic.Picard(max_steps=2), solver)))


class NoPair(WrongStep):
    def step(self, system, now, state):
        return now.fz


def test_a_step_without_a_state():
    with pytest.raises(ic.InputError, match="expected the next iterate and the next state"):
        ic.fixed_point(HALF, torch.zeros(4, 3), solver=NoPair())


@pytest.mark.parametrize("what", SHAPES)
def test_the_solution_of_a_root_solver(what):
    solver = WrongSolve(what=what)
    for found in (solver, ic.Chain((ic.Picard(max_steps=2), solver))):
        with pytest.raises(ic.InputError, match="WrongSolve.solve: z is"):
            ic.fixed_point(HALF, torch.zeros(4, 3), solver=found)
    x = torch.ones(4, 3, requires_grad=True)
    z = ic.fixed_point(lambda z, x: 0.5 * z + x, x, x, gradient=ic.Implicit(solver)).z
    with pytest.raises(ic.InputError, match="WrongSolve.solve: z is"):
        z.sum().backward()


@pytest.mark.parametrize("field", ["status", "steps", "residual"])
@pytest.mark.parametrize("what", ["one row", "no dimension", "a number"])
def test_what_a_root_solver_says_of_each_sample(what, field):
    with pytest.raises(ic.InputError, match=rf"{field} is .*, expected shape \[4\]"):
        ic.fixed_point(HALF, torch.zeros(4, 3), solver=WrongSolve(what=what, field=field))


@pytest.mark.parametrize("what", SHAPES)
@pytest.mark.parametrize("solver", [WrongOdeStep, WrongTrajectory])
def test_an_ode_solver(solver, what):
    times = torch.tensor([0.0, 1.0])
    with pytest.raises(ic.InputError, match=f"{solver.__name__}"):
        ic.integrate(lambda t, z, x: -z, torch.ones(4, 3), times=times, solver=solver(what=what))
    layer = ic.ImplicitLayer(ic.FixedPoint(HALF), solver=solver(what=what))
    with pytest.raises(ic.InputError, match=f"{solver.__name__}"):
        layer(torch.ones(4, 3))
    if solver is WrongOdeStep:
        with pytest.raises(ic.InputError, match=f"{solver.__name__}"):
            ic.fixed_point(
                HALF, torch.ones(4, 3), solver=ic.SteadyState(ode_solver=solver(what=what))
            )


class Needy(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, z, x):
        return 0.3 * torch.tanh(self.linear(z)) + x


INPUTS = {
    "array": (np.ones((4, 3)), "no tensor|torch.as_tensor"),
    "list": ([[1.0, 2.0, 3.0]] * 4, "x holds 1.0"),
    "text": ("x", "x holds 'x'"),
    "none": (None, "x was not given|x holds None"),
}


@pytest.mark.parametrize("name", INPUTS)
def test_an_input_that_is_no_tensor_is_told_in_a_sentence(name):
    x, message = INPUTS[name]
    with pytest.raises(ic.InputError, match=message):
        ic.fixed_point(Needy(), torch.zeros(4, 3), x)
    with pytest.raises(ic.InputError, match=message):
        field = lambda t, z, x: x - z  # noqa: E731
        ic.integrate(field, torch.zeros(4, 3), x, times=torch.tensor([0.0, 1.0]))
    layer = ic.ImplicitLayer(ic.FixedPoint(Needy()), solver=ic.Picard())
    with pytest.raises(ic.InputError, match="torch.as_tensor"):
        layer(x)


def test_integers_as_an_input():
    x = torch.ones(4, 3, dtype=torch.int64)
    torch.testing.assert_close(
        ic.fixed_point(lambda z, x: 0.5 * z + x, torch.zeros(4, 3), x).z,
        torch.full((4, 3), 2.0),
        rtol=1e-3,
        atol=0,
    )
    with pytest.raises(ic.InputError, match=r"torch.int64 \[4, 3\].*x.float\(\)"):
        ic.ImplicitLayer(ic.FixedPoint(Needy()), solver=ic.Picard())(x)


@pytest.mark.parametrize("cell", ["module", "captured"])
def test_an_input_of_another_dtype_than_the_cell(cell):
    module = Needy()
    f = module if cell == "module" else lambda z, x: module(z, x)
    x = torch.ones(4, 3, dtype=torch.float64)
    message = "z torch.float64, x torch.float64, parameters torch.float32; bring them to one"
    with pytest.raises(ic.InputError, match=message):
        ic.ImplicitLayer(ic.FixedPoint(f), solver=ic.Picard())(x)


def test_an_error_of_the_cell_keeps_its_type():
    class Mine(TypeError):
        pass

    for error in (Mine("'NoneType'"), KeyError("x"), RuntimeError("mine"), TypeError("mine")):

        def f(z, x, error=error):
            raise error

        with pytest.raises(type(error)) as caught:
            ic.fixed_point(f, torch.zeros(4, 3), None)
        assert caught.value is error
        assert "while evaluating FixedPoint" in caught.value.__notes__[0]


STARTS = {
    "no dimension": (torch.tensor(1.0), "no dimensions"),
    "integers": (torch.ones(4, 3, dtype=torch.int64), "torch.int64"),
    "sparse": (torch.ones(4, 3).to_sparse(), "layout torch.sparse_coo"),
    "meta": (torch.ones(4, 3, device="meta"), "meta device"),
    "float8": (torch.ones(4, 3).to(torch.float8_e4m3fn), "float8"),
    "marked": (ic.shared(torch.ones(4, 3)), "marked as shared"),
    "none": (None, "NoneType"),
    "array": (np.ones((4, 3)), "ndarray"),
    "list": ([[1.0]], "float"),
    "nothing": ((), "no tensors"),
}


@pytest.mark.parametrize("name", STARTS)
def test_a_start_that_is_no_state(name):
    z0, message = STARTS[name]
    with pytest.raises(ic.InputError, match=message):
        ic.fixed_point(HALF, z0)
    with pytest.raises(ic.InputError, match=message):
        ic.integrate(lambda t, z, x: -z, z0, times=torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("shape", [(0, 2), (4, 0), (0, 0)])
@pytest.mark.parametrize("solver", [*parts("root_solver"), *parts("ode_solver")])
def test_a_state_without_entries(solver, shape):
    z0 = torch.zeros(shape)
    if issubclass(solver, ic.ODESolver):
        times = torch.tensor([0.0, 1.0])
        with torch.no_grad():
            found = ic.integrate(
                lambda t, z, x: -z, z0, times=times, solver=solver(), on_failure="ignore"
            )
        assert found.z.shape == (2, *shape)
    else:
        found = ic.fixed_point(HALF, z0, solver=solver(), on_failure="ignore")
        assert found.z.shape == shape
    assert found.converged.tolist() == [True] * shape[0]


@pytest.mark.parametrize("gradient", [ic.Implicit(), ic.Unrolled(), ic.Phantom()])
def test_tensors_of_inference_mode(gradient):
    with torch.inference_mode():
        x, z0 = torch.ones(4, 3), torch.zeros(4, 3)
    cell = Needy()
    layer = ic.ImplicitLayer(ic.FixedPoint(cell), solver=ic.Picard(), gradient=gradient)
    layer(x, z0).sum().backward()
    assert cell.linear.weight.grad is not None
    assert cell.linear.weight.grad.isfinite().all()
    torch.testing.assert_close(layer(x, z0), layer(torch.ones(4, 3)))
