"""What an iteration launches on a GPU, by torch's profiler: kernels, copies and waits of the host,
for each backend, beside what docs/benchmarks/launches.md counts without a device
(``python -m benchmarks.gpu_launches``). On a CPU it counts torch's operators."""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import implicitcore as ic
from benchmarks.gpu_contenders import backends
from benchmarks.markdown import table
from benchmarks.report import machine_line
from benchmarks.rows import DOCS, device_name, machine
from implicitcore.root_solvers.krylov import krylov_space

FEW, MANY, BATCH, N = 21, 61, 32, 64
"""Their difference, of which what is counted is a share, is whole chunks of CUDA graphs."""
GRAPHS = "cuda_graphs"
LAUNCH = re.compile(r"cu(da)?(LaunchKernel|LaunchCooperativeKernel|GraphLaunch)")
WAIT = re.compile(r"cu(da)?(Stream|Event|Device|Ctx)Synchronize|cudaMemcpy(_v\d+)?$")
NAME = "gpu_launches"
HEADER = ("", "backend", "launches", "of f", "kernels", "of f", "copies", "waits", "emulated")

PAGE = """\
<!-- Written by `python -m benchmarks.gpu_launches`: edit neither this page nor its numbers. -->

# Launches, counted on a device

Of an iteration (of `GMRES` a product, of an ODE solver a step), by torch's profiler: what the host
launches, a CUDA graph as one; the kernels that the device runs; copies and fills of memory; and how
often the host waits. Those of f alone stand beside: subtract them. A share of the difference of two
runs, of {few} and {many} iterations, which both were run before. {batch} samples of {n} entries in
float32, f is 0.95 z Q + x with an orthogonal Q, so that nothing has converged by then. *Emulated*
is what [the page without a device](launches.md) says of the torch backend, f left out.
"""


class Problem(NamedTuple):
    """f(z, x) = 0.95 z Q + x, and a vector field z S, which turns z and changes no |z|."""

    q: Tensor
    s: Tensor
    z: Tensor

    @classmethod
    def on(cls, device: str) -> Problem:
        generator = torch.Generator().manual_seed(0)
        matrix = torch.randn(N, N, generator=generator)
        s, z = matrix - matrix.T, torch.randn(BATCH, N, generator=generator)
        q, s = 0.95 * torch.linalg.qr(matrix)[0], s / torch.linalg.matrix_norm(s, 2)
        return cls(q.to(device), s.to(device), z.to(device))

    def f(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.addmm(x, z, self.q)

    def field(self, t: Tensor, z: Tensor, x: Any) -> Tensor:
        return z @ self.s


@dataclass(frozen=True)
class Seen:
    """What the profiler saw; shares of it too.

    Attributes:
        launches: by the host; on a CPU, operators that no other operator called.
        kernels: that ran on the device.
        copies: and fills of memory, on the device.
        waits: of the host for the device; on a CPU, numbers that Python read.
    """

    launches: float = 0
    kernels: float = 0
    copies: float = 0
    waits: float = 0

    def share(self, less: Seen, count: int) -> Seen:
        """Of each of ``count``, where another run had ``less``."""
        mine, theirs = asdict(self), asdict(less)
        return Seen(**{key: (mine[key] - theirs[key]) / count for key in mine})


@dataclass(frozen=True)
class Counts:
    """One row: an iteration of a method with a backend, and an evaluation of f times how often an
    iteration has one."""

    method: str
    backend: str
    evaluations: float
    all: Seen
    of_f: Seen
    names: dict[str, float]


Run = Callable[[Problem, ic.Backend, int], int]
"""So many iterations; it returns the evaluations of f."""


@torch.no_grad()
def solve(kind: type[ic.RootSolver], problem: Problem, backend: ic.Backend, steps: int) -> int:
    solver: Any = kind
    found = ic.fixed_point(
        problem.f,
        problem.z,
        problem.z,
        solver=solver(tol=1e-30, max_steps=steps),
        backend=backend,
        on_failure="ignore",
    )
    return found.evaluations


@torch.no_grad()
def products(problem: Problem, backend: ic.Backend, steps: int) -> int:
    x, limit = torch.zeros_like(problem.z), problem.z.new_zeros(BATCH)
    krylov_space(backend, lambda v: problem.f(v, x), problem.z, limit, steps).minimise()
    return steps


@torch.no_grad()
def integrate(
    make: Callable[[int], ic.ODESolver], problem: Problem, backend: ic.Backend, steps: int
) -> int:
    found = ic.integrate(
        problem.field,
        problem.z,
        times=torch.tensor([0.0, 1e4]),
        solver=make(steps),
        backend=backend,
        on_failure="ignore",
    )
    return found.evaluations


METHODS: Mapping[str, Run] = {
    "Picard": partial(solve, ic.Picard),
    "Anderson": partial(solve, ic.Anderson),
    "Broyden": partial(solve, ic.Broyden),
    "GMRES, a product": products,
    "Tsit5, a step": partial(integrate, lambda steps: ic.Tsit5(max_steps=steps)),
    "Adams, a step": partial(integrate, lambda steps: ic.Adams(max_order=3, max_steps=steps)),
}


def seen(work: Callable[[], object], device: str) -> Counter[tuple[bool, str]]:
    """How often the profiler saw what, by whether it ran on the device and its name.

    On a CPU an operator that another one called is left out.
    """
    on_device = device != "cpu"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_device else [])]
    with profile(activities=activities) as found:
        work()
        if on_device:
            torch.cuda.synchronize()
    events = found.events() or []
    return Counter(
        (event.device_type.name == "CUDA", event.name)
        for event in events
        if on_device or event.cpu_parent is None or event.name == "aten::_local_scalar_dense"
    )


def counted(names: Counter[tuple[bool, str]], device: str) -> Seen:
    """The same in kinds."""
    on_device = {name: count for (there, name), count in names.items() if there}
    host = {name: count for (there, name), count in names.items() if not there}
    copies = sum(n for name, n in on_device.items() if name.startswith(("Memcpy", "Memset")))
    if device == "cpu":
        operators = sum(n for name, n in host.items() if "::" in name)
        reads = host.get("aten::_local_scalar_dense", 0)
        return Seen(operators - reads, 0, 0, reads)
    return Seen(
        sum(n for name, n in host.items() if LAUNCH.match(name)),
        sum(on_device.values()) - copies,
        copies,
        sum(n for name, n in host.items() if WAIT.match(name)),
    )


def measure(device: str, only: str) -> Iterator[Counts]:
    """All methods with all backends that run here, and their CUDA graphs."""
    problem, able = Problem.on(device), {}
    for name, backend in backends(device).items():
        able[name] = backend
        if device != "cpu" and hasattr(backend, GRAPHS):
            able[f"{name}, {GRAPHS}"] = replace(backend, **{GRAPHS: True})  # pyright: ignore
    for method, run in METHODS.items():
        for name, backend in able.items():
            if only in f"{method}, {name}":
                yield _row(method, name, partial(run, problem, backend), problem, device)


def _row(
    method: str, backend: str, run: Callable[[int], int], problem: Problem, device: str
) -> Counts:
    evaluations: list[int] = []
    for _ in range(3):  # kernels are compiled in the first run, graphs recorded in the second
        evaluations = [run(steps) for steps in (FEW, MANY)]
    some, more = (seen(partial(run, steps), device) for steps in (FEW, MANY))
    if device != "cpu" and not counted(more, device).kernels:
        raise SystemExit("the profiler saw no kernel on the device: is CUPTI installed?")
    count, each = MANY - FEW, (evaluations[1] - evaluations[0]) / (MANY - FEW)
    share = counted(more, device).share(counted(some, device), count)
    f = problem.field if "step" in method else None
    call = (lambda: f(problem.z, problem.z, None)) if f else lambda: problem.f(problem.z, problem.z)
    once, thrice = (counted(seen(partial(_times, call, n), device), device) for n in (1, 1 + count))
    alone = thrice.share(once, count)
    of_f = Seen(**{key: value * each for key, value in asdict(alone).items()})
    names = {name: (more[there, name] - some[there, name]) / count for there, name in more}
    return Counts(method, backend, each, share, of_f, {k: v for k, v in names.items() if v})


@torch.no_grad()
def _times(call: Callable[[], object], count: int) -> None:
    for _ in range(count):
        call()


def emulated(page: str) -> dict[str, str]:
    """Launches of the torch backend by method, f left out, as the page without a device says."""
    rows = re.findall(r"^\| `(\w+)`(, a \w+)? \| ([\d.]+) \|", page, re.MULTILINE)
    found: dict[str, str] = {}
    for name, unit, launches in rows:
        found.setdefault(name + unit, launches)
    return found


def page(rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any], told: str) -> str:
    """The whole page."""
    beside, cells = emulated(told), []
    for row in rows:
        total, of_f = row["all"], row["of_f"]
        shown = (
            *(f"{each[key]:.2f}" for key in ("launches", "kernels") for each in (total, of_f)),
            *(f"{total[key]:.2f}" for key in ("copies", "waits")),
        )
        known = beside.get(row["method"], "") if row["backend"] == "torch" else ""
        cells.append((row["method"], row["backend"], *shown, known))
    text = PAGE.format(few=FEW, many=MANY, batch=BATCH, n=N)
    operators = "On a CPU: *launches* are torch's operators.\n" if about["device"] == "cpu" else ""
    lines = [text, operators + f"Device: {about['device']}. {machine_line(about)}", ""]
    return "\n".join([*lines, *table(HEADER, cells)])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", default="", help="only rows whose method and backend hold this")
    parser.add_argument("--output", type=Path, default=DOCS, help="folder (default %(default)s)")
    options = parser.parse_args(arguments)
    device = device_name(options.device)
    if device is None:
        raise SystemExit(f"nothing was counted: no {options.device} device")
    rows = []
    about = machine(["implicitcore", "torch"]) | {"device": device}
    told = (DOCS / "launches.md").read_text(encoding="utf-8")
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"{NAME}.json"
    for row in measure(options.device, options.only):
        rows.append(asdict(row))
        # Saved after each: what comes later may hang.
        text = ",\n".join(json.dumps(entry) for entry in [*rows, {"machine": about}])
        path.write_text(f"[\n{text}\n]\n", encoding="utf-8")
        path.with_suffix(".md").write_text(page(rows, about, told), encoding="utf-8")
        print(row.method, row.backend, row.all, flush=True)
    print(f"wrote {path} and {path.with_suffix('.md').name}")


if __name__ == "__main__":
    main()
