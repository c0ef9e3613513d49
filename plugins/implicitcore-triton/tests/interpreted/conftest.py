"""What ran, in the interpreter."""

import pytest

from implicitcore_triton import backend


@pytest.fixture
def launches(monkeypatch):
    """The names of the kernels that ran."""
    names, launch = [], backend._launch
    monkeypatch.setattr(
        backend,
        "_launch",
        lambda name, *rest, **sizes: (names.append(name), launch(name, *rest, **sizes)),
    )
    return names
