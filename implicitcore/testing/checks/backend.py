"""What every backend promises, its kernels' values apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from implicitcore.backends.base import Backend
from implicitcore.backends.torch import TorchBackend
from implicitcore.functional import fixed_point, integrate
from implicitcore.ode_solvers.runge_kutta import Tsit5
from implicitcore.root_solvers.anderson import Anderson
from implicitcore.root_solvers.broyden import Broyden
from implicitcore.root_solvers.picard import Picard
from implicitcore.testing.check import contract
from implicitcore.testing.expect import expect, expect_close
from implicitcore.testing.kernels import Draw, device_of, expect_results, rounding, widest
from implicitcore.testing.problems import Cell, Driven, inputs

REFERENCE = TorchBackend()


@contract("backend")
def declares_its_requirements(backend: Backend) -> None:
    """States its devices and dtypes, whether it is differentiable, and why it cannot run here."""
    types = backend.device_types
    expect(
        bool(types) and all(isinstance(name, str) for name in types),
        "asked for device_types",
        types,
        'a tuple as ("cpu", "cuda")',
    )
    dtypes = backend.dtypes
    expect(
        bool(dtypes) and all(isinstance(dtype, torch.dtype) for dtype in dtypes),
        "asked for dtypes",
        dtypes,
        "a tuple of torch.dtype",
    )
    expect(
        isinstance(backend.differentiable, bool),
        "asked whether it is differentiable",
        backend.differentiable,
        "True or False",
    )
    reason = backend.unavailable_reason()
    valid = reason is None or (isinstance(reason, str) and bool(reason.strip()))
    expect(
        valid,
        "asked for unavailable_reason()",
        repr(reason),
        "None, or a text that says what is missing",
    )


@contract("backend")
def writes_to_out(backend: Backend) -> None:
    """``residual`` and ``axpy_history`` write to ``out``, which may be the row, and return it."""
    device, dtype = device_of(backend), widest(backend)
    for n in (1, 129):
        draw = Draw(dtype, device)
        fz, z, out = draw(3, n), draw(3, n), draw(3, n)
        expected = backend.residual(fz, z).value
        _is_out(backend.residual(fz, z, out).value, out, expected, "residual", dtype)
        larger, weights, fresh = draw(3, 6, n), draw(3, 1, 4), draw(3, 1, n)
        row, history = larger[:, 5:], larger[:, :4]
        expected = backend.axpy_history(row, weights, history, 0.5)
        _is_out(
            backend.axpy_history(row, weights, history, 0.5, out=fresh),
            fresh,
            expected,
            "axpy_history",
            dtype,
        )
        _is_out(
            backend.axpy_history(row, weights, history, 0.5, out=row),
            row,
            expected,
            "axpy_history (out is the row)",
            dtype,
        )


def _is_out(value: Tensor, out: Tensor, expected: Tensor, name: str, dtype: torch.dtype) -> None:
    did = f"called {name} with out"
    bound = rounding(dtype)
    expect_results((value, out), (expected, expected), f"{did}, compared with none", bound)
    expect(value.data_ptr() == out.data_ptr(), did, "another tensor", "out itself")


@contract("backend")
def solves_as_the_reference_does(backend: Backend) -> None:
    """Anderson, Broyden and Tsit5 give what they give with the torch backend, and its gradients."""
    device, dtype = device_of(backend), widest(backend)
    bound = 1e-6 if dtype == torch.float64 else 1e-3
    tol = 1e-9 if dtype == torch.float64 else 1e-5
    for solver in (Anderson(tol=tol), Broyden(tol=tol)):
        found, expected = (_root(solver, each, dtype, device) for each in (backend, REFERENCE))
        expect_close(
            found,
            expected,
            f"solved by {type(solver).__name__}, compared z and the gradients with the "
            "torch backend",
            bound,
        )
    found, expected = (_trajectory(each, dtype, device) for each in (backend, REFERENCE))
    expect_close(found, expected, "integrated by Tsit5, compared with the torch backend", bound)


@contract("backend")
def stops_as_the_reference_does(backend: Backend) -> None:
    """Picard, Anderson and Broyden stop each sample at the same step, with the same status.

    Also where samples diverge, have no root, or are not finite: whoever does whole iterations
    (``root_iteration``) does the stop test too.
    """
    device, dtype = device_of(backend), widest(backend)
    plain = Anderson(tol=1e-4, plain_rate=0.6)
    for solver in (Picard(tol=1e-4), Anderson(tol=1e-4), plain, Broyden(tol=1e-4)):
        for name, f in HARD.items():
            found, expected = (
                _stops(solver, f, each, dtype, device) for each in (backend, REFERENCE)
            )
            did = f"solved {name} by {type(solver).__name__}, compared with the torch backend"
            for what, mine, theirs in zip(("status", "steps"), found, expected, strict=True):
                expect(mine == theirs, did, f"{what} {mine}", str(theirs))


def _shift(z: Tensor) -> Tensor:
    """Unlike entries: of equal ones differences are parallel, and rounding decides."""
    return torch.linspace(-1, 1, z.shape[1]).to(z).cos().cumsum(0).sin()


HARD: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "contractions of unlike rates": lambda z, x: torch.tanh(x * z.roll(1, 1) + _shift(z)),
    "linear maps, of which some expand": lambda z, x: 2 * x * z.roll(1, 1) + _shift(z),
    "maps without a fixed point": lambda z, x: z + 1 + x,
    "maps of which one gives NaN": lambda z, x: torch.where(
        x == x[1:2], torch.nan, 0.5 * z.roll(1, 1) + _shift(z)
    ),
}


@torch.no_grad()
def _stops(
    solver: Any, f: Any, backend: Backend, dtype: torch.dtype, device: str
) -> tuple[list[int], list[int]]:
    """The status and the steps of each sample."""
    rates = torch.linspace(0.1, 0.9, 5, dtype=dtype, device=device)
    x = rates[:, None].expand(5, 9).contiguous()
    found = fixed_point(
        f, torch.zeros_like(x), x, solver=solver, backend=backend, on_failure="ignore"
    )
    return found.status.tolist(), found.steps.tolist()


def _root(solver: Any, backend: Backend, dtype: torch.dtype, device: str) -> Tensor:
    cell, x = (
        Cell(n=129, dtype=dtype).to(device),
        inputs(3, 129, dtype=dtype).to(device).requires_grad_(),
    )
    z = (
        fixed_point(
            cell, torch.zeros_like(x), x, solver=solver, backend=backend, on_failure="ignore"
        )
        .raise_if_failed()
        .z
    )
    found = torch.autograd.grad(z.square().sum(), [x, *cell.parameters()])
    return torch.cat([z.detach().flatten(), *(g.flatten() for g in found)])


@torch.no_grad()
def _trajectory(backend: Backend, dtype: torch.dtype, device: str) -> Tensor:
    field, x = Driven(n=129, dtype=dtype).to(device), inputs(3, 129, dtype=dtype).to(device)
    times = torch.tensor([0.0, 1.0], dtype=dtype, device=device)
    return (
        integrate(
            field,
            x,
            x,
            times=times,
            solver=Tsit5(rtol=1e-5, atol=1e-6),
            backend=backend,
            on_failure="ignore",
        )
        .raise_if_failed()
        .z
    )
