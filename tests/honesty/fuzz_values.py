"""States, inputs, times and functions, fit and unfit."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch

import implicitcore as ic

N = 3


def _linear(z: Any, x: Any) -> Any:
    return torch.tanh(_LINEAR(z) * 0.3 + x)


_LINEAR = torch.nn.Linear(N, N)

MAPS: dict[str, Callable[..., Any]] = {
    "half": lambda z, x: 0.5 * z + x,
    "tanh": lambda z, x: torch.tanh(0.8 * z) + 0.1 * x,
    "linear": _linear,
    "constant": lambda z, x: torch.ones_like(z),
    "identity": lambda z, x: z,
    "runaway": lambda z, x: 2 * z + x,
    "drift": lambda z, x: z + 1,
    "nan": lambda z, x: z * torch.nan,
    "sqrt": lambda z, x: torch.sqrt(z) + x,
    "none": lambda z, x: None,
    "tuple": lambda z, x: (z,),
    "number": lambda z, x: 0.5,
    "row": lambda z, x: 0.5 * z.mean(0, keepdim=True),
    "column": lambda z, x: 0.5 * z.mean(-1, keepdim=True),
    "mean": lambda z, x: 0.5 * z.mean(),
    "other dtype": lambda z, x: (0.5 * z).to(torch.float64),
    "meta": lambda z, x: (0.5 * z).to("meta"),
    "numpy": lambda z, x: z.detach().numpy(),
    "transposed": lambda z, x: 0.5 * z.mT if z.ndim > 1 else z,
    "in place": lambda z, x: z.mul_(0.5).add_(1),
    "one argument": lambda z: z,
    "three arguments": lambda t, z, x: -z,
}
FIELDS: dict[str, Callable[..., Any]] = {
    "decay": lambda t, z, x: -z,
    "input": lambda t, z, x: x - z,
    "timed": lambda t, z, x: torch.sin(t) * z,
    "blowup": lambda t, z, x: z * z + 1,
    "sqrt": lambda t, z, x: -torch.sqrt(z),
    "none": lambda t, z, x: None,
    "row": lambda t, z, x: -z.mean(0, keepdim=True),
    "mean": lambda t, z, x: -z.mean(),
    "other dtype": lambda t, z, x: (-z).to(torch.float64),
    "meta": lambda t, z, x: (-z).to("meta"),
    "two arguments": lambda z, x: -z,
}


def inputs_of(rng: random.Random) -> tuple[Any, Any, str]:
    """A start, an input that may go with it, and what they are."""
    z0, told = state(rng)
    if rng.random() < 0.6 and isinstance(z0, torch.Tensor) and not z0.is_meta:
        x: Any = torch.randn(z0.shape).to(z0.dtype)
        return z0, x, f"z0={told}, x fits"
    x, other = rng.choice((state, _odd_input))(rng)
    return z0, x, f"z0={told}, x={other}"


def state(rng: random.Random) -> tuple[Any, str]:
    """A state, mostly a usable one."""
    name = rng.choice(list(_GOOD if rng.random() < 0.7 else _ODD))
    made = (_GOOD | _ODD)[name](rng)
    return made, name


def times_of(rng: random.Random) -> Any:
    """Output times, mostly usable ones."""
    if rng.random() < 0.7:
        return torch.tensor(rng.choice(([0.0, 1.0], [0.0, 0.2, 0.7], [1.0, 0.0], [-1.0, 0.5])))
    return rng.choice(
        (
            torch.tensor([0.0, 0.0]),
            torch.tensor([0.0, float("nan")]),
            torch.tensor([0.0, float("inf")]),
            torch.tensor([0.0, 2.0, 1.0]),
            torch.tensor([0, 1]),
            torch.tensor(1.0),
            torch.tensor([]),
            torch.tensor([[0.0, 1.0]]),
            torch.tensor([0.0, 1.0], dtype=torch.complex64),
            torch.tensor([0.0, 1.0], dtype=torch.float16),
            torch.tensor([0.0, 1.0], requires_grad=True),
            torch.tensor([0.0, 1.0], device="meta"),
            torch.tensor([0.0, 1.0]).to_sparse(),
            torch.tensor([False, True]),
            [0.0, 1.0],
            (0, 1),
            1.0,
            None,
            "now",
        )
    )


def _inference(rng: random.Random) -> torch.Tensor:
    with torch.inference_mode():
        return torch.randn(4, N)


_GOOD: dict[str, Callable[[random.Random], Any]] = {
    "float32": lambda rng: torch.randn(4, N),
    "float64": lambda rng: torch.randn(4, N, dtype=torch.float64),
    "bfloat16": lambda rng: torch.randn(4, N).bfloat16(),
    "float16": lambda rng: torch.randn(4, N).half(),
    "complex64": lambda rng: torch.randn(4, N, dtype=torch.complex64),
    "complex128": lambda rng: torch.randn(4, N, dtype=torch.complex128),
    "one sample": lambda rng: torch.randn(1, N),
    "no sample": lambda rng: torch.randn(0, N),
    "no feature": lambda rng: torch.randn(4, 0),
    "plain batch": lambda rng: torch.randn(4),
    "image": lambda rng: torch.randn(4, 2, 2, N),
    "expanded": lambda rng: torch.randn(1, N).expand(4, N),
    "transposed": lambda rng: torch.randn(N, 4).T,
    "strided": lambda rng: torch.randn(8, 2 * N)[::2, ::2],
    "conjugate": lambda rng: torch.randn(4, N, dtype=torch.complex64).conj(),
    "leaf": lambda rng: torch.randn(4, N, requires_grad=True),
    "parameter": lambda rng: torch.nn.Parameter(torch.randn(4, N)),
    "inference": _inference,
    "large": lambda rng: torch.randn(4, N) * 1e20,
    "small": lambda rng: torch.randn(4, N) * 1e-30,
    "zeros": lambda rng: torch.zeros(4, N),
}
_ODD: dict[str, Callable[[random.Random], Any]] = {
    "no dimension": lambda rng: torch.tensor(1.0),
    "integers": lambda rng: torch.ones(4, N, dtype=torch.int64),
    "bools": lambda rng: torch.ones(4, N, dtype=torch.bool),
    "nan": lambda rng: torch.full((4, N), torch.nan),
    "infinite": lambda rng: torch.full((4, N), torch.inf),
    "sparse": lambda rng: torch.ones(4, N).to_sparse(),
    "meta": lambda rng: torch.ones(4, N, device="meta"),
    "float8": lambda rng: torch.ones(4, N).to(torch.float8_e4m3fn),
    "tuple": lambda rng: (torch.randn(4, N), torch.randn(4, 2)),
    "dict": lambda rng: {"a": torch.randn(4, N)},
    "batches differ": lambda rng: (torch.randn(4, N), torch.randn(5, N)),
    "dtypes differ": lambda rng: (torch.randn(4, N), torch.randn(4, N).double()),
    "partly none": lambda rng: (torch.randn(4, N), None),
    "empty tuple": lambda rng: (),
    "list": lambda rng: [[1.0, 2.0, 3.0]],
    "array": lambda rng: torch.ones(4, N).numpy(),
    "none": lambda rng: None,
    "text": lambda rng: "z\x1b[31m" * rng.choice((1, 10_000)),
    "number": lambda rng: 1.0,
    "object": lambda rng: object(),
    "set": lambda rng: {1, 2},
    "class": lambda rng: torch.Tensor,
    "shared": lambda rng: ic.shared(torch.randn(4, N)),
}


def _odd_input(rng: random.Random) -> tuple[Any, str]:
    name = rng.choice(list(_INPUTS))
    return _INPUTS[name](rng), name


_INPUTS: dict[str, Callable[[random.Random], Any]] = {
    "another batch": lambda rng: torch.randn(5, N),
    "another width": lambda rng: torch.randn(4, 7),
    "shared scalar": lambda rng: ic.shared(torch.tensor(0.5)),
    "shared row": lambda rng: ic.shared(torch.randn(N)),
    "half shared": lambda rng: (torch.randn(4, N), ic.shared(torch.randn(2))),
    "scalar": lambda rng: torch.tensor(0.5),
    "double": lambda rng: torch.randn(4, N, dtype=torch.float64),
    "float": lambda rng: 0.5,
    "huge number": lambda rng: 10**400,
}
