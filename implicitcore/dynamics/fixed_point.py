"""Dynamics given by a fixed-point map."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.dynamics.base import Dynamics
from implicitcore.dynamics.cells import check_call, check_cell


class FixedPointMap(Dynamics):
    """dz/dt = f(z, x) - z for subclasses that define the map f as :meth:`update`."""

    @abstractmethod
    def update(self, z: Any, x: Any) -> Any:
        """f(z, x), shaped like z."""

    def velocity(self, t: Tensor, z: Any, x: Any) -> Any:
        """f(z, x) - z; t is not used."""
        del t
        return pytree.tree_map(lambda f, z: f - z, self.update(z, x), z)

    def scale(self, update_norm: Tensor, start_norm: Tensor) -> Tensor:
        """``|f(z)|``: a sample has converged where ``|f(z) - z| <= tol |f(z)|``."""
        del start_norm
        return update_norm


class FixedPoint(FixedPointMap):
    """dz/dt = f(z, x) - z, whose equilibria are the fixed points f(z, x) = z of a cell.

    Arguments:
        cell: f, a module or function of (z, x) that returns a state shaped like z.

    Reference:
        Bai, Kolter, Koltun, Deep Equilibrium Models, arXiv 1909.01377; as an ODE: arXiv 2201.12240.
    """

    def __init__(self, cell: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        check_cell(cell, "cell", "z, x")
        self.cell = cell

    def update(self, z: Any, x: Any) -> Any:
        """f(z, x) itself.

        Raises:
            InputError: the cell does not take two arguments.
        """
        try:
            return self.cell(z, x)
        except TypeError as error:
            self.explain_call(error)
            raise

    def explain_call(self, error: TypeError) -> None:
        """See :meth:`Dynamics.explain_call`."""
        check_call(error, self.cell, "cell", "z, x")
