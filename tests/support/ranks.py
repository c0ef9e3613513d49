"""Two processes of torch.distributed on this machine, and what they run: a child imports this
module, and no test."""

from __future__ import annotations

import copy
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

import implicitcore as ic
from implicitcore.compat import torchdiffeq
from implicitcore.testing.problems import Cell, inputs

WORLD = 2


def run(worker: Callable[[int], Any], folder: Path, timeout: float = 90) -> list[Any]:
    """What ``worker(rank)`` returns on each rank; it raises where one does, and ends those that
    hang."""
    context = spawn(_start, (worker, str(folder)), nprocs=WORLD, join=False)
    assert context is not None
    end = time.monotonic() + timeout
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < end, f"{worker.__name__} hangs"
    finally:
        for process in context.processes:
            if process is not None and process.is_alive():
                process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


def _start(rank: int, worker: Callable[[int], Any], folder: str) -> None:
    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD
    )
    try:
        torch.save(worker(rank), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


# --- data parallel, and weights divided among the processes
# --------------------------------------------------------------------------------------------------


def model(solver: ic.RootSolver | ic.ODESolver, gradient: ic.GradientStrategy) -> nn.Module:
    torch.manual_seed(0)
    cell, is_root = Cell(contraction=0.8), isinstance(solver, ic.RootSolver)
    dynamics = ic.FixedPoint(cell) if is_root else ic.VectorField(cell, autonomous=True)
    layer = ic.ImplicitLayer(dynamics, solver=solver, gradient=gradient)
    return nn.Sequential(nn.Linear(6, 6), layer, nn.Linear(6, 2)).double()


class DropIn(nn.Module):
    """torchdiffeq's functions around a cell."""

    def __init__(self, solve: Callable[..., Any], method: str) -> None:
        super().__init__()
        self.f, self.solve, self.method = Cell(contraction=0.8), solve, method

    def forward(self, x: Tensor) -> Tensor:
        times = torch.tensor([0.0, 0.5, 1.0], dtype=x.dtype)
        return self.solve(lambda t, y: self.f(y, x) - y, x, times, method=self.method)[-1]


def drop_in(solve: Callable[..., Any], method: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), DropIn(solve, method), nn.Linear(6, 2)).double()


def samples(rank: int | None = None, sizes: tuple[int, int] = (4, 4)) -> Tensor:
    """Easy ones for the first rank, hard ones for the second."""
    easy, hard = 5 * inputs(sizes[0], seed=3), 0.01 * inputs(sizes[1], seed=4)
    return torch.cat((easy, hard)) if rank is None else (easy, hard)[rank]


ANDERSON = ic.Anderson(tol=1e-12, max_steps=100)
RK4 = ic.RK4(dt=0.25)

# A solver with a gradient: every strategy, at an equilibrium and along a trajectory.
LAYERS: dict[str, tuple[Any, Any]] = {
    "implicit": (ANDERSON, ic.Implicit(ic.GMRES(tol=1e-12))),
    "neumann": (ANDERSON, ic.Neumann(steps=4)),
    "phantom": (ANDERSON, ic.Phantom(steps=3)),
    "shine": (ic.Broyden(tol=1e-12, max_steps=100), ic.Shine()),
    "reversible": (ic.Reversible(tol=1e-10, max_steps=100), ic.ReversibleGradient()),
    "unrolled": (ANDERSON, ic.Unrolled()),
    "adjoint": (RK4, ic.Adjoint()),
    "checkpointed": (RK4, ic.Checkpointed()),
    "unrolled trajectory": (RK4, ic.Unrolled()),
    "checkpointed, stiff": (ic.ImplicitEuler(dt=0.25, rtol=1e-12), ic.Checkpointed()),
}
DROP_INS = {
    "odeint": (torchdiffeq.odeint, "rk4"),
    "odeint, implicit": (torchdiffeq.odeint, "implicit_euler"),
    "odeint_adjoint": (torchdiffeq.odeint_adjoint, "rk4"),
}
STRATEGIES: dict[str, Callable[[], nn.Module]] = {
    name: partial(model, *parts) for name, parts in LAYERS.items()
} | {name: partial(drop_in, *parts) for name, parts in DROP_INS.items()}
UNEVEN = ("implicit", "phantom", "unrolled")


def strategies(rank: int) -> dict[Any, Any]:
    """Gradients with data parallel and with the whole model divided; what is said of a cell that is
    divided on its own."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (WORLD,))
    found: dict[Any, Any] = {}
    for name, build in STRATEGIES.items():
        for sizes in ((4, 4), (4, 0)) if name in UNEVEN else ((4, 4),):
            parallel = DistributedDataParallel(build())
            parallel(samples(rank, sizes)).square().sum().backward()
            found[name, "ddp", sizes] = [p.grad.clone() for p in parallel.module.parameters()]
        whole: Any = fully_shard(build(), mesh=mesh)
        whole(samples(rank)).square().sum().backward()
        found[name, "whole"] = [p.grad.full_tensor() for p in whole.parameters()]
        nested: Any = build()
        fully_shard(cell_of(nested[1]), mesh=mesh)
        fully_shard(nested, mesh=mesh)
        found[name, "nested"] = _said(nested, samples(rank))
        if name in LAYERS:
            found |= {(name, way): text for way, text in _refused(build, mesh, rank)}
    together: Any = model(ANDERSON, ic.Implicit(ANDERSON))
    together[1].sync_steps = True
    fully_shard(cell_of(together[1]), mesh=mesh)
    fully_shard(together, mesh=mesh)
    together(samples(rank)).square().sum().backward()
    found["together"] = [p.grad.full_tensor() for p in together.parameters()]
    return found


def cell_of(module: Any) -> nn.Module:
    """f of a layer or of a drop-in."""
    return module.f if isinstance(module, DropIn) else next(iter(module.dynamics.children()))


def evaluations(rank: int) -> dict[str, int]:
    """Of the forward solves of one rank's samples."""
    found = {}
    for name in UNEVEN:
        layers: Any = model(*LAYERS[name])
        found[name] = layers[1].solve(layers[0](samples(rank))).evaluations
    return found


def _said(function: Callable[..., Any], *arguments: Any) -> str:
    try:
        function(*arguments)
    except ic.InputError as error:
        return str(error)
    return ""


def _refused(build: Callable[[], nn.Module], mesh: Any, rank: int) -> Iterator[tuple[str, str]]:
    """What is said of a cell divided on its own in a part of what a layer solves, by what a
    function of it calls, and in a function of ours."""
    from torch.distributed.fsdp import fully_shard

    for way in ("part", "closure", "function"):
        model: Any = build()
        layer, z0 = model[1], samples(rank)
        cell = cell_of(layer)
        fully_shard(cell, mesh=mesh)
        if way == "part":
            model = fully_shard(nn.Sequential(around(layer, Inner(cell))), mesh=mesh)
        elif way == "closure":
            model = around(layer, lambda z, x: cell(z, x))  # noqa: B023 - called before the next
        yield way, _said(call, layer, cell, z0) if way == "function" else _said(model, z0)


class Inner(nn.Module):
    """A cell with another one in it."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell, self.scale = cell, nn.Parameter(torch.ones(6, dtype=torch.float64))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return self.scale * self.cell(z, x)


def around(layer: Any, f: Any) -> nn.Module:
    """The same layer around another f."""
    is_root = isinstance(layer.solver, ic.RootSolver)
    dynamics = ic.FixedPoint(f) if is_root else ic.VectorField(f, autonomous=True)
    return ic.ImplicitLayer(dynamics, solver=layer.solver, gradient=layer.gradient)


def call(layer: Any, cell: nn.Module, z0: Tensor) -> Any:
    """The same without a layer."""
    options = {"solver": layer.solver, "gradient": layer.gradient}
    if isinstance(layer.solver, ic.RootSolver):
        return ic.fixed_point(cell, z0, z0, **options)
    times = torch.tensor([0.0, 1.0], dtype=z0.dtype)
    return ic.integrate(lambda t, z, x: cell(z, x), z0, z0, times=times, **options)


# --- f communicates
# -------------------------------------------------------------------------------------------------


class Total(torch.autograd.Function):
    """The sum over all processes, whose derivative is one too."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return Total.apply(grad_outputs[0])


class MeanCell(Cell):
    """A cell that sees the mean of all samples, of all processes where there are several."""

    def __init__(self) -> None:
        super().__init__(contraction=0.6)
        self.calls = 0

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        total, count = z.sum(0), torch.tensor(float(len(z)), dtype=z.dtype)
        if dist.is_initialized():
            total, count = Total.apply(total), Total.apply(count)
        return super().forward(z + 0.5 * (total / count - z), x)


SYNCED = {
    "picard": ic.Picard(tol=1e-12, max_steps=200),
    "anderson": ic.Anderson(tol=1e-12, max_steps=200),
    "broyden": ic.Broyden(tol=1e-12, max_steps=200),
}


def communicating(rank: int) -> dict[str, Any]:
    found = {}
    for name, solver in SYNCED.items():
        for gradient in (
            ic.Implicit(solver),
            ic.Phantom(steps=100),
            *([ic.Unrolled()] if name == "picard" else []),
        ):
            for sizes in ((4, 4), (4, 0)):
                cell = MeanCell()
                layer = ic.ImplicitLayer(ic.FixedPoint(cell), solver=solver, gradient=gradient)
                layer.sync_steps = True
                x = samples(rank, sizes).requires_grad_()
                solution = layer.solve(x, trace=True)
                assert isinstance(solution, ic.Solution)
                gradients = torch.autograd.grad(solution.z.square().sum(), [*layer.parameters(), x])
                found[name, type(gradient).__name__, sizes] = {
                    "z": solution.z.detach(),
                    "gradients": gradients[:-1],
                    "x": gradients[-1],
                    "converged": solution.converged,
                    "residual": solution.residual.detach(),
                    "measured": (cell(solution.z, x) - solution.z).norm(dim=1).detach(),
                    "calls": cell.calls,
                    "trace": solution.trace,
                }
    return found


def failing(rank: int) -> list[int]:
    """One rank meets a NaN: both stop."""
    layer = ic.ImplicitLayer(
        ic.FixedPoint(Cell()), solver=ic.Picard(tol=0.0, max_steps=100000), gradient=ic.Unrolled()
    )
    layer.sync_steps = True
    x = inputs(2)
    if rank == 1:
        x[0, 0] = torch.nan
    with torch.no_grad():
        return layer.solve(x).status.tolist()


def copies(rank: int) -> dict[str, Any]:
    """A layer with a group of its own: the first rank alone."""
    group = dist.new_group([0])
    layer = ic.ImplicitLayer(
        ic.FixedPoint(Cell()), solver=ic.Picard(tol=1e-8, max_steps=100), gradient=ic.Unrolled()
    )
    pickle.dumps(layer)
    layer.sync_steps = cast(dist.ProcessGroup, group) if rank == 0 else False
    found: dict[str, Any] = {"shared": copy.deepcopy(layer).sync_steps is layer.sync_steps}
    found["converged"] = bool(layer.solve(inputs()).converged.all())  # the other rank takes no part
    if rank == 0:
        try:
            pickle.dumps(layer)
        except ic.InputError as error:
            found["error"] = str(error)
    layer.sync_steps = True
    found["all"] = pickle.loads(pickle.dumps(layer)).sync_steps
    return found
