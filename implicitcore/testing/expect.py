"""Expectations of checks: a failure says what was done, received and expected."""

from __future__ import annotations

import unittest
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

_T = TypeVar("_T")


class ContractError(AssertionError):
    """A part broke a promise of its kind.

    The message says what was done, what was received and what was expected.
    """


class NotApplicable(unittest.SkipTest):
    """A check says nothing about this part, for the reason given.

    Pytest and unittest count it as skipped.
    """


def expect(holds: bool, did: str, received: Any, expected: Any) -> None:
    """Raise :class:`ContractError` where ``holds`` is false."""
    if not holds:
        raise ContractError(f"{did}: received {received}, expected {expected}")


def expect_equal(found: Tensor, expected: Tensor, did: str) -> None:
    """The very same values."""
    same = found.shape == expected.shape and torch.equal(
        found.nan_to_num(7.0), expected.nan_to_num(7.0)
    )
    expect(same, did, _summary(found, expected), "equal values")


def expect_close(found: Tensor, expected: Tensor, did: str, bound: float) -> None:
    """Equal up to an error of ``bound``, relative to the largest entry, or to 1 if that is less."""
    if found.shape != expected.shape:
        expect(False, did, f"shape {list(found.shape)}", f"shape {list(expected.shape)}")
    error = (found.to(expected.dtype) - expected).abs().max().item() if expected.numel() else 0.0
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    expect(
        error <= bound * scale,
        did,
        f"an error of {error / scale:.2g} ({_summary(found, expected)})",
        f"at most {bound:.2g}",
    )


def expect_apart(found: Iterable[Tensor], given: Iterable[Tensor], did: str) -> None:
    """No memory in common."""
    known = {each.untyped_storage().data_ptr() for each in given}
    shared = [each.untyped_storage().data_ptr() in known for each in found if each.numel()]
    expect(not any(shared), did, "the memory of an argument", "new tensors")


def expect_traced(fake: Iterable[Tensor], real: Iterable[Tensor], did: str) -> None:
    """What an operation says without values that it gives is what it gives."""
    for said, given in zip(fake, real, strict=True):
        kinds = [(tuple(t.shape), t.dtype, t.stride()) for t in (said, given)]
        expect(kinds[0] == kinds[1], did, f"{kinds[0]} (shape, dtype, stride)", kinds[1])


def _summary(found: Tensor, expected: Tensor) -> str:
    """The first entry that differs most."""
    if found.shape != expected.shape:
        return f"shape {list(found.shape)} for {list(expected.shape)}"
    if not found.numel():
        return "no entries"
    place = int((found.to(expected.dtype) - expected).abs().nan_to_num(torch.inf).argmax())
    return f"{found.flatten()[place].item():.6g} for {expected.flatten()[place].item():.6g}"


def known(value: _T | None) -> _T:
    """A value that may be None, and here is not: for a type checker."""
    assert value is not None, "expected a value, received None"
    return value
