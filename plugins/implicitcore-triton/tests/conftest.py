"""What is collected where: Triton decides once in a process whether it compiles or interprets."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from implicitcore.testing.requirements import needs

# test_processes.py runs them, each in a process of its own.
collect_ignore = [
    "compile_kernels.py",
    *([] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]),
]


@pytest.fixture
def needs_triton() -> None:
    needs("triton")


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
