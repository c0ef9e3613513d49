"""A cell whose equilibrium is that of a monotone operator."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from implicitcore.extend import Count, Positive, Shape
from implicitcore_layers.cells.base import Cell, Certificate


@final
class MonotoneCell(Cell):
    """The equilibrium of z = relu(W z + b + x) with I - W strongly monotone, by one forward step.

    W = (1 - m) I - A^T A + B - B^T, with m the ``margin``, keeps the symmetric part of I - W at m
    or more: the equilibrium exists and is unique for every x, though W may have any norm. The map
    is f(z, x) = relu(z - a ((I - W) z - b - x)), whose fixed points are these equilibria; with
    a = m / L^2, L a bound on ``|I - W|_2``, it is a contraction with rate sqrt(1 - m^2 / L^2). No
    gradient passes through a, on which the equilibrium does not depend.

    Arguments:
        features: of z and x, ``[batch, features]``.
        margin: m, at most 1.

    Reference:
        Winston, Kolter, Monotone operator equilibrium networks, arXiv 2006.08591.
    """

    def __init__(self, features: Count, *, margin: Positive = 1.0) -> None:
        super().__init__()
        self.features, self.margin = features, margin
        scale = features**-0.5
        self.symmetric = nn.Parameter(torch.randn(features, features) * scale * 0.5)
        self.skew = nn.Parameter(torch.randn(features, features) * scale * 0.5)
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """f(z, x), ``[batch, features]``, as z and x."""
        operator = self._operator()
        step = self._step(operator)
        return torch.relu(z - step * (z @ operator.T - self.bias - x))

    def example_shapes(self) -> tuple[Shape, Shape]:
        """Vectors."""
        return (self.features,), (self.features,)

    @torch.no_grad()
    def weight(self) -> Tensor:
        """W, ``[features, features]``."""
        operator = self._operator()
        return torch.eye(self.features, dtype=operator.dtype, device=operator.device) - operator

    @torch.no_grad()
    def certificate(self) -> Certificate:
        """The equilibrium is unique, and the rate is sqrt(1 - m^2 / L^2)."""
        bound = _norm_bound(self._operator())
        return Certificate(True, float((1 - (self.margin / bound) ** 2).clamp(min=0).sqrt()))

    def _operator(self) -> Tensor:
        """I - W."""
        a, b = self.symmetric, self.skew
        identity = torch.eye(self.features, dtype=a.dtype, device=a.device)
        return self.margin * identity + a.T @ a - b + b.T

    @torch.no_grad()
    def _step(self, operator: Tensor) -> Tensor:
        return self.margin / _norm_bound(operator) ** 2


def _norm_bound(matrix: Tensor) -> Tensor:
    """The Schatten 8-norm: at least the 2-norm, for two products."""
    gram = matrix @ matrix.T
    return torch.linalg.matrix_norm(gram @ gram) ** 0.25
