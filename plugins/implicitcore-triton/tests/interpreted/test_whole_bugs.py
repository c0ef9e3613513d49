"""Kernels of whole iterations and steps made wrong on purpose: the comparison must see each."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from triton.runtime.errors import InterpreterError

import implicitcore as ic
import implicitcore_triton
from implicitcore.extend import StepwiseRootSolver
from implicitcore.testing.expect import known
from implicitcore.testing.hard_maps import PROBLEMS, UNSTABLE, Problem, same_stops
from implicitcore.testing.kernel_checks import KernelProblem
from implicitcore.testing.krylov_checks import check_krylov_spaces
from implicitcore.testing.step_kernel_checks import STEP_CHECKS
from implicitcore_triton import TritonBackend, krylov

BACKEND = TritonBackend(interpret=True)
FOUND = (AssertionError, InterpreterError, ic.InputError)
MODULES = (
    *("stop_kernels", "iteration_kernels", "anderson_kernel", "broyden_kernel", "step_kernels"),
    "krylov_kernels",
)
"""Each imports from those before it."""

STEPS = {
    "an infinite end": ("mask, ACC) + after * 0", "mask, ACC)"),
    "a scale of the start alone": ("_most(tl.abs(before), tl.abs(after)) * rtol",
                                   "tl.abs(before) * rtol"),
    "the first tile of the errors": ("range(0, n, COLUMNS):\n        column = start + tl.arange(0, "
                                     "COLUMNS)[None, :]\n        mask = there & (column < n)\n"
                                     "        before",
                                     "range(0, COLUMNS, COLUMNS):\n        column = start + "
                                     "tl.arange(0, COLUMNS)[None, :]\n        mask = there & "
                                     "(column < n)\n        before"),
    "no mean of the errors": ("row_sum(scaled) / n", "row_sum(scaled)"),
    "a bound of no move": ("    if BOUNDED:\n", "    if False:\n"),
    "who is not active accepts": ("accept = goes & (found", "accept = there & (found"),
    "who is done does not follow": ("(accept | (tl.load(done", "(accept & (tl.load(done"),
    "every order is that of all": ("if orders is not None:", "if False:"),
    "no memory": ("if EXPONENTS > 1:", "if EXPONENTS > 9:"),
    "the last error twice": ("memory + memory_step + sample", "memory + sample"),
    "any error is remembered": ("+ tl.full((), least, time)", ""),
    "the rule of accepted steps for all": ("_power(found, -1 / root))", "factor)"),
    "no limit of the growth": ("tl.minimum(factor, high)", "factor"),
    "a least size after a refusal": ("tl.where(accept, shortest, size)", "shortest"),
    "no largest size": ("tl.full((), max_step, time))", "size)"),
    "a step beyond the stop": ("tl.minimum(tl.maximum(remaining, -size), size)", "size"),
    "a refused error is remembered": ("tl.where(accept, found, last)", "found"),
    "time goes on for all": ("now = tl.where(accept, till, ", "now = tl.where(there, till, "),
    "outputs in one direction": ("if forwards is not None:", "if False:"),
    "outputs passed by a refused step": ("passes = accept & tl.where", "passes = there & tl.where"),
    "who is not active refuses": ("goes & ~accept", "there & ~accept"),
    "absent samples are counted": ("there & ~follows", "~follows"),
    "no step for who stays": ("tl.where(step == 0, last, tl.abs(step))", "tl.abs(step)"),
    "order one never": ("tl.minimum(given, 1), given)", "given, given)"),
    "beta without its past": ("beta *= gap / before", "beta = gap / before"),
    "one node": ("tl.load(nodes + NODES + node)", "tl.where(node == 0, 1.0, 0.0)"),
    "a grid that does not move": ("gap = size + before", "gap = before"),
    "one order less": ("used = there & (j < k)", "used = there & (j + 1 < k)"),
    "contiguous rows": ("load(rows, j * row_stride + column, mask & used",
                        "load(rows, j * n + column, mask & used"),
    "contiguous samples": ("own, at = known + sample * (2 * ROWS + 1), sample * n\n    g",
                           "own, at = known + sample * 2 * ROWS, sample * n\n    g"),
    "an error of another order": ("mask & (k == j))", "mask & (k == j + 1))"),
    "no order below": ("there & (k > 1), there", "there & (k > 99), there"),
    "no order above": ("there & (k < ROWS)", "there & (k < 0)"),
    "no highest order": ("tl.minimum(best, highest)", "best"),
}  # fmt: skip

SPACES = {
    "one group of rows": ("range(0, rows, LINES):\n        line = _lines(first, LINES)\n        q",
                          "range(0, 1):\n        line = _lines(first, LINES)\n        q"),
    "rows of every second sample": ("< rows), ACC)\n        tl",
                                    "< rows), ACC) * (sample % 2)\n        tl"),
    "nothing taken off": ("x -= tl.sum(weight * q, 0, keep_dims=True)", "x = x"),
    "one chunk of the sums": ("range(0, chunks, PARTS)", "range(0, PARTS, PARTS)"),
    "w without its past": ("tl.where(line == 0, h, -h * past)", "tl.where(line == 0, h, 0)"),
    "the length without its past": ("before + w * w, before", "1 + w * w, before"),
    "a done sample goes on": ("return length < tl.load(", "return length * 0 < tl.load("),
    "who is left out goes on": ("bound > 1, chunk == 0", "bound >= 0, chunk == 0"),
    "every chunk writes": ("chunk == 0, rows - 1", "chunk >= 0, rows - 1"),
    "a limit that is not squared": ("bound = share * share", "bound = share"),
    "who is done is not counted": ("adds & ~(after <", "adds & (after * 0 >"),
    "the products of all": ("sample, used + 1, adds)", "sample, used + 1, writes)"),
    "no diagonal": ("tl.where(line == k, above, 0))", "tl.where(line == k, 1.0, 0))"),
    "no triangle": ("y -= tl.where(line < k, above * value, 0)", "y = y"),
    "one vector less": ("k = used - 1 - done\n", "k = tl.maximum(used - 1 - done, 1)\n"),
    "no scale": ("line < used, 0) * scale", "line < used, 0)"),
}  # fmt: skip

ITERATIONS = {  # the update whose solves show it, and the change
    "a stopped sample moves on": ("picard", "return active & ~stops,", "return there,"),
    "a best that is worse": (
        "broyden",
        "lower = first | (size <= best)",
        "lower = first | (size > best)",
    ),
    "steps of another iterate": (
        "picard",
        "STEPS * batch, count, stops",
        "STEPS * batch, count - 1, stops",
    ),
    "no damping": ("picard", "here + damping * (f - here), f + (damping - 1) * (f - here)", "f, f"),
    "a slot that stays": ("anderson", "directions % DEPTH", "directions * 0"),
    "the oldest counts twice": (
        "anderson",
        "takes = takes & (tl.zeros_like(sample) + k != newest)",
        "takes = takes",
    ),
    "no unit rows": ("anderson", "learns, ACC) * scale\n", "learns, ACC)\n"),
    "no factor": (
        "broyden",
        "return 1 / tl.where(safe, 1 - last, 1)",
        "return 1 / tl.where(safe, 1, 1)",
    ),
    "a row of the matrix too short": (
        "broyden",
        "range(1, newest + 1):\n        product",
        "range(1, newest):\n        product",
    ),
    "a restart too early": ("broyden", "(count - 1) % DEPTH", "(count - 1) % (DEPTH - 1)"),
    "no best iterate": ("broyden", "mask = keeps & (column < n)", "mask = keeps & (column < 0)"),
    "no trust": ("picard", "met = met & ~owed", "met = met"),
    "no divergence": ("picard", "~(size <= ceiling)", "~_finite(size)"),
    "no restart of a sample": (
        "anderson",
        "tl.where(restarts, 0, tl.where(begins, 1, alive))",
        "tl.where(begins, 1, alive)",
    ),
    "no retreat": ("anderson", "grown & ~plain, grown", "grown & ~there, grown"),
    "no period": ("anderson", "(count - 2) % period)", "count - 2)"),
    "no ridge": ("anderson", "low + ridge * size", "low"),
}
SOLVERS = {
    "picard": ic.Picard(tol=1e-3, damping=0.7, max_steps=14),
    "anderson": ic.Anderson(tol=1e-8, depth=2, max_steps=14),
    "broyden": ic.Broyden(tol=1e-8, memory=4, max_steps=14),
}
HILLS, HIGHER, STEEP = (
    Problem(f, PROBLEMS["runaway"](torch.float64).x)
    for f in (
        lambda z, x: torch.sin(2 * z) + x / 10,
        lambda z, x: 2 * torch.sin(3 * z) + x / 10,
        lambda z, x: 30 * z + x,
    )
)
SHOW: dict[str, list[tuple[Problem, StepwiseRootSolver[Any]]]] = {
    "picard": [
        (PROBLEMS["no fixed point"](torch.float64), ic.Picard(tol=0.2, max_steps=7)),
        (STEEP, ic.Picard(tol=1e-3, max_steps=8)),
    ],
    "anderson": [
        (HILLS, ic.Anderson(tol=1e-8, depth=2, max_steps=8)),
        (HIGHER, ic.Anderson(tol=1e-8, depth=2, max_steps=6)),
        (
            PROBLEMS["rates"](torch.float64),
            ic.Anderson(tol=1e-8, depth=2, regularization=1e-2, max_steps=6),
        ),
    ],
    "broyden": [(PROBLEMS["expanding"](torch.float64), ic.Broyden(memory=4, max_steps=5))],
}
"""Few steps of what the maps below do not show: growth of |f(z)| alone, and of the residual beyond
all bounds; a residual that doubles; a regularization; a last iterate that is not the best."""
NAMES = ("rates", "some expanding", "nan", "tiny", "runaway")


def make_wrong(monkeypatch, folder: Path, right: str, wrong: str) -> None:
    """The kernels, from sources in which one text, which is there once, is another."""
    own = Path(known(implicitcore_triton.__file__)).parent
    sources = {name: (own / f"{name}.py").read_text() for name in MODULES}
    assert sum(source.count(right) for source in sources.values()) == 1, "write the bug anew"
    for name, source in sources.items():
        path = folder / f"{name}.py"
        path.write_text(source.replace(right, wrong))
        full = f"implicitcore_triton.{name}"
        spec = known(importlib.util.spec_from_file_location(full, path))
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, full, module)
        known(spec.loader).exec_module(module)
        monkeypatch.setattr(implicitcore_triton, name, module, raising=False)


def check_steps() -> None:
    for batch, n in ((7, 40), (2, 1100)):
        for check in STEP_CHECKS.values():
            torch.manual_seed(0)
            check(KernelProblem(BACKEND, "cpu", torch.float64, batch, n))


def check_spaces(monkeypatch) -> None:
    for chunk, lines, n in ((16, 16, 20), (64, 2, 20)):
        monkeypatch.setattr(krylov, "CHUNK", chunk)
        monkeypatch.setattr(krylov, "PARTS", 1)
        monkeypatch.setattr(krylov, "LINES", lines)
        torch.manual_seed(0)
        check_krylov_spaces(KernelProblem(BACKEND, "cpu", torch.float64, 7, n), 4)


def check_iterations(update: str) -> None:
    for problem, solver in SHOW[update]:
        found, expected = (problem.solve(solver, each) for each in (BACKEND, None))
        same_stops(found, expected, stable=update != "picard")
    for name in NAMES:
        problem = PROBLEMS[name](torch.float64)
        found, expected = (problem.solve(SOLVERS[update], each) for each in (BACKEND, None))
        same_stops(found, expected, stable=name not in UNSTABLE)


def test_the_steps_as_they_are(tmp_path, monkeypatch):
    make_wrong(monkeypatch, tmp_path, "def predict(", "def predict(")
    check_steps()


@pytest.mark.parametrize("bug", STEPS)
def test_a_bug_of_a_step(bug, tmp_path, monkeypatch):
    make_wrong(monkeypatch, tmp_path, *STEPS[bug])
    with pytest.raises(FOUND):
        check_steps()


def test_the_spaces_as_they_are(tmp_path, monkeypatch):
    make_wrong(monkeypatch, tmp_path, "def minimise(", "def minimise(")
    check_spaces(monkeypatch)


@pytest.mark.parametrize("bug", SPACES)
def test_a_bug_of_a_space(bug, tmp_path, monkeypatch):
    make_wrong(monkeypatch, tmp_path, *SPACES[bug])
    with pytest.raises(FOUND):
        check_spaces(monkeypatch)


@pytest.mark.parametrize("update", SOLVERS)
def test_the_iterations_as_they_are(update, tmp_path, monkeypatch):
    make_wrong(monkeypatch, tmp_path, f"def {update}(", f"def {update}(")
    check_iterations(update)


@pytest.mark.parametrize("bug", ITERATIONS)
def test_a_bug_of_an_iteration(bug, tmp_path, monkeypatch):
    update, *change = ITERATIONS[bug]
    make_wrong(monkeypatch, tmp_path, *change)
    with pytest.raises(FOUND):
        check_iterations(update)
