"""What is collected where: Triton decides once in a process whether it compiles or interprets."""

import os

import pytest
from requirements import needs

# test_processes.py runs them, each in a process of its own.
collect_ignore = [
    "compile_kernels.py",
    *([] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]),
]


@pytest.fixture
def needs_triton() -> None:
    needs("triton")
