"""The kernels in Triton's interpreter, and compiled for GPUs that are not there: each in a process
of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytestmark = [pytest.mark.extras, pytest.mark.usefixtures("needs_triton")]


@pytest.mark.slow(22)
@pytest.mark.parametrize(
    ("file", "which"),
    [
        ("test_kernels.py", "not large"),
        ("test_kernels.py", "large"),
        ("test_seeded_bugs.py", ""),
        ("test_solves.py", ""),
        ("test_root_iteration.py", ""),
        ("test_steps.py", ""),
        ("test_krylov.py", ""),
        ("test_whole_bugs.py", "step"),
        ("test_whole_bugs.py", "iteration"),
        ("test_whole_bugs.py", "space"),
        ("test_contract.py", ""),
    ],
)
def test_in_the_interpreter(run_python, file, which):
    options = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", which)
    done = run_python(
        "-m",
        "pytest",
        *options,
        str(HERE / "interpreted" / file),
        TRITON_INTERPRET="1",
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert file == "test_contract.py" or " skipped" not in done.stdout


@pytest.mark.slow(90)
def test_every_kernel_compiles_with_no_gpu_at_hand(run_python, tmp_path):
    done = run_python(
        str(HERE / "compile_kernels.py"),
        TRITON_INTERPRET="0",
        TRITON_CACHE_DIR=str(tmp_path),
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    compiled = {tuple(line.split()[:3]) for line in done.stdout.splitlines()}
    kernels = (
        "residual",
        "error_norm",
        "finish",
        "inner_products",
        "axpy_history",
        "stage_combination",
        *("picard", "anderson", "broyden"),
        *("control", "predict", "correct"),
        *("expand", "project", "reduce", "settle", "minimise"),
    )
    assert compiled == {
        (name, acc, f"sm_{arch}")
        for name in kernels
        for acc in ("fp32", "fp64")
        for arch in (80, 90, 120)
    }
