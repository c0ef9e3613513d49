"""Products of matrices in a solver's own algebra, in the whole precision of their dtype.

On a GPU torch may round the factors of a float32 product to TF32, ten bits, where it is told to
(``torch.set_float32_matmul_precision("high")``). That is meant for f. The coefficients of a solver
lose by it what they are for: vectors are no longer orthogonal, and weights of a step are those of
another method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor

Product = Callable[..., Tensor]


@contextmanager
def whole_precision() -> Iterator[None]:
    """Without TF32, if it was on.

    The setting is that of the process: a product of another thread may meanwhile be exact too.
    """
    setting = torch.backends.cuda.matmul
    if setting.fp32_precision != "tf32":
        yield
        return
    setting.fp32_precision = "ieee"
    try:
        yield
    finally:
        setting.fp32_precision = "none"  # it may follow that of all operations
        if setting.fp32_precision != "tf32":
            setting.fp32_precision = "tf32"


def _of(product: Product) -> tuple[Product, Product]:
    """The product on a device, and on a CPU, where a solver is not to pay for a question."""

    @wraps(product)
    def whole(*factors: Any, **options: Any) -> Tensor:
        if torch.compiler.is_compiling():  # a setting is no operation of a graph
            return product(*factors, **options)
        with whole_precision():
            return product(*factors, **options)

    return whole, product


# Each by ``is_cpu`` of a factor.
BMM = _of(torch.bmm)
BADDBMM = _of(torch.baddbmm)
MATMUL = _of(torch.matmul)
TENSORDOT = _of(torch.tensordot)
