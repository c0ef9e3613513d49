"""Where Triton is missing, the doctests of the kernels' module are skipped with the reason.

It cannot be imported there.
"""

from __future__ import annotations

from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path

import pytest

from implicitcore.testing.requirements import missing

KERNELS = Path(__file__).parent / "implicitcore_triton" / "kernels.py"
Collectors = list[pytest.Collector]


class Unimportable(pytest.File):
    """Stands in for the module."""

    def collect(self) -> list[pytest.Item]:
        missing("the package triton")


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(
    file_path: Path, parent: pytest.Collector
) -> Generator[None, Collectors, Collectors]:
    """Exchange the collector that would import the module."""
    found = yield
    if found and file_path == KERNELS and find_spec("triton") is None:
        return [Unimportable.from_parent(parent, path=file_path)]
    return found
