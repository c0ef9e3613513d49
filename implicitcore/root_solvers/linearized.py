"""An iterate with its Jacobian, and the linear systems that Newton-like solvers solve with it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from implicitcore.root_solvers.krylov import krylov_space
from implicitcore.system.evaluation import Evaluation
from implicitcore.system.linearization import Linearization
from implicitcore.system.system import System
from implicitcore.tensors.norms import real_dtype
from implicitcore.tensors.products import MATMUL

# Of a damped step, relative to the squared column norms.
DAMPING = 1e-3


@dataclass(frozen=True, eq=False)
class Point:
    """An iterate z with f(z), g = f(z) - z and the Jacobian J of f there.

    Attributes:
        system: evaluates and linearises.
        now: z, f(z) and g.
        jacobian: J.
        size: ``|g|``, ``[batch]``, without a graph.
    """

    system: System
    now: Evaluation
    jacobian: Linearization
    size: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", self.now.residual.norm.detach())

    @classmethod
    def at(cls, system: System, z: Tensor) -> Point:
        """The point z, all from one evaluation."""
        jacobian = system.linearize(z)
        return cls(system, jacobian.evaluation(z), jacobian)

    @classmethod
    def known(cls, system: System, now: Evaluation) -> Point:
        """The point of an evaluation, linearised."""
        return cls(system, now, system.linearize(now.z))

    @property
    def z(self) -> Tensor:
        """The iterate, ``[batch, n]``."""
        return self.now.z

    @property
    def g(self) -> Tensor:
        """Its residual, ``[batch, n]``."""
        return self.now.residual.value

    def matrix(self, shift: Tensor | float = 1.0, scale: Tensor | float = 1.0) -> Tensor:
        """The matrices shift I - scale J, ``[batch, n, n]``, each of one number or ``[batch, 1]``.

        N products.
        """
        jacobian = self.jacobian.matrix().to(real_dtype(self.z))
        diagonal = torch.ones_like(jacobian[:, 0]) * shift
        return torch.diag_embed(diagonal) - jacobian * (
            scale.unsqueeze(2) if isinstance(scale, Tensor) else scale
        )

    def krylov(self, shift: Tensor | float, limit: Tensor, most: int) -> Tensor:
        """s with ``|g - (shift I - J) s| <= limit``, as far as ``most`` products go, by GMRES."""
        return krylov_space(
            self.system.backend,
            lambda v: v * shift - self.jacobian.jvp(v),
            self.g,
            limit,
            most,
        ).minimise()


def solve(matrix: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Solutions of matrix s = right ``[batch, n]`` by LU, and the samples ``[batch]`` without.

    Those get ``right`` itself.
    """
    found, info = _solve(matrix, right)
    singular = (info != 0) | ~found.isfinite().all(1)
    if bool(singular.any()):
        unit = torch.eye(right.shape[1], dtype=matrix.dtype, device=matrix.device)
        found = _solve(torch.where(singular[:, None, None], unit, matrix), right)[0]
    return found, singular


def damped(matrix: Tensor, right: Tensor) -> Tensor:
    """The damped least squares (A^T A + D) s = A^T right with D = ``DAMPING`` diag(A^T A).

    It has an answer where A is singular.
    """
    scale = torch.linalg.vector_norm(matrix, dim=1, keepdim=True)
    eps = torch.finfo(scale.dtype).eps * torch.linalg.matrix_norm(matrix)[:, None, None]
    scale = torch.maximum(scale, eps).clamp(min=torch.finfo(scale.dtype).tiny)
    scaled = matrix / scale
    matmul = MATMUL[matrix.is_cpu]
    normal = matmul(scaled.mT, scaled)
    unit = torch.eye(right.shape[1], dtype=matrix.dtype, device=matrix.device)
    pulled = matmul(scaled.mT, right.to(matrix.dtype).unsqueeze(2)).squeeze(2)
    return (_solve(normal + DAMPING * unit, pulled)[0] / scale.squeeze(1)).to(right.dtype)


def _solve(matrix: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    found, info = torch.linalg.solve_ex(matrix, right.to(matrix.dtype).unsqueeze(2))
    return found.squeeze(2).to(right.dtype), info
