"""The classifier that every layer is compared in.

Encoder, implicit layer, head, around a cell of one size.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from inspect import signature
from math import gcd, prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from implicitcore import ConfigError, ImplicitLayer, SolveResult, UnknownPartError, create
from implicitcore.extend import REGISTRY, Options
from implicitcore_lab.settings import Settings
from implicitcore_lab.tolerance import at_tolerance
from implicitcore_layers import ContractiveCell, HomoODE

COLOUR = 3
GROUPS = 4
POOLED = 4
COPIES = 4
"""Of the weights, while they are trained."""

Parts = tuple[nn.Module, nn.Module, nn.Module, nn.Module]
"""Encoder, cell, head and the predictor of Skip DEQ."""


class HomotopyField(nn.Module):
    """F(z, x) = norm(V (silu(norm(W z)) + x)): two normalised maps, the features between them.

    The kind of field that HomoODE was published with; it need not be a contraction. SiLU has the
    place of ReLU, at whose kinks an adaptive solver takes small steps: with ReLU, on the digits at
    a tolerance of 1e-4, twice the evaluations forward and ten times those of the adjoint.

    Arguments:
        inner: W, an ``nn.Linear`` or ``nn.Conv2d`` with as many outputs as inputs.
        outer: V, of the same kind.
        groups: of the normalisation over the features; 1 is that of a whole sample.

    Reference:
        Ding, Cui, Wang, Shi, Two Sides of The Same Coin: Bridging Deep Equilibrium Models and
        Neural ODEs via Homotopy Continuation, arXiv 2310.09583.
    """

    def __init__(
        self, inner: nn.Linear | nn.Conv2d, outer: nn.Linear | nn.Conv2d, groups: int
    ) -> None:
        super().__init__()
        features = inner.weight.shape[0]
        self.inner, self.outer = inner, outer
        self.inner_norm, self.outer_norm = (nn.GroupNorm(groups, features) for _ in range(2))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """F(z, x), shaped like z and x: ``[batch, n]`` or ``[batch, channels, height, width]``."""
        between = nn.functional.silu(self.inner_norm(self.inner(z))) + x
        return self.outer_norm(self.outer(between))


class Classifier(nn.Module):
    """Logits of images: head(layer(encoder(images))).

    Arguments:
        encoder: images to features x.
        layer: the implicit layer, z from x.
        head: z to logits.
    """

    def __init__(self, encoder: nn.Module, layer: ImplicitLayer, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.layer = layer
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[batch, classes]`` of images ``[batch, channels, height, width]``."""
        return self.head(self.layer(self.encoder(images)))

    def solve(self, images: Tensor, *, trace: bool = False) -> tuple[Tensor, SolveResult]:
        """Logits ``[batch, classes]``, and the result they were read from."""
        solution = self.layer.solve(self.encoder(images), trace=trace)
        return self.head(solution.z), solution


class ModelBuilder(Options, ABC):
    """What is around the layer: the base of every part of the kind ``model``.

    A frozen dataclass; its fields are its options.

    Attributes:
        shapes: of samples that its contract is checked with; grey and coloured images, where a
            model does not say.
    """

    kind: ClassVar[str] = "model"
    shapes: ClassVar[tuple[tuple[int, ...], ...]] = ((1, 8, 8), (3, 8, 8))

    @abstractmethod
    def build(self, hidden: int, shape: tuple[int, ...], classes: int) -> Parts:
        """Make the modules, with weights from torch's global generator.

        Arguments:
            hidden: features of the state.
            shape: of one sample.
            classes: how many logits.

        Returns:
            The encoder (samples to x), the cell f(z, x) (shaped like x), the head (z to logits
            ``[batch, classes]``), and what predicts z0 from x for layers that ask for it.
        """

    def field(self, hidden: int) -> nn.Module | None:
        """What HomoODE integrates, F(z, x), shaped like x; None is the cell.

        Arguments:
            hidden: features of the state.
        """
        return None


@dataclass(frozen=True, kw_only=True)
class Dense(ModelBuilder):
    """Linear encoder, cell and head; the state is ``[batch, hidden]``."""

    def build(self, hidden: int, shape: tuple[int, ...], classes: int) -> Parts:
        """Make the modules."""
        encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(prod(shape), hidden), nn.LayerNorm(hidden), nn.ReLU()
        )
        cell = ContractiveCell(hidden)
        predictor = nn.Sequential(nn.Linear(hidden, hidden), nn.Tanh())
        return encoder, cell, nn.Linear(hidden, classes), predictor

    def field(self, hidden: int) -> nn.Module:
        """Normalised over the features of a sample, of which there is one group."""
        return HomotopyField(nn.Linear(hidden, hidden), nn.Linear(hidden, hidden), groups=1)


@dataclass(frozen=True, kw_only=True)
class Convolutional(ModelBuilder):
    """Convolutions; the state is ``[batch, hidden, height / 2, width / 2]``."""

    def build(self, hidden: int, shape: tuple[int, ...], classes: int) -> Parts:
        """Make the modules."""
        groups = gcd(GROUPS, hidden)
        encoder = nn.Sequential(
            nn.Conv2d(shape[0], hidden, 3, stride=2, padding=1),
            nn.GroupNorm(groups, hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.GroupNorm(groups, hidden),
            nn.ReLU(),
        )
        cell = ContractiveCell(hidden, kernel=3)
        head = nn.Sequential(
            nn.AdaptiveAvgPool2d(POOLED), nn.Flatten(), nn.Linear(hidden * POOLED**2, classes)
        )
        predictor = nn.Sequential(nn.Conv2d(hidden, hidden, 3, padding=1), nn.Tanh())
        return encoder, cell, head, predictor

    def field(self, hidden: int) -> nn.Module:
        """Normalised over groups of channels."""
        inner, outer = (nn.Conv2d(hidden, hidden, 3, padding=1) for _ in range(2))
        return HomotopyField(inner, outer, groups=gcd(GROUPS, hidden))


def make_parts(builder: ModelBuilder, seed: int, sizes: tuple[int, tuple[int, ...], int]) -> Parts:
    """The modules of a model, with the weights of a seed; torch's generator is left alone.

    Arguments:
        builder: the model.
        seed: of its weights.
        sizes: features of the state, shape of a sample and number of classes.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return builder.build(*sizes)


def build_classifier(
    settings: Settings, shape: tuple[int, ...], classes: int, builder: ModelBuilder | None = None
) -> Classifier:
    """The classifier that the settings describe, with initial weights given by their seed.

    Encoder, cell and head come from the seed before the layer does, so that every layer starts from
    the same ones. HomoODE has a field of its own in the place of the cell.

    Arguments:
        settings: the layer, the number of features and the seed.
        shape: channels, height and width of an image.
        classes: how many logits.
        builder: of what is around the layer; None is that of the settings.

    Returns:
        The classifier, on the CPU.

    Raises:
        ConfigError: there is no such layer, or its options cannot be used.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        named = settings.model or ("convolutional" if _is_coloured(shape) else "dense")
        model: ModelBuilder = create("model", builder or named, path="model")
        encoder, cell, head, predictor = model.build(settings.hidden, shape, classes)
        if _layer_class(settings.layer_name) is HomoODE:
            cell = model.field(settings.hidden) or cell
        spec = _spec(settings)
        return Classifier(encoder, _build_layer(spec, cell, predictor, settings.hidden), head)


def _spec(settings: Settings) -> str | dict[str, Any]:
    """The layer to build: where a tolerance is set, with all its options, for the cell to come."""
    if settings.tolerance is None:
        return settings.layer
    with torch.random.fork_rng(devices=[]):
        model = _build_layer(settings.layer, nn.Identity(), nn.Identity(), settings.hidden)
    return at_tolerance(model.config, settings.tolerance)


def _is_coloured(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[0] == COLOUR


def check_size(settings: Settings) -> None:
    """Refuse a cell that this machine's memory cannot hold.

    Raises:
        ConfigError: its weights, their gradient and the optimiser's two moments are too large.
    """
    needed = COPIES * 4 * settings.hidden**2
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise ConfigError(
            [
                f"hidden: a cell of {settings.hidden:,} features needs {needed / 1e9:,.0f} GB to "
                f"train, and this machine has {memory / 1e9:,.0f} GB"
            ]
        )


def _build_layer(
    layer: str | dict[str, Any], cell: nn.Module, predictor: nn.Module, channels: int
) -> ImplicitLayer:
    """The layer around the cell, with what its class asks for beside a cell.

    A predictor, a number of channels.
    """
    spec: dict[str, Any] = {"name": layer} if isinstance(layer, str) else dict(layer)
    asked = _parameters(spec.get("name"))
    if "channels" in asked:
        spec.setdefault("channels", channels)
    modules = (cell, predictor) if "predictor" in asked else (cell,)
    return create("layer", spec, *modules, path="layer")


def _parameters(name: Any) -> Collection[str]:
    """What the constructor of a layer takes; nothing where there is no such layer."""
    found = _layer_class(name)
    return signature(found).parameters if found else ()


def _layer_class(name: Any) -> type[ImplicitLayer] | None:
    """The class of a layer; None where there is none, which its creation then reports."""
    try:
        return REGISTRY.find("layer", name).load()
    except UnknownPartError:
        return None
