"""Where Triton is missing, the doctests of the kernels' modules are skipped with the reason.

They cannot be imported there.
"""

from __future__ import annotations

from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path

import pytest

from implicitcore.testing.requirements import missing

KERNELS = set((Path(__file__).parent / "implicitcore_triton").glob("*kernel*.py"))
Collectors = list[pytest.Collector]


class Unimportable(pytest.File):
    """Stands in for a module."""

    def collect(self) -> list[pytest.Item]:
        missing("the package triton")


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(
    file_path: Path, parent: pytest.Collector
) -> Generator[None, Collectors, Collectors]:
    """Exchange the collector that would import such a module."""
    found = yield
    if found and file_path in KERNELS and find_spec("triton") is None:
        return [Unimportable.from_parent(parent, path=file_path)]
    return found
