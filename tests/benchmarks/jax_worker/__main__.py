"""Answer requests, one line of JSON each, from the standard input: compile a contender, time calls
of it, say what it returns and what it spends.

So the benchmark can time it between the others, in every repetition.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from typing import Any

from benchmarks.jax_worker.cells import CELLS, Cell, Counts, counted, of_one
from benchmarks.jax_worker.equilibria import ABSOLUTE, ROOTS, Equilibrium, picard
from benchmarks.jax_worker.libraries import jax, jnp, np, versions
from benchmarks.jax_worker.precision import Precision
from benchmarks.jax_worker.trajectories import JOINT, Trajectory


class Case:
    """A contender on a problem.

    Arguments:
        request: ``data``, the file of the tensors; ``cell``; ``library``, ``method``, ``gradient``;
            ``tol`` and ``budget``; ``fixed``, the numbers of the tensors of x that have no
            gradient.
    """

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request
        with np.load(request["data"]) as data:
            arrays = {name: jnp.asarray(value) for name, value in data.items()}
        parts = {kind: _of_kind(arrays, kind) for kind in ("parameter", "buffer", "x")}
        self.buffers = parts["buffer"]
        self.given = parts["parameter"], list(parts["x"].values()), arrays["z0"], arrays["v"]
        self.call: Any = None

    def _cell(self) -> Cell:
        f, buffers, fixed = CELLS[self.request["cell"]], self.buffers, self.request["fixed"]

        def cell(p: Any, x: Any, z: Any) -> Any:
            x = [jax.lax.stop_gradient(part) if i in fixed else part for i, part in enumerate(x)]
            return f({**p, **buffers}, x, z)

        return cell

    def _step(self, f: Cell, single: Cell) -> Any:
        """Of f on the batch, and on one sample."""
        library, method, gradient, tol, budget = (
            self.request[key] for key in ("library", "method", "gradient", "tol", "budget")
        )
        if library == "diffrax":
            joint = method.endswith(JOINT)
            return Trajectory(None if joint else single, f, method, gradient, tol, budget)
        step = Equilibrium(f, ROOTS[library, method], tol, budget)
        if library not in ABSOLUTE:
            return step
        exact = jax.jit(Equilibrium(self._cell(), picard, 1e-6, 1000).solve)
        return step.one_by_one(single, *exact(*self.given)[:2])

    def compile(self) -> dict[str, Any]:
        """The seconds it took, and the bytes that XLA says the program takes besides what it is
        given."""
        f = self._cell()
        step = jax.jit(self._step(f, of_one(f)))
        begin = time.perf_counter()
        self.call = step.lower(*self.given).compile()
        seconds = time.perf_counter() - begin
        memory = self.call.memory_analysis()
        peak = memory.temp_size_in_bytes + memory.output_size_in_bytes
        return {"compile_seconds": seconds, "peak_bytes": peak}

    def seconds(self, calls: int) -> dict[str, float]:
        """Of one call, as the mean of so many in a row."""
        begin = time.perf_counter()
        for _ in range(calls):
            jax.block_until_ready(self.call(*self.given))
        return {"seconds": (time.perf_counter() - begin) / calls}

    def save(self, path: str, call: Any = None) -> None:
        """Write z and the gradients, of the parameters by name."""
        z, parameters, x, *rest = (call or self.call)(*self.given)
        found = {f"parameter:{name}": value for name, value in parameters.items()}
        found |= {f"x:{i}": value for i, value in enumerate(x)}
        np.savez(path, z=z, **found, **({"z0": rest[0]} if rest else {}))

    def counts(self, path: str) -> Counts:
        """What one call spends, and what it returns: of the same step, with an f that counts."""
        counts, f = Counts(), self._cell()
        single = counted(f, counts, 1 / len(self.given[2]))
        step = self._step(counted(f, counts, 1.0), of_one(single))
        self.save(path, jax.jit(step))
        jax.effects_barrier()
        return counts


def _of_kind(arrays: dict[str, Any], kind: str) -> dict[str, Any]:
    return {
        name.partition(":")[2]: value
        for name, value in arrays.items()
        if name.partition(":")[0] == kind
    }


class Worker:
    """The cases that were compiled, and an answer to each request."""

    def __init__(self) -> None:
        self.cases: list[Case | Precision] = []

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        do = request.pop("do")
        if do == "versions":
            return versions()
        if do == "pose":
            self.cases.append(Precision(request) if "field" in request else Case(request))
            return {"case": len(self.cases) - 1}
        case = self.cases[request.pop("case")]
        answer = getattr(case, do)(**request)
        gc.collect()
        return answer or {}


def main() -> None:
    """Until the input ends. What others print goes to the error output."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker()
    gc.disable()
    for line in sys.stdin:
        try:
            answer = worker.answer(json.loads(line))
        except Exception as failure:  # the benchmark leaves the contender out, with the reason
            answer = {"error": f"{type(failure).__name__}: {str(failure).strip()}".splitlines()[0]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
