"""What a cell promises, as checks of :mod:`implicitcore.testing`.

``implicitcore check cell NAME`` runs them, and
:func:`~implicitcore.testing.parametrize.parametrize_with_checks` makes tests of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError, gradcheck
from torch.utils import _pytree as pytree

from implicitcore.testing import ContractError, Maker, NotApplicable, contract
from implicitcore_layers.cells.base import Cell, Certificate, Preset

POWER_STEPS, MOST_STEPS, PAIRS = 50, 20_000, 8
ROUNDING, NEAR, STILL = 1e-9, 1e-13, 1e-9
SIZES = (0.0, 0.1, 1.0, 10.0)
WEIGHTS = (1.0, 0.3, 3.0)


@contract("cell")
def is_shaped_like_the_state(maker: Maker) -> None:
    """f(z, x) has the structure, shapes and dtype of z, and is finite, in float32 and float64."""
    for dtype in (torch.float32, torch.float64):
        cell = maker.make(dtype)
        _expect(isinstance(cell, Cell), f"{type(cell).__name__} is no implicitcore_layers.Cell")
        z, x = maker.inputs(3, dtype)
        found = cell(z, x)
        same = _layout(found) == _layout(z)
        _expect(same, f"f(z, x) is {_layout(found)} for a z that is {_layout(z)}")
        finite = all(bool(leaf.isfinite().all()) for leaf in pytree.tree_leaves(found))
        _expect(finite, f"f(z, x) has values that are not finite in {dtype}")


@contract("cell")
def gradient_matches_differences(maker: Maker) -> None:
    """Derivatives by the inputs and by the parameters agree with central differences.

    At an equilibrium where the cell certifies one: there a step size, say, that it does not depend
    on needs no gradient.
    """
    cell, (z, x) = maker.make(), maker.inputs(2)
    certificate = _certificate(cell)
    if isinstance(certificate, Certificate) and certificate.rate < 1:
        z, _ = _equilibrium(cell, z, x)
    inputs, spec = pytree.tree_flatten((z, x))
    weights = {name: value for name, value in cell.named_parameters() if value.requires_grad}

    def f(*leaves: Tensor) -> tuple[Tensor, ...]:
        state, given = pytree.tree_unflatten(list(leaves[: len(inputs)]), spec)
        own = dict(zip(weights, leaves[len(inputs) :], strict=True))
        return tuple(pytree.tree_leaves(torch.func.functional_call(cell, own, (state, given))))

    leaves = [leaf.detach().clone().requires_grad_() for leaf in (*inputs, *weights.values())]
    try:
        gradcheck(f, leaves, fast_mode=True)
    except GradcheckError as error:
        found = " ".join(str(error).split())
        raise ContractError(f"compared derivatives of f(z, x) with differences: {found}") from error


@contract("cell")
def certificate_holds(maker: Maker) -> None:
    """What ``certificate()`` says of the rate and the equilibrium is what is measured."""
    if _certificate(maker.make()) is None:
        raise NotApplicable("it gives no certificate")
    for scale in WEIGHTS:
        cell = maker.make()
        with torch.no_grad():
            for parameter in cell.parameters():
                parameter.mul_(scale)
        certificate = _certificate(cell)
        if not isinstance(certificate, Certificate):
            raise ContractError(f"certificate() returned {certificate!r}, expected a Certificate")
        rate = certificate.rate
        _expect(isfinite(rate) and rate >= 0, f"a rate of {rate}, expected 0 or more")
        _expect(certificate.unique or rate >= 1, f"not unique, at a rate of {rate:.6g}")
        for size in SIZES if rate < 1 else ():
            _compare(cell, maker.inputs(PAIRS), size, rate)


@contract("cell")
def head_gives_logits(maker: Maker) -> None:
    """The head of a preset makes logits ``[batch, classes]`` of a state."""
    cell = maker.make(torch.float32)
    if not isinstance(cell, Preset):
        raise NotApplicable("it is no Preset")
    z, _ = maker.inputs(3, torch.float32)
    _expect(isinstance(cell.stem(), nn.Module), "stem() returned no module")
    shape, classes = list(cell.head().eval()(z).shape), getattr(cell, "classes", None)
    _expect(
        len(shape) == 2 and shape[0] == 3 and shape[1] == (classes or shape[1]),
        f"the head made {shape} of 3 samples, expected [3, {classes or 'classes'}]",
    )


def _certificate(cell: Any) -> Any:
    """What it certifies; None where it does not."""
    certify = getattr(cell, "certificate", None)
    return None if certify is None else certify()


def _compare(cell: Any, inputs: Any, size: float, rate: float) -> None:
    """Compare the rate with how much nearer to the equilibrium a step comes."""
    z, x = inputs
    x = pytree.tree_map_only(Tensor, lambda leaf: size * leaf, x)
    root, gap = _equilibrium(cell, z, x)
    if gap > STILL and rate**MOST_STEPS > STILL:
        raise NotApplicable(f"the equilibrium takes more than {MOST_STEPS} steps")
    _expect(
        gap <= STILL,
        f"the plain iteration does not end, though the certified rate is {rate:.6g}: step "
        f"{MOST_STEPS} is {gap:.3g} long",
    )
    bound = rate + ROUNDING
    for found, where in _steps(cell, z, x, root):
        _expect(
            found <= bound,
            f"a step left {found:.8g} of the distance to the equilibrium ({where}, x of size "
            f"{size:g}), expected at most the certified rate, {rate:.8g}",
        )


@torch.no_grad()
def _steps(cell: Any, z: Any, x: Any, root: Any) -> Iterator[tuple[float, str]]:
    """Which share of the distance to the equilibrium a step leaves, from several distances."""
    for distance in (1e-3, 1.0, 100.0):
        away = pytree.tree_map(lambda a, b, size=distance: b + size * a, z, root)
        before, after = _distance(away, root), _distance(cell(away, x), root)
        yield float((after / before).max()), f"from {distance:g} away"
    yield _norm_of_jacobian(lambda state: cell(state, x), root), "beside it"


@torch.no_grad()
def _equilibrium(cell: Any, z: Any, x: Any) -> tuple[Any, float]:
    """Where the plain iteration ends, and the length of its last step."""
    gap = 0.0
    for _ in range(MOST_STEPS):
        before, z = z, cell(z, x)
        gap = float(_distance(z, before).max())
        if not gap > NEAR:
            break
    return z, gap


@torch.enable_grad()
def _norm_of_jacobian(f: Callable[[Any], Any], z: Any) -> float:
    """The 2-norm of df/dz over the batch, by the power method on J^T J."""
    found, spec = pytree.tree_flatten(z)
    state = [leaf.detach().requires_grad_() for leaf in found]
    values = pytree.tree_leaves(f(pytree.tree_unflatten(state, spec)))
    # J^T u is linear in u, so that its derivative by u in the direction v is J v.
    u = [torch.zeros_like(value, requires_grad=True) for value in values]
    pulled = torch.autograd.grad(values, state, u, create_graph=True)
    v, norm = [torch.randn_like(leaf) for leaf in state], 0.0
    for _ in range(POWER_STEPS):
        pushed = torch.autograd.grad(pulled, u, v, retain_graph=True)
        v = torch.autograd.grad(values, state, pushed, retain_graph=True)
        norm = float(torch.cat([leaf.flatten() for leaf in v]).norm())
        if norm == 0:
            return 0.0
        v = [leaf / norm for leaf in v]
    return norm**0.5


def _distance(a: Any, b: Any) -> Tensor:
    """The 2-norm of each sample, ``[batch]``."""
    pairs = zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True)
    return torch.cat([(one - other).flatten(1) for one, other in pairs], 1).norm(dim=1)


def _layout(tree: Any) -> str:
    leaves, spec = pytree.tree_flatten(tree)
    shapes = [
        f"{list(leaf.shape)} {leaf.dtype}" if isinstance(leaf, Tensor) else type(leaf).__name__
        for leaf in leaves
    ]
    return ", ".join(shapes) if len(shapes) == 1 else f"{spec.type}: {', '.join(shapes)}"


def _expect(right: bool, message: str) -> None:
    if not right:
        raise ContractError(message)
