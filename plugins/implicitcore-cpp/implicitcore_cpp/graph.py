"""The kernels as operations of a graph."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from implicitcore.extend import GraphResult, real_dtype
from implicitcore_cpp import build


@dataclass(frozen=True)
class CppRootGraph:
    """See :class:`RootGraph`.

    Attributes:
        update: number of the update.
        options: its numbers.
        numbers: of the stop rule: tol, rounding, divergence, trust, growth and floor.
        min_steps: of that rule.
        scale: number of what its tolerance is relative to.
        most: evaluations.
    """

    update: int
    options: tuple[float, ...]
    numbers: tuple[float, ...]
    min_steps: int
    scale: int
    most: int

    def begin(self, z: Tensor, relative_to: Tensor | None) -> Tensor:
        """See :meth:`RootGraph.begin`."""
        rule = list(self.options), list(self.numbers), self.min_steps, self.scale
        return torch.ops.implicitcore_cpp.root_begin(z, relative_to, self.update, *rule, self.most)

    def advance(
        self, state: Tensor, z: Tensor, fz: Tensor, g: Tensor | None, going: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`RootGraph.advance`."""
        return torch.ops.implicitcore_cpp.root_advance(state, z, fz, g, going)

    def result(self, state: Tensor, z: Tensor, going: Tensor) -> GraphResult:
        """See :meth:`RootGraph.result`."""
        return GraphResult(*torch.ops.implicitcore_cpp.root_result(state, z, going))


class CppKrylovGraph:
    """See :class:`KrylovGraph`."""

    def begin(self, g: Tensor, limit: Tensor, most: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`KrylovGraph.begin`."""
        return torch.ops.implicitcore_cpp.krylov_begin(g, limit, most)

    def extend(self, state: Tensor, product: Tensor, going: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`KrylovGraph.extend`."""
        return torch.ops.implicitcore_cpp.krylov_extend(state, product, going)

    def minimise(self, state: Tensor, v: Tensor, going: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`KrylovGraph.minimise`."""
        return torch.ops.implicitcore_cpp.krylov_minimise(state, v, going)


@cache
def load() -> None:
    """The operations, built where they are not there yet, with the shapes of what they give."""
    build.load()
    for name, fake in _FAKES.items():
        torch.library.register_fake(f"implicitcore_cpp::{name}", fake)


def _whole(like: Tensor, *size: Any) -> Tensor:
    return like.new_empty(size, dtype=torch.int64)


def _flag(like: Tensor) -> Tensor:
    return like.new_empty((), dtype=torch.bool)


def _contiguous(like: Tensor) -> Tensor:
    return like.new_empty(like.shape)


def _root_begin(  # noqa: PLR0913 - the operation has as many
    z: Tensor,
    fixed: Tensor | None,
    update: int,
    options: list[float],
    numbers: list[float],
    min_steps: int,
    scale: int,
    most: int,
) -> Tensor:
    del fixed, update, options, numbers, min_steps, scale, most
    return _whole(z, 1)


def _root_advance(
    state: Tensor, z: Tensor, fz: Tensor, g: Tensor | None, going: Tensor
) -> tuple[Tensor, Tensor]:
    del state, fz, g, going
    return _contiguous(z), _flag(z)


def _root_result(state: Tensor, z: Tensor, going: Tensor) -> tuple[Tensor, ...]:
    del state, going
    residual = z.new_empty(z.shape[0], dtype=real_dtype(z))
    status = z.new_empty(z.shape[0], dtype=torch.int8)
    return _contiguous(z), residual, status, _whole(z, z.shape[0]), _whole(z)


def _krylov_begin(g: Tensor, limit: Tensor, most: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    del limit, most
    return _whole(g, 1), _contiguous(g), _flag(g)


def _krylov_extend(state: Tensor, product: Tensor, going: Tensor) -> tuple[Tensor, Tensor]:
    del state, going
    return _contiguous(product), _flag(product)


def _krylov_minimise(state: Tensor, v: Tensor, going: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    del state, going
    return _contiguous(v), _whole(v, v.shape[0]), _whole(v)


_FAKES = {
    "root_begin": _root_begin,
    "root_advance": _root_advance,
    "root_result": _root_result,
    "krylov_begin": _krylov_begin,
    "krylov_extend": _krylov_extend,
    "krylov_minimise": _krylov_minimise,
}
