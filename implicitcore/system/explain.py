"""What is said of an error that f raised: where it was called, and what of its inputs may be it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.errors import InputError, show
from implicitcore.system.captured_modules import captured_modules
from implicitcore.system.mixing import cut
from implicitcore.system.problem import Problem

_TORCH = {"dtype": re.compile("dtype|scalar type"), "device": re.compile("device")}
"""How torch speaks of them."""


def explain(error: Exception, problem: Problem) -> None:
    """Add to an error of f where it was called.

    Raises:
        InputError: in its place, where f was given what it could not work with.
    """
    shapes = ", ".join(str([*shape]) for shape in problem.packing.full_shapes)
    where = (
        f"while evaluating {type(problem.dynamics).__name__} on a state z of shape "
        f"{shapes}, {problem.packing.dtype}"
    )
    if isinstance(error, TypeError):
        problem.dynamics.explain_call(error)
    found = _cause(str(error), problem) if type(error) in (TypeError, RuntimeError) else ""
    if found:
        raise InputError(f"{found} ({where}: {error})") from error
    tensors = pytree.tree_leaves(problem.x)
    given = ", ".join(str([*leaf.shape]) for leaf in tensors if isinstance(leaf, Tensor))
    error.add_note(
        f"{where}, with x of shape {given or 'none'}; a state is shaped like z0, which a layer "
        "makes like x unless shape= or start= says otherwise"
    )


def suspect_part(error: Exception, problem: Problem, whole: int | None) -> None:
    """Raise where f, of a part of the batch, may have failed because the rest was missing.

    Arguments:
        error: of f.
        problem: that of the part.
        whole: samples of the whole batch; None where nobody asks.

    Raises:
        InputError: f may have.
    """
    part = problem.packing.batch
    if whole not in (None, part) and type(error) in (RuntimeError, IndexError, InputError):
        found = f"f failed on {part} of {whole} samples alone ({error})"
        raise cut(found, problem.marked, whole) from error


def _cause(text: str, problem: Problem) -> str:
    """What of the inputs an error of torch or Python is about; empty where it is the user's own."""
    leaves = pytree.tree_leaves(problem.x)
    for leaf in leaves:
        if isinstance(leaf, Tensor) or not _is_about(text, problem.x, leaf):
            continue
        if leaf is None:
            return "x was not given, or holds None, which f received as it is: give what it needs"
        return (
            f"x holds {show(leaf)}, which f received as it is: give tensors, torch.as_tensor(...)"
        )
    for name, hint in (("dtype", ", with .to(dtype)"), ("device", ", with .to(device)")):
        found = dict(_differing(problem, leaves, name)) if _TORCH[name].search(text) else {}
        if len(set(found.values())) > 1:
            each = ", ".join(f"{what} {value}" for what, value in found.items())
            return (
                f"z, x and what f computes with differ in {name}: {each}; bring them to one{hint}"
            )
    return ""


def _is_about(text: str, x: Any, leaf: Any) -> bool:
    """Whether the text names the type of x or of a leaf: ``'Tensor' and 'list'``, ``not str``."""
    names = {type(x).__name__, type(leaf).__name__}
    return any(re.search(rf"\b{name}\b", text) for name in names)


def _differing(problem: Problem, leaves: list[Any], name: str) -> Iterator[tuple[str, Any]]:
    """The dtype or device of z, x and the parameters of the dynamics."""
    yield "z", getattr(problem.packing, name)
    captured = (p for part in captured_modules(problem.dynamics) for p in part.parameters())
    parameters = chain(problem.dynamics.parameters(), captured)
    for what, tensors in (("x", leaves), ("parameters", parameters)):
        for tensor in tensors:
            if isinstance(tensor, Tensor) and (
                name == "device" or tensor.is_floating_point() or tensor.is_complex()
            ):
                yield what, getattr(tensor, name)
                break
