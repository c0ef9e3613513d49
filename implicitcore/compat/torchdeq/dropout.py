"""Dropout whose mask is drawn once a solve, under TorchDEQ's names."""

from __future__ import annotations

from torch import nn

from implicitcore.layers.dropout import VariationalDropout

__all__ = [
    "VariationalDropout",
    "VariationalDropout1d",
    "VariationalDropout2d",
    "VariationalDropout3d",
    "reset_dropout",
]


def VariationalDropout1d(dropout: float = 0.5) -> VariationalDropout:
    """Drop whole channels of ``[batch, channels, length]``, with this probability."""
    return VariationalDropout(dropout, (2,))


def VariationalDropout2d(dropout: float = 0.5) -> VariationalDropout:
    """Drop whole channels of ``[batch, channels, height, width]``, with this probability."""
    return VariationalDropout(dropout, (2, 3))


def VariationalDropout3d(dropout: float = 0.5) -> VariationalDropout:
    """Drop whole channels of ``[batch, channels, depth, height, width]``, with this probability."""
    return VariationalDropout(dropout, (2, 3, 4))


def reset_dropout(model: nn.Module) -> None:
    """Nothing: a mask is drawn anew in each solve, and none outlives it."""
