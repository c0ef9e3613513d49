"""A cell that is a contraction by construction."""

from __future__ import annotations

from math import prod
from typing import final

import torch
from torch import Tensor, nn

from implicitcore.extend import Count, Fraction, Shape
from implicitcore_layers.cells.base import Cell, Certificate


@final
class ContractiveCell(Cell):
    """f(z, x) = tanh(W z + b + x) with the 2-norm of W at most ``bound`` < 1.

    It is a contraction in z whatever training does to W: the equilibrium exists, is unique,
    attracts z' = f(z, x) - z, and I - df/dz is never singular. W is scaled by a bound on its norm
    that costs two small products: ``|W|_2 <= k |W W^T W W^T|_F^(1/4)`` (the Schatten 8-norm), where
    k^2 is how many outputs a pixel reaches (1 for a matrix).

    Arguments:
        features: of z and x, ``[batch, features]``; with a ``kernel`` ``[batch, features, height,
            width]``.
        bound: the contraction factor.
        kernel: the size of the kernel, an odd number, where W is a convolution; None for a matrix.
    """

    def __init__(
        self, features: Count, *, bound: Fraction = 0.9, kernel: Count | None = None
    ) -> None:
        super().__init__()
        self.features, self.bound, self.kernel = features, bound, kernel
        self.linear = (
            nn.Linear(features, features)
            if kernel is None
            else nn.Conv2d(features, features, kernel, padding=kernel // 2)
        )

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """f(z, x), shaped like z and x: ``[batch, n]`` or ``[batch, channels, height, width]``."""
        return torch.tanh(self._map(z) + x)

    def example_shapes(self) -> tuple[Shape, Shape]:
        """Vectors, or with a kernel images."""
        shape = (self.features,) if self.kernel is None else (self.features, 4, 5)
        return shape, shape

    @torch.no_grad()
    def certificate(self) -> Certificate:
        """The equilibrium is unique, and the rate is the bound on ``|W|_2`` that holds now."""
        scaled = self._fourth_power() ** 0.25 * self._scale() * self._reach()
        return Certificate(self.bound < 1, float(scaled))

    def _map(self, z: Tensor) -> Tensor:
        weight, bias = self.linear.weight * self._scale(), self.linear.bias
        if self.kernel is None:
            return nn.functional.linear(z, weight, bias)
        return nn.functional.conv2d(z, weight, bias, padding="same")

    def _scale(self) -> Tensor:
        reach = self._reach()
        fourth_power = self._fourth_power().clamp(min=(self.bound / reach) ** 4)
        return self.bound / reach * fourth_power**-0.25

    def _reach(self) -> float:
        return prod(self.linear.weight.shape[2:]) ** 0.5

    def _fourth_power(self) -> Tensor:
        rows = self.linear.weight.flatten(1)
        gram = rows @ rows.T
        return torch.linalg.matrix_norm(gram @ gram)
