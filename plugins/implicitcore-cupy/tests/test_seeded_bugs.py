"""The comparison finds what it is for: each change of the source is noticed."""

from __future__ import annotations

import signal
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from cpu_launcher import FORWARD, REVERSE, SHUFFLED, CpuLauncher, on_cpu

import implicitcore as ic
import implicitcore_cupy.backend as backend_module
from implicitcore.testing.hard_maps import PROBLEMS, UNSTABLE, same_stops
from implicitcore.testing.kernel_checks import CHECKS, KernelProblem
from implicitcore.testing.step_kernel_checks import STEP_CHECKS
from implicitcore_cupy.launcher import source

BUGS = {
    "no tail": (
        "for (int64 i = rest + team.rank; i < last;",
        "if (!wide) for (int64 i = rest + team.rank; i < last;",
    ),
    "no alignment test": (
        "(reinterpret_cast<unsigned long long>(rows) | ... | 0) & 15) == 0",
        "(sizeof(rows) | ... | 0)) > 0",
    ),
    "no alignment test of the history": (
        "aligned(row, history) && a.history_step * sizeof(T) % 16 == 0",
        "aligned(row, history)",
    ),
    "spans that overlap": (
        "first = blockIdx.y * span, last",
        "first = blockIdx.y * (span - 16), last",
    ),
    "no barrier before the sum": (
        "__syncthreads();\n    if (team.rank < count) {",
        "if (team.rank < count) {",
    ),
    "no barrier before the totals": ("__syncthreads();  // the next", "// the next"),
    "a barrier for some": (
        "__syncthreads();\n    if (team.rank < count) {",
        "if (warp == 0) __syncthreads();\n    if (team.rank < count) {",
    ),
    "half a team": ("for (int step = within / 2; step;", "for (int step = within / 4; step;"),
    "the teams of a warp as one": (
        "team.lanes < WARP ? team.lanes : WARP",
        "WARP",
    ),
    "a team behind the batch": ("present = sample < batch;", "present = true;"),
    "teams that begin with a block": ("small ? thread / lanes", "small ? threadIdx.x / lanes"),
    "a warp left out": (
        "for (int i = 1; i < warps; ++i) total",
        "for (int i = 1; i < warps - 1; ++i) total",
    ),
    "the last span left out": ("i < a.spans; i += team.lanes", "i < a.spans - 1; i += team.lanes"),
    "partial sums in one place": (
        "(sample * to.count + k) * gridDim.y",
        "(sample + k) * gridDim.y",
    ),
    "no root": ("to.scale > 0 ?", "to.scale > 2 ?"),
    "no mean": ("sqrt(sum * static_cast<Sum<T>>(to.scale))", "sqrt(sum)"),
    "a history without steps": (
        "history + (first + k) * a.history_step + i",
        "history + (first + k) * a.n + i",
    ),
    "a mixed history without steps": ("history + k * a.history_step + i", "history + k * a.n + i"),
    "the weights of the first sample": ("a.weights + team.sample * a.depth", "a.weights"),
    "no scale": ("base.at[j] + scale * total.at[j]", "base.at[j] + total.at[j]"),
    "no step size": ("base.at[j] + dt * total.at[j]", "base.at[j] + total.at[j]"),
    "the step size of the first sample": ("a.dt[team.sample]", "a.dt[0]"),
    "a NaN dropped": ("p > q || p != p ? p : q", "p > q ? p : q"),
    "only one state in the scale": ("p > q || p != p ? p : q", "p"),
    "bfloat16 cut off": ("(bits + 0x7fff + (bits >> 16 & 1)) >> 16", "bits >> 16"),
    "a norm of what was not stored": (
        "values.at[j] = widen(pack.at[j]);\n    }\n    *",
        "}\n    *",
    ),
}


WILD = "a team behind the batch"
FOUND = 3
"""How the process that runs it ends where a check notices."""

BFLOAT16 = ("bfloat16 cut off", "a norm of what was not stored")  # what only rounding shows


def found(dtype: torch.dtype, changes: dict[str, str]) -> bool:
    """Whether some check fails, in some order of the threads."""
    for order in (FORWARD, REVERSE, SHUFFLED):
        backend = on_cpu(order, changes)
        for batch, n in ((3, 129), (3, 20_005), (150, 2), (9, 40)):
            for aligned in (True, False):
                for check in CHECKS.values():
                    try:
                        check(KernelProblem(backend, "cpu", dtype, batch, n, aligned))
                    except AssertionError:
                        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("bug", [bug for bug in BUGS if bug != WILD])
def test_a_bug_is_found(bug):
    old, new = BUGS[bug]
    assert found(torch.bfloat16 if bug in BFLOAT16 else torch.float32, {old: new})


@pytest.mark.slow
def test_a_write_behind_the_results_is_found():
    """In a process of its own, which such a write may end."""
    program = (
        "import sys, torch, test_seeded_bugs as bugs\n"
        "old, new = bugs.BUGS[bugs.WILD]\n"
        f"sys.exit({FOUND} if bugs.found(torch.float32, {{old: new}}) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parent)
    assert done.returncode in (FOUND, -signal.SIGABRT, -signal.SIGSEGV)


ITERATIONS = {  # of root_iteration.cu: the update whose solves show it, and the change
    "no best iterate": ("Broyden", "found |= keeps;", "found |= stays;"),
    "a stopped sample moves on": ("Picard", "s.counter(stopped) ? stays : moves;", "moves;"),
    "a best that is worse": ("Anderson", "first || size <= best, grown", "first, grown"),
    "no trust": ("Picard", "&& counts(s, away);", ";"),
    "no underflow": ("Picard", "if (size < small) {", "if (size < 0) {"),
    "no divergence": ("Picard", "if (!(size <= s.real(ceiling))) failure", "if (away) failure"),
    "no restart of a sample": ("Anderson", "if (restart) in_use = 0;", ""),
    "no retreat": ("Anderson", "restarts : restarts | retreats", "restarts : restarts"),
    "no period": ("Anderson", "(s.count - 2) % s.a.period", "(s.count - 2)"),
    "no ridge": ("Anderson", "low + static_cast<S>(s.a.ridge)", "low + 0"),
    "a slot that stays": ("Anderson", "return directions(s) % s.a.depth;", "return 0;"),
    "the oldest counts twice": ("Anderson", "if (!takes || k == newest)", "if (!takes)"),
    "no factor": ("Broyden", "safe ? 1 / denominator : 1", "1"),
    "a restart too early": ("Broyden", "1) % s.a.depth", "1) % (s.a.depth - 1)"),
    "a row of the matrix too short": ("Broyden", "j <= newest; j += team.lanes) {\n            S t",
                                      "j < newest; j += team.lanes) {\n            S t"),
    "no meeting before the matrix": ("Broyden", "s.gather(NORMS + newest + 1);", ""),
    "no meeting after the test": ("Anderson", "test(s, last);\n    }\n    s.team.meet();",
                                  "test(s, last);\n    }"),
}  # fmt: skip
SOLVERS = {
    "Picard": [ic.Picard(tol=1e-8, max_steps=60)],
    "Anderson": [ic.Anderson(tol=1e-10, depth=2, max_steps=60), ic.Anderson(tol=1e-10)],
    "Broyden": [ic.Broyden(tol=1e-10, memory=4, max_steps=60)],
}


def differs(update: str, changes: dict[str, str]) -> bool:
    """Whether some solve is not that of the torch backend."""
    for order in (FORWARD, REVERSE):
        for name, of in PROBLEMS.items():
            for solver in SOLVERS[update]:
                problem = of(torch.float64)
                try:
                    found = problem.solve(solver, on_cpu(order, changes))
                    same_stops(found, problem.solve(solver, None), stable=name not in UNSTABLE)
                except (AssertionError, ic.InputError):
                    return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("bug", ITERATIONS)
def test_a_bug_of_an_iteration_is_found(bug):
    update, old, new = ITERATIONS[bug]
    assert differs(update, {old: new})


@pytest.mark.slow
@pytest.mark.parametrize("update", SOLVERS)
def test_the_iterations_as_they_are_pass(update):
    assert not differs(update, {})


STEPS = {  # of steps.cu
    "an infinite end": ("e.at[j] + 0 * q", "e.at[j]"),
    "a scale of the start alone": ("most<S>(fabs(p), fabs(q))", "fabs(p)"),
    "a NaN that is no maximum": ("most<S>(fabs(p), fabs(q))", "fmax(fabs(p), fabs(q))"),
    "no mean of the errors": ("sums[0] / static_cast<S>(a.n)", "sums[0]"),
    "a bound of no move": ("if (finite(a.move_bound))", "if (false)"),
    "the move for the error": ("sums[2] += miss * miss", "sums[2] += move * move"),
    "who is not active accepts": ("a.active[b] && error <= 1", "error <= 1"),
    "who is done does not follow": ("takes || a.done[b]", "takes"),
    "every order is that of all": ("a.orders ? a.orders[b] : a.order", "a.order"),
    "the rule of accepted steps for all": ("takes ? a.exponents[0] : 1", "a.exponents[0]"),
    "no memory": ("takes && i < a.count", "false && i < a.count"),
    "the last error twice": ("(i - 1) * a.memory_step + b", "b"),
    "any error is remembered": ("static_cast<Time>(a.least));", "static_cast<Time>(0));"),
    "no safety": ("factor *= static_cast<Time>(a.safety);", ""),
    "no limit of the growth": ("least<Time>(factor, grow)", "factor"),
    "a size that may fall to nothing": ("factor >= shrink ?", "factor >= 0 ?"),
    "a least size after a refusal": ("takes && a.min_step > 0", "a.min_step > 0"),
    "no largest size": ("least<Time>(size, static_cast<Time>(a.max_step))", "size"),
    "a step beyond the stop": ("least<Time>(most<Time>(remaining, -size), size)", "size"),
    "an end beside the stop": ("arrives ? a.target[b] : t + dt", "t + dt + dt"),
    "a refused error is remembered": ("takes ? error : a.memory[b]", "error"),
    "the errors before in one place": ("takes ? a.memory[b] : a", "takes ? error : a"),
    "time goes on for all": ("t = takes ? a.end[b] : a.t[b]", "t = a.end[b]"),
    "outputs in one direction": ("a.forwards ? a.forwards[b] : a.forward", "true"),
    "outputs passed by a refused step": ("passes = takes && (forward", "passes = (forward"),
    "an arrival by a refused step": ("takes && a.arrives[b] ? arrived", "a.arrives[b] ? arrived"),
    "who is not active refuses": ("a.active[b] && !takes ? refused", "!takes ? refused"),
    "events of half a warp": ("step = WARP / 2; step; step /= 2) events",
                              "step = WARP / 4; step; step /= 2) events"),
    "events of the first warp": ("if (threadIdx.x % WARP != 0) return;",
                                 "if (threadIdx.x != 0) return;"),
    "events counted twice": ("team.first() ? judge", "team.present ? judge"),
    "one span of the errors": ("a.spans == 1) {\n        conclude_team",
                               "true) {\n        conclude_team"),
    "no step for who stays": ("a.dt[b] == 0 ? before[0] : static_cast", "static_cast"),
    "order one never": ("&& c.order > 1) c.order = 1;", "&& c.order > 99) c.order = 1;"),
    "order zero": ("if (c.order < 1) c.order = 1;", ""),
    "a grid that does not move": ("j ? size + before[j - 1] : size", "j ? before[j - 1] : size"),
    "beta without its past": ("c.beta[j] * (c.gaps[j] / before[j])", "c.gaps[j] / before[j]"),
    "one node less": ("k < a.nodes; ++k", "k < a.nodes - 1; ++k"),
    "nodes of one weight": ("S product = a.weight[k];", "S product = 1.0 / a.nodes;"),
    "one order less": ("if (j >= c.order) continue;", "if (j + 1 >= c.order) continue;"),
    "no step of the rows": ("phi + j * a.row_step + i", "phi + j * a.n + i"),
    "rows that are not aligned": ("aligned(z, phi, end) && a.row_step * sizeof(T) % 16 == 0",
                                  "aligned(z, phi, end)"),
    "no highest order": ("c.highest < a.max_order ? c.highest : a.max_order", "a.max_order"),
    "an order above the highest": ("c.highest < a.max_order ? c.highest : a.max_order",
                                   "c.highest"),
    "differences of the last step": ("phi + (j - 1) * a.row_step + i", "phi + i"),
    "an error of another order": ("if (j == order) {", "if (j == order - 1) {"),
    "an error without dt": ("g[order] * a.dt[b]", "g[order]"),
    "sizes of one order more": ("j == order - 1 + near ? square", "j == order + near ? square"),
    "no order above": ("k < 1 || k > a.rows", "k < 1 || k > order"),
    "no order below": ("k < 1 || k > a.rows", "k < order || k > a.rows"),
    "errors without their integrals": ("sqrt(squares[near]) * g[k]", "sqrt(squares[near])"),
    "differences in one place": ("a.next + b * a.rows * a.n", "a.next + b * a.n"),
}  # fmt: skip


def step_found(changes: dict[str, str], dtype: torch.dtype = torch.float64) -> bool:
    """Whether a check of whole steps fails."""
    shapes = (3, 129), (3, 20_005), (150, 2), (33, 128), (70, 40)
    for order, (batch, n), check in product((FORWARD, REVERSE), shapes, STEP_CHECKS.values()):
        try:
            check(KernelProblem(on_cpu(order, changes), "cpu", dtype, batch, n, order == FORWARD))
        except AssertionError:
            return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("bug", STEPS)
def test_a_bug_of_a_step_is_found(bug):
    old, new = STEPS[bug]
    assert step_found({old: new})


@pytest.mark.slow
def test_the_steps_as_they_are_pass():
    assert not step_found({})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_source_as_it_is_passes(dtype):
    assert not found(dtype, {})


def test_shared_memory_that_is_too_small_is_found():
    z = torch.ones(2, 129)
    backend = on_cpu()
    launch = backend.launcher.launch

    class Stingy(CpuLauncher):
        def launch(self, kernel, like, grid, threads, arguments, shared):
            launch(kernel, like, grid, threads, arguments, shared - 8)

    type(backend).launcher = Stingy()
    with pytest.raises(AssertionError, match=r"residual<float>: a write behind the shared memory"):
        backend.residual(z, z)


def test_a_struct_that_is_packed_wrongly_is_found(monkeypatch):
    monkeypatch.setattr(backend_module, "_FINISH", backend_module._MIX)
    z = torch.ones(1, 100_003)
    with pytest.raises(Exception, match="pack expected 14 items"):
        on_cpu().residual(z, z)
    for layout in (
        backend_module._RESIDUAL,
        backend_module._MIX,
        *backend_module._COMBINE.values(),
    ):
        assert layout.size % 8 == 0
    assert source("kernels").count("__global__ void") == 6
    assert source("Picard").count("__global__ void") == 6
