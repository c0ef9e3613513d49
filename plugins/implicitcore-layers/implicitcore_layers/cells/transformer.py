"""A block of a causal transformer as a cell: for equilibrium language models."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from implicitcore import ConfigError
from implicitcore.extend import Count, Shape
from implicitcore_layers.cells.base import Cell


@final
class CausalTransformerCell(Cell):
    """f(z, x) = norm(h + mlp(norm(h))), h = u + attention(norm(u)), u = z + x.

    A pre-norm block with the input added at each evaluation. A position attends to itself and those
    before it, so that the equilibrium at one does not depend on later ones. The last norm bounds
    f, so that an equilibrium exists; it need not be unique, nor the iteration a contraction. It has
    no bias and no positions of its own: x brings them.

    Arguments:
        features: of a position; z and x are ``[batch, length, features]``.
        heads: of the attention.
        expansion: the features within the MLP, over those of a position.

    Raises:
        ConfigError: the features cannot be shared among the heads.

    Reference:
        Bai, Kolter, Koltun, Deep Equilibrium Models, arXiv 1909.01377 (DEQ-Transformer).
    """

    def __init__(self, features: Count, *, heads: Count = 4, expansion: Count = 4) -> None:
        super().__init__()
        if features % heads:
            raise ConfigError([f"features: expected a multiple of {heads} heads, got {features}"])
        self.features, self.heads, self.expansion = features, heads, expansion
        self.before, self.between, self.after = (nn.LayerNorm(features) for _ in range(3))
        self.mix = nn.Linear(features, 3 * features, bias=False)
        self.out = nn.Linear(features, features, bias=False)
        self.widen = nn.Linear(features, expansion * features, bias=False)
        self.narrow = nn.Linear(expansion * features, features, bias=False)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """f(z, x), ``[batch, length, features]``."""
        u = z + x
        h = u + self._attention(self.before(u))
        return self.after(h + self.narrow(gelu(self.widen(self.between(h)))))

    def example_shapes(self) -> tuple[Shape, Shape]:
        """Three positions."""
        return (3, self.features), (3, self.features)

    def _attention(self, u: Tensor) -> Tensor:
        batch, length, features = u.shape
        split = self.mix(u).view(batch, length, 3, self.heads, features // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        # Written out: torch's fused attention has no second derivative, which the Jacobian
        # regularizer takes.
        later = torch.ones(length, length, dtype=torch.bool, device=u.device).triu(1)
        scores = q @ k.transpose(2, 3) * (features // self.heads) ** -0.5
        found = scores.masked_fill(later, -torch.inf).softmax(3) @ v
        return self.out(found.transpose(1, 2).reshape(batch, length, features))
