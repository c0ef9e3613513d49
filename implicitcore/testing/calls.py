"""How a part of each kind is called, for the checks that all kinds share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from implicitcore.backends.base import Backend
from implicitcore.backends.torch import TorchBackend
from implicitcore.gradients.base import GradientStrategy
from implicitcore.ode_solvers.base import ODESolver
from implicitcore.root_solvers.base import RootSolver
from implicitcore.tensors.shared import unwrapped
from implicitcore.testing.factory import Maker
from implicitcore.testing.gradients import Case, served
from implicitcore.testing.kernels import KERNELS, Draw, Kernel, device_of, rounding, widest
from implicitcore.testing.problems import problem_for
from implicitcore.testing.subjects import kind_of
from implicitcore.testing.tensors import flat

Results = dict[str, Tensor]


@dataclass(frozen=True)
class Call:
    """One way to call a part.

    Attributes:
        name: what is done, for messages.
        inputs: what it is called with, a pytree of tensors with the batch first. A NaN is put into
            its last tensor.
        run: inputs -> the results by name, each with the batch first.
        batch: samples of the inputs.
        alone: how far a result may be from that of its sample alone.
        beside_nan: how far a NaN in another sample may move a result; None where it is an error.
        shared: tensors that the part is given as well, and that are not per sample.
    """

    name: str
    inputs: Any
    run: Callable[[Any], Results]
    batch: int
    alone: float
    beside_nan: float | None
    shared: tuple[Tensor, ...] = ()


def calls(subject: Any, batch: int | None = None) -> Iterator[Call]:
    """Every way to call a part.

    Arguments:
        subject: a part, or the :class:`~implicitcore.testing.factory.Maker` of one.
        batch: samples; None for some that suit the kind.
    """
    kind = subject.kind if isinstance(subject, Maker) else kind_of(subject)
    of_kind, default = _CALLS[kind]
    yield from of_kind(subject, default if batch is None else batch)


def module_call(maker: Maker, module: Any, batch: int = 4) -> Call:
    """The call of a layer, a start or a cell, or of the velocity and the update of dynamics."""
    name, run = _RUNS[maker.kind]
    inputs = maker.inputs(batch)
    if maker.kind == "layer":
        return Call(name, inputs, lambda x: run(module, x), batch, 1e-7, None)
    if maker.kind == "dynamics":
        inputs = (times_like(inputs[0]), *inputs)
    # The state is the last.
    inputs = inputs if maker.kind == "start" else (*inputs[:-2], inputs[-1], inputs[-2])
    return Call(name, inputs, lambda given: run(module, given), batch, 1e-12, 1e-12)


def _run_dynamics(module: Any, inputs: Any) -> Results:
    t, x, z = inputs
    return {
        "velocity(t, z, x)": flat(module.velocity(t, z, unwrapped(x))),
        "update(z, x)": flat(module.update(z, unwrapped(x))),
    }


def _run_cell(module: Any, inputs: Any) -> Results:
    x, z = inputs
    return {"f(z, x)": flat(module(z, unwrapped(x)))}


_RUNS: dict[str, tuple[str, Callable[[Any, Any], Results]]] = {
    "layer": ("called the layer", lambda module, x: {"layer(x)": flat(module(x))}),
    "dynamics": ("called the dynamics", _run_dynamics),
    "start": ("called the start", lambda module, x: {"z0": flat(module(unwrapped(x)))}),
    "cell": ("called the cell", _run_cell),
}


def times_like(z: Any, value: float | None = None) -> Tensor:
    """Times for a state, ``[batch, 1, ..., 1]``: the value, or another one for each sample."""
    first = pytree.tree_leaves(z)[0]
    t = torch.linspace(0.1, 0.9, len(first)) if value is None else torch.full((len(first),), value)
    return t.to(first.dtype).reshape(-1, *(1,) * (first.ndim - 1))


def _module(maker: Maker, batch: int) -> Iterator[Call]:
    module: nn.Module = maker.make()
    yield module_call(maker, module, batch)


def _solver(solver: RootSolver | ODESolver, batch: int) -> Iterator[Call]:
    problem = problem_for(solver, batch)
    # Samples that need unlike numbers of steps.
    x = problem.x * torch.logspace(-1, 0.5, batch, dtype=torch.float64)[:, None]

    def run(inputs: Any) -> Results:
        z0, x = inputs
        solution = replace(problem, z0=z0, x=x).solve(solver)
        return {"z": problem.states(solution), "the status": solution.status}

    shared = () if problem.times is None else (problem.times,)
    yield Call("solved", (problem.z0, x), run, batch, 1e-7, 1e-3, shared)


def _gradient(gradient: GradientStrategy, batch: int) -> Iterator[Call]:
    for case in served(gradient, batch):
        yield _gradient_call(case)


def _gradient_call(case: Case) -> Call:
    problem = case.problem
    is_trajectory = problem.times is not None

    def run(inputs: Any) -> Results:
        v, z0, x = inputs
        v = v.transpose(0, 1) if is_trajectory else v
        x = x.detach().requires_grad_()
        (found,) = replace(case, problem=replace(problem, z0=z0, x=x), v=v).gradients([x])
        return {"the gradient of x": found}

    v = case.v.transpose(0, 1) if is_trajectory else case.v
    shared = (problem.times,) if problem.times is not None else ()
    inputs = v, problem.z0.detach(), problem.x.detach()
    return Call(case.name, inputs, run, len(problem.x), 1e-6, 1e-6, shared)


def _backend(backend: Backend, batch: int) -> Iterator[Call]:
    device, dtype = device_of(backend), widest(backend)
    for kernel in KERNELS:
        draw = Draw(dtype, device)
        kernel(TorchBackend(), draw, batch, 129)
        # A NaN in each argument in turn: the last one is where it is put.
        for place in range(len(draw.drawn)):
            yield _kernel_call(backend, kernel, draw.drawn, place)


def _kernel_call(backend: Backend, kernel: Kernel, arguments: list[Tensor], place: int) -> Call:
    def run(inputs: Any) -> Results:
        given = [*inputs[:-1]]
        given.insert(place, inputs[-1])
        results = kernel(backend, _Given(given), len(given[0]), 129)
        return {f"result {i}": value for i, value in enumerate(results)}

    inputs = (*arguments[:place], *arguments[place + 1 :], arguments[place])
    return Call(
        f"called {kernel.__name__}",
        inputs,
        run,
        len(arguments[0]),
        rounding(arguments[0].dtype, 129),
        0.0,
    )


class _Given(Draw):
    """The arguments that it is made with, in their order."""

    def __init__(self, arguments: list[Tensor]) -> None:
        super().__init__(arguments[0].dtype, str(arguments[0].device))
        self._arguments = iter(arguments)

    def _next(self, shape: tuple[int, ...], dtype: torch.dtype, rounded: torch.dtype) -> Tensor:
        return next(self._arguments)


_CALLS: dict[str, tuple[Callable[[Any, int], Iterator[Call]], int]] = {
    "layer": (_module, 4),
    "dynamics": (_module, 4),
    "start": (_module, 4),
    "cell": (_module, 4),
    "root_solver": (_solver, 8),
    "ode_solver": (_solver, 8),
    "gradient": (_gradient, 4),
    "backend": (_backend, 3),
}
