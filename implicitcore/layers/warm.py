"""The initial guess that remembers: each sample begins at its last equilibrium."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.errors import InputError, show
from implicitcore.layers.initial import InitialGuess, Zeros
from implicitcore.options.types import Count, Shape, Spec
from implicitcore.solution import Solution, SolveResult

KEPT = "kept_"
CALL = "layer.solve(x, keys=...) with the index of each sample"


@final
class WarmStart(InitialGuess):
    """z0 of a sample is its last equilibrium, of the epoch before; samples are told by their keys.

    ``layer.solve(x, keys=index)`` and ``layer(x, keys=index)`` begin each sample where it ended
    last, or for one not seen yet at ``start``. In training mode the equilibria found are kept; in
    evaluation mode nothing is, and without keys all samples begin at ``start``. A sample that
    failed is forgotten, and begins there the next time. What is kept has no graph, and the
    equilibrium does not depend on it where it is unique.

    The states are buffers, ``[samples, ...]`` each, made when the first are kept: they move with
    the module and are part of its state_dict, so a training goes on from a checkpoint as if it had
    not ended.

    Arguments:
        samples: how many there are; the keys are 0 to ``samples - 1``.
        start: of samples not seen yet.

    Raises:
        InputError: keys are missing in training mode, or are not one different whole number for
            each sample, below ``samples``; the state of a sample has another shape than before; or
            what is solved has no equilibrium.

    Example:
        >>> import torch, implicitcore as ic
        >>> layer = ic.ImplicitLayer(
        ...     ic.FixedPoint(lambda z, x: torch.tanh(0.9 * z + x)),
        ...     solver=ic.Picard(tol=1e-4),
        ...     start=ic.WarmStart(samples=100),
        ... )
        >>> x, keys = torch.ones(2, 3), torch.tensor([7, 42])
        >>> [layer.solve(x, keys=keys).evaluations for epoch in range(2)]
        [7, 2]
    """

    detached: ClassVar[bool] = True
    seen: Tensor

    def __init__(self, samples: Count, start: InitialGuess | Spec | None = None) -> None:
        super().__init__()
        self.start: Any = Zeros() if start is None else start
        self.register_buffer("seen", torch.zeros(samples, dtype=torch.bool))

    @property
    def samples(self) -> int:
        """How many there are."""
        return len(self.seen)

    @property
    def evaluations(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Those of ``start``."""
        return self.start.evaluations

    def forward(self, x: Any) -> Any:
        """``start(x)``, as for samples not seen yet; in evaluation mode alone."""
        if self.training:
            raise InputError(f"a warm start needs keys in training mode: {CALL}")
        return self.start(x)

    def keyed(self, x: Any, keys: Any) -> Any:
        """See :meth:`InitialGuess.keyed`."""
        first = self.start(x)
        leaves, structure = pytree.tree_flatten(first)
        keys = self._checked(keys, len(leaves[0]))
        kept = self._kept()
        if not kept:
            return first
        self._check_shapes(leaves, kept)
        seen, rows = self.seen[keys], (buffer[keys] for buffer in kept)
        found = [
            torch.where(seen.view(-1, *(1,) * (leaf.ndim - 1)), row.to(leaf), leaf)
            for leaf, row in zip(leaves, rows, strict=True)
        ]
        return pytree.tree_unflatten(found, structure)

    @torch.no_grad()
    def keep(self, keys: Any, solution: SolveResult) -> None:
        """See :meth:`InitialGuess.keep`: in training mode the equilibria of the samples."""
        if not isinstance(solution, Solution):
            raise InputError(
                "a warm start begins at an equilibrium; this layer integrates to a fixed time"
            )
        if not self.training:
            return
        leaves, met = pytree.tree_leaves(solution.z), solution.converged
        keys = self._checked(keys, len(met))
        for index, leaf in enumerate(leaves if not self._kept() else ()):
            self.register_buffer(f"{KEPT}{index}", leaf.new_zeros(self.samples, *leaf.shape[1:]))
        self._check_shapes(leaves, self._kept())
        for leaf, buffer in zip(leaves, self._kept(), strict=True):
            rows = torch.where(met.view(-1, *(1,) * (leaf.ndim - 1)), leaf, 0)
            buffer[keys] = rows.to(buffer)
        self.seen[keys] = met.to(self.seen.device)

    def example_shape(self) -> Shape:
        """That of ``start``."""
        return self.start.example_shape()

    def _kept(self) -> list[Tensor]:
        """The states of all samples, one buffer for each tensor of the state."""
        return [buffer for name, buffer in self.named_buffers(recurse=False) if KEPT in name]

    def _checked(self, keys: Any, batch: int) -> Tensor:
        """The keys, on the device of the buffers."""
        if not isinstance(keys, Tensor) or keys.is_floating_point() or keys.is_complex():
            raise InputError(f"keys: expected a tensor of whole numbers, received {show(keys)}")
        if keys.shape != (batch,) or keys.dtype == torch.bool:
            raise InputError(
                f"keys: expected one whole number for each of {batch} samples, received "
                f"{keys.dtype} {list(keys.shape)}"
            )
        order = keys.sort().values
        if batch and not 0 <= int(order[0]) <= int(order[-1]) < self.samples:
            raise InputError(
                f"keys: expected 0 to {self.samples - 1}, received {int(order[0])} to "
                f"{int(order[-1])}"
            )
        if bool((order[1:] == order[:-1]).any()):
            raise InputError("keys: a sample is twice in the batch, and has one start")
        return keys.to(self.seen.device, torch.int64)

    def _check_shapes(self, leaves: list[Tensor], kept: list[Tensor]) -> None:
        found = [tuple(leaf.shape[1:]) for leaf in leaves]
        expected = [tuple(buffer.shape[1:]) for buffer in kept]
        if found != expected:
            raise InputError(
                f"the states kept for a warm start have the shapes {expected}, these samples have "
                f"{found}"
            )

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **options: Any
    ) -> None:
        """With the buffers that were there when it was written."""
        for name in [name for name in self._buffers if name.startswith(KEPT)]:
            delattr(self, name)
        for name, value in state_dict.items():
            if name.startswith(prefix + KEPT):
                empty = torch.empty_like(value, device=self.seen.device)
                self.register_buffer(name.removeprefix(prefix), empty)
        super()._load_from_state_dict(state_dict, prefix, *args, **options)
