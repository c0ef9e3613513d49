"""The contract of the part, and the name by which it is found."""

from typing import Any

from implicitcore.extend import REGISTRY
from implicitcore.testing import parametrize_with_checks
from implicitcore_example.relaxation import Relaxation


@parametrize_with_checks([Relaxation()])
def test_contract(part: Any, check: Any) -> None:
    check(part)


def test_the_plugin_is_installed_and_registers_the_name() -> None:
    found = REGISTRY.find("root_solver", "example-relaxation")
    assert found.load() is Relaxation
