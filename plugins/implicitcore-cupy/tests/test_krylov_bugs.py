"""The comparison of Krylov spaces finds what it is for: each change of the source is noticed."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from cpu_launcher import FORWARD, REVERSE, on_cpu

from implicitcore.testing.kernel_checks import KernelProblem
from implicitcore.testing.krylov_checks import check_krylov_spaces
from implicitcore_cupy.geometry import WHOLE
from implicitcore_cupy.launcher import source

BUGS = {  # of krylov.cu
    "one group of rows": ("first == 0 || first < rows", "first == 0"),
    "rows of the next sample": ("(k * a.batch + team.sample) * a.n", "(k + team.sample) * a.n"),
    "the vector after one pass": ("const Sum<T> weight = s.again(k);", "const Sum<T> weight = 0;"),
    "nothing taken off": ("const Sum<T> weight = s.sums[k];", "const Sum<T> weight = 0;"),
    "no bound of rounding": ("most<S>(sqrt(most<S>(square, 0)), rounding)",
                             "sqrt(most<S>(square, 0))"),
    "w without its past": ("w -= h * s.entry(k - 1, last);", ""),
    "w of the last product": ("s.entry(k - 1, last)", "s.entry(newest - 1, last)"),
    "the length without its past": ("now += w * w;", "now = 1 + w * w;"),
    "a done sample goes on": ("real(length + a.rows - 1) < real(bound) :", "real(bound) > 1 :"),
    "who is left out goes on": ("1 < first_bound();", "true;"),
    "a length in one place": ("s.real(length + newest + 1) = now;", "s.real(length) = now;"),
    "a limit that is not squared": ("return share * share;", "return share;"),
    "who began done is not counted": ("if (!goes) done(s);", ""),
    "who is done is not counted": ("if (!(now < s.real(bound))) done(s);", ""),
    "the triangle below": ("y[i] -= s.entry(k, i) * value;", "y[i] -= s.entry(i, k) * value;"),
    "no diagonal": ("y[k] / s.entry(k, k)", "y[k]"),
    "no scale": ("s.entry(k, s.a.most) * scale;", "s.entry(k, s.a.most);"),
    "one vector less": ("for (int64 k = 0; k < used; ++k) {\n            const S weight = y[k];",
                        "for (int64 k = 1; k < used; ++k) {\n            const S weight = y[k];"),
    "no meeting in the solve": ("        team.meet();\n        const S value = k < used",
                                "        const S value = k < used"),
    "no meeting behind the value": ("0;\n        team.meet();", "0;"),
    "no meeting behind the sums": ("        }\n        team.meet();\n    }\n};",
                                   "        }\n    }\n};"),
    "sums that are not aligned": ("wide = a.n * sizeof(T) % 16 == 0 && aligned(a.product, a.next",
                                  "wide = a.n * sizeof(T) % 16 == 0 && aligned(a.next"),
    "rows that are not aligned": ("wide = a.n * sizeof(T) % 16 == 0 && ", "wide = "),
}  # fmt: skip
LONG = {  # what only samples of several spans show
    "one span of the sums": ("i < a.spans; i += WARP", "i < 1; i += WARP"),
    "sums of few lanes": ("step = WARP / 2; step; step /= 2)\n", "step = 2; step; step /= 2)\n"),
    "the sums of one warp": ("k = threadIdx.x / WARP; a.spans", "k = 0; a.spans"),
    "every block begins": ("if (!s.team.first() || blockIdx.y) return;",
                           "if (!s.team.first()) return;"),
    "the first product from the rest": ("rows ? take<w.width>(s.a.rest + here) : "
                                        "take<w.width>(s.a.product + here)",
                                        "take<w.width>(s.a.rest + here)"),
    "the rest in one place": ("s.a.rest + s.at + i;", "s.a.rest + i;"),
    "the sums where they are used": ("team.lanes / WARP * (GROUP + 1)", "0"),
}  # fmt: skip
SAME = ("the sums of one warp",)  # only slower: each warp adds up all


def found(changes: dict[str, str], shapes: tuple[tuple[int, int, int], ...]) -> bool:
    """Whether a check fails."""
    assert all(source("krylov").count(text) == 1 for text in changes), "write the bug anew"
    for order, (batch, n, most) in product((FORWARD, REVERSE), shapes):
        torch.manual_seed(0)
        backend, aligned = on_cpu(order, changes), batch not in (7, 14)
        problem = KernelProblem(backend, "cpu", torch.float64, batch, n, aligned)
        try:
            check_krylov_spaces(problem, most)
        except (AssertionError, RuntimeError):
            return True
    return False


SMALL = ((7, 129, 20), (21, 7, 12), (14, 128, 20))


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_is_found(bug):
    old, new = BUGS[bug]
    assert found({old: new}, SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("bug", [bug for bug in LONG if bug not in SAME])
def test_a_bug_of_long_samples_is_found(bug):
    old, new = LONG[bug]
    assert found({old: new}, ((7, WHOLE + 5, 5),))


@pytest.mark.slow
def test_the_source_as_it_is_passes():
    assert not found({}, (*SMALL, (7, WHOLE + 5, 5)))
