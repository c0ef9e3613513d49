"""The cell of the MNIST experiments of Continuous Deep Equilibrium Models."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from implicitcore.extend import Count, Shape
from implicitcore_layers.cells.base import Preset


@final
class PaperMLP(Preset):
    """f(z, x) = relu(W z) + relu(U x), between two linear layers.

    Arguments:
        features: of z and x, ``[batch, features]``.
        inputs: entries of one sample, which the stem flattens.
        classes: how many logits the head gives.

    Reference:
        Pal, Edelman, Rackauckas, Continuous Deep Equilibrium Models, arXiv 2201.12240, section 4.1.
    """

    def __init__(self, *, features: Count = 128, inputs: Count = 784, classes: Count = 10) -> None:
        super().__init__()
        self.features, self.inputs, self.classes = features, inputs, classes
        self.state = nn.Linear(features, features, bias=False)
        self.input = nn.Linear(features, features, bias=False)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """f(z, x), ``[batch, features]``, as z and x."""
        return self.state(z).relu() + self.input(x).relu()

    def example_shapes(self) -> tuple[Shape, Shape]:
        """Vectors."""
        return (self.features,), (self.features,)

    def stem(self) -> nn.Module:
        """Flatten, linear, relu."""
        return nn.Sequential(nn.Flatten(), nn.Linear(self.inputs, self.features), nn.ReLU())

    def predictor(self) -> nn.Module:
        """Linear, relu: a new module from x to the z0 of Skip DEQ."""
        return nn.Sequential(nn.Linear(self.features, self.features), nn.ReLU())

    def head(self) -> nn.Module:
        """Linear."""
        return nn.Linear(self.features, self.classes)
