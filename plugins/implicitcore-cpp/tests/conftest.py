"""Where the kernels are not built and cannot be, the tests are skipped with the reason."""

from __future__ import annotations

import pytest

from implicitcore_cpp import CppBackend


@pytest.fixture
def cpp() -> CppBackend:
    """The backend, built."""
    backend = CppBackend()
    reason = backend.unavailable_reason()
    if reason is not None:
        pytest.skip(f"the C++ kernels cannot be built: {reason}")
    return backend
