"""What a training meets on a GPU, as programs for any device: the suite runs them there, and
tests/backends/test_gpu_loops.py on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from gpu.loops import problem
from torch import Tensor, nn

import implicitcore as ic
from implicitcore.testing.problems import Cell


def layer_of(
    cell: nn.Module, backend: ic.Backend, tol: float = 1e-5, back: ic.RootSolver | None = None
) -> ic.ImplicitLayer:
    """Anderson forward, GMRES backward where nothing else is said."""
    solver, gradient = ic.Anderson(tol=tol), ic.Implicit(back)
    return ic.ImplicitLayer(ic.FixedPoint(cell), solver=solver, gradient=gradient, backend=backend)


class Attempt(NamedTuple):
    """One step of a training whose gradients are scaled."""

    loss: float
    scale: float
    moved: bool
    """Whether the optimizer took it."""


def scaled_training(device: str, backend: ic.Backend, steps: int = 60) -> list[Attempt]:
    """Training in float16 by a ``GradScaler``, from a scale that overflows."""
    cell, x = problem(device)
    model = nn.Sequential(layer_of(cell, backend, 1e-2), nn.Linear(x.shape[1], 1)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    scaler = torch.GradScaler(device, init_scale=2.0**40, growth_interval=10**6)
    found = []
    for _ in range(steps):
        before = [parameter.detach().clone() for parameter in model.parameters()]
        optimizer.zero_grad()
        with torch.autocast(device, torch.float16):
            loss = (model(x).float() - 1).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        moved = not all(map(torch.equal, before, model.parameters()))
        found.append(Attempt(float(loss.detach()), scaler.get_scale(), moved))
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    return found


class Convolution(nn.Module):
    """tanh(conv(z) + x), a contraction."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        with torch.no_grad():
            self.conv.weight.mul_(0.3)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.conv(z) + x)


def images(device: str, backend: ic.Backend, form: torch.memory_format) -> list[Tensor]:
    """A state of images in that order of memory, and the gradients of weights and x."""
    torch.manual_seed(0)
    layer: Any = layer_of(Convolution().to(device), backend)
    x = torch.randn(3, 4, 8, 8).to(device).to(memory_format=form).requires_grad_()
    z = layer.to(memory_format=form)(x)
    return [z.detach(), *torch.autograd.grad(z.square().sum(), [*layer.parameters(), x])]


def exact_products(device: str, backend: ic.Backend, solver: ic.RootSolver) -> list[Tensor]:
    """An equilibrium and its gradient, where f has no product that could be rounded."""
    torch.manual_seed(0)
    weight = 0.95 * nn.init.orthogonal_(torch.empty(64, 64)).to(device).double()
    x = torch.randn(16, 64).to(device).requires_grad_()
    solution = ic.fixed_point(
        lambda z, x: torch.tanh((z.double() @ weight.to(z.device)).float() + x),
        torch.zeros_like(x),
        x,
        solver=solver,
        gradient=ic.Implicit(ic.GMRES(tol=1e-5)),
        backend=backend,
    )
    (slope,) = torch.autograd.grad(solution.z.square().sum(), x)
    return [solution.z.detach(), slope, torch.tensor(solution.backward.vjps)]


@contextmanager
def group_of_one(backend: str, store: str) -> Iterator[Any]:
    """A process group of this process alone."""
    torch.distributed.init_process_group(
        backend, init_method=f"file://{store}", rank=0, world_size=1
    )
    try:
        yield torch.distributed.group.WORLD
    finally:
        torch.distributed.destroy_process_group()


def training_in_step(device: str, backend: ic.Backend, group: Any = None) -> list[Tensor]:
    """The gradients of a training step, of a process that stops together with its group."""
    cell, x = problem(device)
    layer = layer_of(cell, backend, back=ic.Anderson(tol=1e-5))
    if group is None:
        model: nn.Module = layer
    else:
        layer.sync_steps = group
        model = nn.parallel.DistributedDataParallel(layer)
    model(x).square().sum().backward()
    return [parameter.grad for parameter in cell.parameters() if parameter.grad is not None]


def after_a_failure(device: str, backend: ic.Backend, fail: Callable[[Cell, Tensor], Any]) -> None:
    """A solve that runs out of memory leaves nothing behind, and the next is as the first was."""
    cell, x = problem(device)
    layer = layer_of(cell, backend)

    def gradients() -> list[Tensor]:
        z = layer(x)
        return [z.detach(), *torch.autograd.grad(z.square().sum(), list(cell.parameters()))]

    expected = gradients()
    try:
        fail(cell, x)
    except torch.OutOfMemoryError:
        pass
    else:
        raise AssertionError("there was enough memory")
    torch.testing.assert_close(gradients(), expected)


def long_run(device: str, backend: ic.Backend, steps: int, held: Callable[[], int]) -> list[int]:
    """The memory held after each training step, of an equilibrium and a trajectory in turn."""
    cell, x = problem(device)
    layers = (
        layer_of(cell, backend, 1e-4),
        ic.ImplicitLayer(
            ic.VectorField(lambda t, z, x: cell(z, x) - z),
            solver=ic.Tsit5(),
            start=ic.Identity(),
            gradient=ic.Checkpointed(),
            backend=backend,
        ),
    )
    optimizer = torch.optim.SGD(cell.parameters(), lr=1e-3)
    found = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = layers[step % 2](x).square().mean()
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss)
        del loss
        found.append(held())
    return found
