"""Contenders of JAX, in an environment and a process of their own (``make bench-jax`` makes the
environment); without it they are left out.

The process compiles each contender once, and answers how long calls of it take: so they are timed
between the others, in every repetition, and nothing of the pipe between the two is in a time.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from benchmarks.counting import Counted, Spent, equilibrium
from benchmarks.problem import Contender, Outcome, Problem, Step
from benchmarks.rows import Row

ENVIRONMENT = Path(__file__).parents[2] / ".venv-jax"
EQUILIBRIA = (
    ("jax", "picard"),
    ("jaxopt", "picard"),
    ("jaxopt", "anderson"),
    ("optimistix", "picard"),
)
TRAJECTORIES = (
    ("dopri5", "checkpointed"),
    ("dopri5, joint", "checkpointed"),
    ("dopri5, joint", "adjoint"),
)
NAMES = ("jax", "jaxopt", "optimistix", "diffrax")
ABSENT = "The libraries of JAX were not installed (`make bench-jax`): no row is theirs."
PRESENT = """\
Rows of {names} are one jitted function, compiled ahead, in a process of their own, which is timed
between the others on the same cores. Their floor is the eager one of their counts, their peak what
XLA says of temporaries and results."""


def python() -> Path | None:
    """The interpreter of the environment, where there is one."""
    path = ENVIRONMENT / "bin" / "python"
    return path if path.exists() else None


class Process:
    """The process, and its answers."""

    def __init__(self, interpreter: Path) -> None:
        self.folder = TemporaryDirectory()
        self._process = subprocess.Popen(
            [interpreter, "-m", "benchmarks.jax_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "JAX_PLATFORMS": "cpu"},
        )
        if hasattr(os, "sched_setaffinity"):  # else JAX takes all cores, whatever torch takes
            cores = sorted(os.sched_getaffinity(0))[: torch.get_num_threads()]
            os.sched_setaffinity(self._process.pid, cores)

    def ask(self, **request: Any) -> dict[str, Any]:
        """One request and its answer.

        Raises:
            RuntimeError: what the process raised, or that it ended.
        """
        given, answers = self._process.stdin, self._process.stdout
        assert given is not None
        assert answers is not None
        given.write(json.dumps(request) + "\n")
        given.flush()
        line = answers.readline()
        if not line:
            raise RuntimeError(f"the process of JAX ended with {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def path(self, name: str) -> str:
        """Of a file for tensors."""
        return str(Path(self.folder.name) / f"{name}.npz")

    def close(self) -> None:
        """End it."""
        self._process.communicate()
        self.folder.cleanup()


@cache
def process() -> Process | None:
    """The process, started at the first call; None without the environment."""
    interpreter = python()
    return Process(interpreter) if interpreter else None


def close() -> None:
    """End the process, where one was started."""
    found = process() if process.cache_info().currsize else None
    process.cache_clear()
    if found:
        found.close()


@cache
def versions() -> dict[str, str]:
    """Of the libraries in the environment."""
    found = process()
    return found.ask(do="versions") if found else {}


def equilibria() -> list[Contender]:
    """The same solver forward and backward; none without the environment."""
    return (
        []
        if python() is None
        else [_contender(*names, f"implicit {names[1]}", equilibrium) for names in EQUILIBRIA]
    )


def trajectories(spent: Callable[[Counted], Spent]) -> list[Contender]:
    """Of diffrax; none without the environment."""
    return (
        [] if python() is None else [_contender("diffrax", *names, spent) for names in TRAJECTORIES]
    )


def said(rows: Iterable[Row], *more: str) -> Iterator[str]:
    """What a page says of these rows, or that there are none."""
    names = sorted({row.library for row in rows}.intersection(NAMES))
    told = [PRESENT.format(names=", ".join(names)), *more] if names else [ABSENT]
    yield from ("\n".join(told), "")


@dataclass(frozen=True)
class LastState:
    """The last state of trajectories by diffrax, in float64, each sample with its own steps.

    Arguments:
        method: of :mod:`benchmarks.jax_worker.precision`.
        field: the same.
        z0: the batch.
        tensors: what the field is made of.
        end: where it ends; it begins at 0.
        budget: the most steps.
    """

    method: str
    field: str
    z0: Tensor
    tensors: Mapping[str, Tensor]
    end: float
    budget: int

    def __call__(self, tol: float) -> Tensor:
        return self.at(tol, tol)()

    def at(self, rtol: float, atol: float) -> Integration:
        """At a relative and an absolute tolerance."""
        return Integration(self, rtol, atol)

    @cached_property
    def case(self) -> int:
        """Of the process: compiled once, for every tolerance."""
        data = _started().path("field")
        tensors: dict[str, Any] = {name: part.numpy() for name, part in self.tensors.items()}
        np.savez(data, z0=self.z0.numpy(), **tensors)
        about = {"field": self.field, "method": self.method, "end": self.end}
        return _started().ask(do="pose", data=data, budget=self.budget, **about)["case"]


@dataclass(frozen=True)
class Integration:
    """A work whose seconds the process tells."""

    of: LastState
    rtol: float
    atol: float

    def __call__(self) -> Tensor:
        path = _started().path("last")
        tols = {"rtol": self.rtol, "atol": self.atol}
        _started().ask(do="save", case=self.of.case, path=path, **tols)
        with np.load(path) as data:
            return torch.from_numpy(data["z"])

    def seconds(self, calls: int) -> float:
        """Processor time of one call."""
        request = {"case": self.of.case, "calls": calls, "rtol": self.rtol, "atol": self.atol}
        return _started().ask(do="seconds", **request)["seconds"]


def _started() -> Process:
    found = process()
    if found is None:
        raise RuntimeError("there is no environment of JAX")
    return found


def _contender(
    library: str, method: str, gradient: str, spent: Callable[[Counted], Spent]
) -> Contender:
    request = {"library": library, "method": method, "gradient": gradient}
    return Contender(library, method, gradient, partial(_step, request), spent)


def _step(request: dict[str, str], problem: Problem, tol: float) -> Step:
    """What the process compiled. Counts are asked for where f counts."""
    found = _started()
    counted = problem.f if isinstance(problem.f, Counted) else None
    data, path = found.path("problem"), found.path("outcome")
    plain: Any = counted.f if counted else problem.f
    fixed = _save(data, problem, plain)
    cell = f"{type(plain).__module__.rpartition('.')[2]}.{type(plain).__name__}"
    case = found.ask(
        do="pose",
        data=data,
        cell=cell,
        fixed=fixed,
        tol=tol,
        budget=problem.budget,
        **request,
    )["case"]
    if counted:
        counts = found.ask(do="counts", case=case, path=path)
        counted.plain, counted.graphs = counts["plain"], counts["graphs"]
        counted.products = counted.differentiated = counts["products"]
        return Step(partial(_outcome, path, problem, plain))
    about = found.ask(do="compile", case=case)

    def run() -> Outcome:
        found.ask(do="save", case=case, path=path)
        return _outcome(path, problem, plain)

    def seconds(calls: int) -> float:
        return found.ask(do="seconds", case=case, calls=calls)["seconds"]

    return Step(run, seconds=seconds, **about)


def _save(path: str, problem: Problem, f: Any) -> list[int]:
    """Write the problem's tensors; returns the numbers of those of x without a gradient."""
    arrays = {f"parameter:{name}": part for name, part in f.named_parameters()}
    for name, buffer in f.named_buffers():
        if buffer.is_sparse:
            arrays[f"buffer:{name}.values"] = buffer.values()
            arrays[f"buffer:{name}.indices"] = buffer.indices().int()
        else:
            arrays[f"buffer:{name}"] = buffer
    leaves = pytree.tree_leaves(problem.x)
    arrays |= {f"x:{i}": leaf for i, leaf in enumerate(leaves)}
    arrays |= {"z0": problem.z0, "v": problem.v}
    np.savez(path, **{name: part.detach().numpy() for name, part in arrays.items()})
    return [i for i, leaf in enumerate(leaves) if not leaf.requires_grad]


def _outcome(path: str, problem: Problem, f: Any) -> Outcome:
    """z and the gradients, in the order of the leaves."""
    with np.load(path) as data:
        found: dict[str, Tensor] = {name: torch.from_numpy(data[name]) for name in data}
    names = [f"parameter:{name}" for name, _ in f.named_parameters()]
    leaves = enumerate(pytree.tree_leaves(problem.x))
    names += [f"x:{i}" for i, leaf in leaves if leaf.requires_grad]
    names += ["z0"] if problem.z0.requires_grad else []
    return Outcome(found["z"], [found[name] for name in names])
