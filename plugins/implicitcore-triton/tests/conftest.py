"""What is collected where: Triton decides once in a process whether it compiles or interprets."""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec

import pytest

# test_processes.py runs them, each in a process of its own.
collect_ignore = [
    "compile_kernels.py",
    *([] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]),
]


@pytest.fixture
def needs_triton() -> None:
    if find_spec("triton") is None:
        assert "CI" not in os.environ, (
            "the tests need the package triton, which has no torch in it: pip install triton"
        )
        pytest.skip("the package triton is not installed")


@pytest.fixture
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python in a process of its own, with these arguments and environment variables."""

    def run(
        *arguments: str, timeout: float = 120, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )

    return run
