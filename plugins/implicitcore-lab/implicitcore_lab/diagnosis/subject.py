"""The layer and the batch that are measured: copies, so that nothing of the user's changes."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore import ImplicitLayer, RootSolver, SolveResult, shared
from implicitcore.extend import Packing, System

_SHARED = type(shared(0))


@dataclass(frozen=True)
class Subject:
    """A copy of a layer, and its input.

    Attributes:
        layer: may be changed at will.
        x: the input; its tensors have no graph.
    """

    layer: ImplicitLayer
    x: Any

    @classmethod
    def of(cls, layer: ImplicitLayer, x: Any, samples: int) -> Subject:
        """The first samples of a batch; all of it where the samples are coupled."""
        copied = deepcopy(layer)
        copied.on_failure = "ignore"
        x = pytree.tree_map_only(Tensor, torch.detach, x)
        subject = cls(copied, x)
        return subject if copied.coupled else subject.rows(slice(samples))

    @property
    def is_root(self) -> bool:
        """Whether the layer solves for an equilibrium."""
        return isinstance(self.layer.solver, RootSolver)

    @property
    def batch(self) -> int:
        """How many samples there are."""
        sizes = [len(leaf) for leaf in per_sample(self.x)]
        return sizes[0] if sizes else len(pytree.tree_leaves(self.start())[0])

    def start(self) -> Any:
        """Z0 of the layer, without a graph."""
        with torch.no_grad():
            return self.layer.explicit(self.x)

    def packing(self, state: Any) -> Packing:
        """How a state is laid out."""
        return Packing.of(state, coupled=self.layer.coupled)

    def system(self, state: Any) -> System:
        """F as a function of packed states."""
        return System.of(self.layer.dynamics, self.x, self.packing(state))

    def solve(self, z0: Any = None, *, trace: bool = False) -> SolveResult:
        """A solve without a graph."""
        with torch.no_grad():
            return self.layer.solve(self.x, z0, trace=trace)

    def rows(self, index: Any) -> Subject:
        """Some of the samples."""
        return replace(self, x=rows(self.x, index))

    def changed(self, **options: Any) -> Subject:
        """The same with other options of the layer."""
        layer = deepcopy(self.layer)
        for name, value in options.items():
            setattr(layer, name, value)
        return replace(self, layer=layer)

    def double(self) -> Subject:
        """The same in float64."""
        return Subject(deepcopy(self.layer).double(), double(self.x))


def double(tree: Any) -> Any:
    """A pytree with its floating tensors in float64."""
    return pytree.tree_map(_double, tree)


def rows(tree: Any, index: Any) -> Any:
    """Some samples of a pytree; what belongs to all of them stays."""
    return pytree.tree_map(
        lambda leaf: leaf[index] if isinstance(leaf, Tensor) and leaf.ndim else leaf,
        tree,
        is_leaf=_is_shared,
    )


def per_sample(tree: Any) -> list[Tensor]:
    """The tensors of a pytree that have the batch first."""
    leaves = pytree.tree_leaves(tree, is_leaf=_is_shared)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim]


def finite_rows(tensors: list[Tensor]) -> Tensor:
    """Which samples are finite in all tensors, ``[batch]``."""
    return torch.stack([leaf.isfinite().flatten(1).all(1) for leaf in map(_matrix, tensors)]).all(0)


def share(mask: Tensor) -> str:
    """What part of the samples it is."""
    return f"{mask.float().mean().item():.0%} of samples"


def velocity_of(subject: Subject, state: Any, sample: int = 0) -> Callable[[Tensor], Tensor]:
    """dz/dt at time 0 of packed states ``[k, n]``, all with the x of one sample."""

    @torch.no_grad()
    def velocity(z: Tensor) -> Tensor:
        index = torch.full((len(z),), sample, device=z.device)
        part = subject.rows(index)
        system = part.system(rows(state, index))
        return system.velocity(times_of(z), z.to(system.packing.dtype))

    return velocity


def times_of(z: Tensor) -> Tensor:
    """Time 0 for each sample of a packed state."""
    dtype = torch.float64 if z.dtype in (torch.float64, torch.complex128) else torch.float32
    return torch.zeros(len(z), dtype=dtype, device=z.device)


def _double(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
        return leaf
    return leaf.double()


def _matrix(leaf: Tensor) -> Tensor:
    return leaf.reshape(len(leaf), -1)


def _is_shared(node: Any) -> bool:
    return isinstance(node, _SHARED)
