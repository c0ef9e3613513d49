"""Kernels made wrong on purpose: the checks must see each."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from triton.runtime.errors import InterpreterError

import implicitcore_triton
from implicitcore.testing.expect import known
from implicitcore.testing.kernel_checks import CHECKS, KernelProblem
from implicitcore_triton import TritonBackend, kernels

BACKEND = TritonBackend(interpret=True)
MEAN = "_put(norms + sample * chunks + tl.program_id(0) % chunks, total, there, ROOT, n)"
BUGS = {
    "the last column left out": (
        "mask = there & (column < end)",
        "mask = there & (column < end - 1)",
    ),
    "columns beyond the chunk": ("end = tl.minimum(n, (chunk + 1) * CHUNK)", "end = n"),
    "the first tile alone": (
        "for start in range(first, end, COLUMNS):",
        "for start in range(first, first + COLUMNS, COLUMNS):",
    ),
    "the norm of f(z) for that of the difference": (
        "_put(norms + place, differences",
        "_put(norms + place, values",
    ),
    "the norm of what was not written": ("rounded = difference.to(ACC)", "rounded = value"),
    "no root of a sum of parts": (
        "_put(out + row, total, row < rows, ROOT, count)",
        "_put(out + row, total, row < rows, False, count)",
    ),
    "no mean": (MEAN, MEAN.replace(", n)", ")")),
    "parts of the next sample": ("(row < rows) & (column < chunks)", "row < rows"),
    "maximum without nan": (", propagate_nan=tl.PropagateNan.ALL", ""),
    "zero over zero beyond the end": ("scale = tl.where(mask, ", "scale = tl.where(there, "),
    "the state before alone": (
        "tl.maximum(tl.abs(before), tl.abs(after)",
        "tl.maximum(tl.abs(before), tl.abs(before)",
    ),
    "contiguous samples": (
        "history += sample * sample_stride + line * line_stride",
        "history += sample * n + line * line_stride",
    ),
    "contiguous lines": (
        "tl.load(history + line * line_stride,",
        "tl.load(history + line * n,",
    ),
    "a contiguous row": ("row += sample * row_stride", "row += sample * n"),
    "eight lines alone": (
        "for start in range(0, depth, LINES):",
        "for start in range(0, LINES, LINES):",
    ),
    "no scale": (" * tl.full((), scale, ACC)\n", "\n"),
    "the first weight for all": ("weights[i]", "weights[0]"),
    "weights in float32": (
        ".to(tl.float64, bitcast=True)",
        ".to(tl.float64, bitcast=True).to(tl.float32)",
    ),
    "the first dt for all": (
        "tl.load(dt + sample, there, 0)",
        "tl.load(dt + sample * 0, there, 0)",
    ),
    "no z": ("if z is not None:", "if z is None:\n        moved += 0\n    if False:"),
}


def check_all() -> None:
    for n in (129, 5000):
        for check in CHECKS.values():
            check(KernelProblem(BACKEND, "cpu", torch.float64, 3, n))
    CHECKS["residual"](KernelProblem(BACKEND, "cpu", torch.bfloat16, 3, 129, truncates=True))


def wrong_kernels(path: Path, right: str, wrong: str):
    source = Path(kernels.__file__).read_text()
    assert right in source, "the kernel was rewritten: write the bug anew"
    path.write_text(source.replace(right, wrong))
    spec = known(importlib.util.spec_from_file_location(path.stem, path))
    module = importlib.util.module_from_spec(spec)
    known(spec.loader).exec_module(module)
    return module


def test_the_kernels_as_they_are():
    check_all()


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_is_caught(bug, tmp_path, monkeypatch):
    monkeypatch.setattr(
        implicitcore_triton, "kernels", wrong_kernels(tmp_path / "wrong.py", *BUGS[bug])
    )
    with pytest.raises(
        (AssertionError, InterpreterError)
    ):  # the second where NumPy warns, as of zero over zero
        check_all()
