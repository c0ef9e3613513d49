"""What every backend promises of the derivatives of whole steps."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from implicitcore.backends.base import Backend
from implicitcore.backends.torch import TorchBackend
from implicitcore.ode_solvers.dop853_tableau import DOP853
from implicitcore.ode_solvers.explicit_stages import stages_of, sums_of
from implicitcore.ode_solvers.tableaus import RK4, Tableau
from implicitcore.testing.check import contract
from implicitcore.testing.expect import NotApplicable, expect, expect_close
from implicitcore.testing.kernels import Draw, device_of, widest

REFERENCE = TorchBackend()
TABLEAUS = {"RK4": RK4, "DOP853": DOP853}
# What is in the graph of a step, and the stages whose velocity is not.
GRAPHS: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "z, dt and the dynamics": (("z", "dt", "weight"), ()),
    "z": (("z",), ()),
    "dt": (("dt",), ()),
    "the dynamics": (("weight",), ()),
    "z and the dynamics but for two stages": (("z", "weight"), (0, 2)),
    "the dynamics but for the last stage": (("weight",), (-1,)),
}


@contract("backend")
def differentiates_steps_as_the_reference_does(backend: Backend) -> None:
    """The stage combinations of a step have the reference's first and second derivatives.

    By z, dt and what the stages depend on, whichever of them are in the graph; of a graph that is
    used twice, and by many gradients at once.
    """
    if not backend.differentiable:
        raise NotApplicable("it is not differentiable")
    device, dtype = device_of(backend), widest(backend)
    bound = 1e5 * torch.finfo(dtype).eps
    for method, tableau in TABLEAUS.items():
        for graph in GRAPHS:
            both = (_derivatives(each, tableau, graph, dtype, device)
                    for each in (backend, REFERENCE))  # fmt: skip
            for (what, found), (_, expected) in zip(*both, strict=True):
                did = f"took {what} of a step of {method} with {graph} in a graph"
                expect_close(found, expected, did, bound)


def _derivatives(
    backend: Backend, tableau: Tableau, graph: str, dtype: torch.dtype, device: str
) -> Iterator[tuple[str, Tensor]]:
    """What is compared, one after the other."""
    draw, (names, cut) = Draw(dtype, device), GRAPHS[graph]
    known = {"z": draw(3, 5), "dt": 0.1 * draw.dt(3).to(dtype), "weight": draw(5)}
    inputs = [known[name].requires_grad_() for name in names]
    end = _step(backend, tableau, known["z"], known["dt"], known["weight"], cut)
    yield "the end", end.detach()
    expect(end.requires_grad, f"took a step with {graph} in a graph", "an end without one", "one")
    twice = [
        _flat(torch.autograd.grad(end.sin().sum(), inputs, retain_graph=True)) for _ in range(2)
    ]
    yield "the first derivative", twice[0]
    yield "the first derivative once more", twice[1]
    many = torch.stack((torch.ones_like(end), end.detach().cos(), torch.zeros_like(end)))
    options = {"retain_graph": True, "is_grads_batched": True}
    yield "many at once", _flat(torch.autograd.grad(end, inputs, many, **options))
    yield "one alone", torch.autograd.grad(end.sum(), inputs[-1], retain_graph=True)[0]
    first = torch.autograd.grad(end.square().sin().sum(), inputs, create_graph=True)
    total = torch.stack([each.square().sum() for each in first]).sum()
    yield "the second derivative", _flat(torch.autograd.grad(total, inputs))


def _step(  # noqa: PLR0913, PLR0917 - what a step is
    backend: Backend,
    tableau: Tableau,
    z: Tensor,
    dt: Tensor,
    weight: Tensor,
    cut: tuple[int, ...],
) -> Tensor:
    """The end of a step, whose error is estimated on the way, and two of its stages."""
    stages = len(tableau.a) + 1
    apart = [place % stages for place in cut]

    def velocity(moment: Tensor, point: Tensor) -> Tensor:
        value = torch.sin(point * weight) - 0.3 * point
        return value.detach() if int(moment) in apart else value

    sums, moments = sums_of(backend, tableau.rows, z, dt), torch.arange(stages)
    start = z, velocity(moments[0], z)
    found, end = stages_of(tableau, velocity, sums, list(moments[1:]), start)
    if tableau.error:
        with torch.no_grad():
            error = sums(found, len(tableau.rows) - 1, move=True)
        end = end + error  # a constant here
    return torch.cat((end, found[1], found[-1]))


def _flat(gradients: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([each.flatten() for each in gradients])
