"""What is said of a batch whose samples are not apart, and how far rounding may part two values."""

from __future__ import annotations

from collections.abc import Iterable
from math import comb
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.errors import InputError
from implicitcore.system.context import Context
from implicitcore.tensors.norms import coarsest, norm
from implicitcore.tensors.shared import Shared

ADVICE = (
    "use coupled=True, which solves the batch as one (nodes of a graph, batch norm in training, "
    "attention over the batch)"
)

# How far the same samples may be apart in two batches of different sizes, whose kernels differ:
# so many square roots of the precision, and at most this share of their norm.
KERNELS, MOST = 30.0, 0.1

# Most products by which samples are told apart: every pair of 70, and 69 of 70 pairs of more.
PRODUCTS = 8


def mixed(found: str, shapes: Iterable[tuple[int, ...]] = ()) -> InputError:
    """The error that a cell mixes samples.

    Arguments:
        found: what was seen.
        shapes: of the tensors of the state, where they are known: a vector may have been meant as
            one sample.
    """
    flat = next((size for size, *rest in shapes if not rest), None)
    vector = (
        f"; a z of shape [{flat}] is {flat} samples of one number: one of {flat} is [1, {flat}]"
    )
    return InputError(f"the cell mixes samples: {found}; {ADVICE}{vector if flat else ''}")


def cut(found: str, x: Any, batch: int) -> InputError:
    """The error that some samples have other values alone than they have in the batch.

    Arguments:
        found: what was seen.
        x: the marked input of these samples.
        batch: how many samples the whole has.
    """
    names = suspects(x, batch)
    if not names:
        return mixed(found)
    belongs = "belongs" if len(names) == 1 else "belong"
    return InputError(
        f"{found}: either {' and '.join(names)} {belongs} to all samples, to be marked with "
        f"ic.shared(...), or the cell mixes samples: then {ADVICE}"
    )


def precision(context: Context, dtype: torch.dtype) -> float:
    """The unit of rounding that f is computed in, for states of a dtype."""
    return torch.finfo(coarsest((dtype, *context.rounded))).eps


def suspects(x: Any, batch: int) -> list[str]:
    """The places of the tensors in x that may belong to all samples, though they are not marked.

    A vector, and a tensor with a further dimension as long as the batch: what has the batch first
    by contract, and may have it by chance.
    """
    leaves: Iterable[tuple[Any, Any]] = pytree.tree_flatten_with_path(
        x, is_leaf=lambda node: isinstance(node, Shared)
    )[0]
    return [
        f"x{pytree.keystr(path)}"
        for path, leaf in leaves
        if isinstance(leaf, Tensor) and (leaf.ndim == 1 or batch in leaf.shape[1:])
    ]


def kernels(eps: float) -> float:
    """How far a sample may be off in a batch of another size, relative to its norm."""
    return min(KERNELS * eps**0.5, MOST)


@torch.no_grad()
def check_rows(part: Tensor, whole: Tensor, batch: int, x: Any, eps: float) -> None:
    """Require that some samples have the values alone that they have in the batch.

    Arguments:
        part: ``[k, n]``, of these samples alone.
        whole: ``[k, n]``, of the same in the batch.
        batch: how many samples that has.
        x: the marked input of these samples.
        eps: the precision of the values.

    Raises:
        InputError: they have others.
    """
    far, size = norm(part - whole), torch.maximum(norm(part), norm(whole))
    wrong = (far > kernels(eps) * size) & far.isfinite()
    if bool(wrong.any()):
        share = (far / size)[wrong].max().item()
        raise cut(
            f"the values of {len(part)} of {batch} samples alone are not those beside the others "
            f"(off by {share:.2g} of their norm)",
            x,
            batch,
        )


def members_of(count: int) -> Tensor:
    """Which of so many samples are in each product, ``[products, samples]`` bool.

    The samples are halves of the products: none is in all products of another one (Sperner). There
    are as many of them as were asked for, or the most that there can be.
    """
    products = next(k for k in range(PRODUCTS + 1) if k == PRODUCTS or comb(k, k // 2) >= count)
    halves = torch.combinations(torch.arange(products), products // 2)
    members = torch.zeros(len(halves), products, dtype=torch.bool).scatter_(1, halves, True)
    return members[:count].T
